"""The routers of a mixture of experts, in FP32.

A router multiplies hidden states with a small matrix and sends each token to the experts with the largest logits. In a
half dtype near ties are decided by rounding, differently in the two engines, and another expert is another function:
the mismatch of a mixture of experts is larger than a dense model's for that. In `transformers` the softmax after the
product is FP32 already; here the product is, too.
"""

import types

import torch
from torch import nn


class _Widened:
    """A module as its own forward sees it, floating-point tensors widened to FP32."""

    def __init__(self, module: nn.Module):
        self._module = module

    def __getattr__(self, name: str):
        value = getattr(self._module, name)
        return value.float() if isinstance(value, torch.Tensor) and value.is_floating_point() else value


def _forward_in_fp32(router: nn.Module, hidden: torch.Tensor):
    logits, scores, indices = type(router).forward(_Widened(router), hidden.float())
    return logits, scores.to(hidden.dtype), indices


def route_in_fp32(model: nn.Module) -> int:
    """Make every router of a model (`transformers`' ...TopKRouter) compute in FP32; returns how many there are.

    Its logits leave it in FP32, the scores that weigh the experts' outputs in the model's dtype. The module is still
    what is called, so that ZeRO-3 gathers its weight first; parameters and their gradients keep their dtype.

    Raises:
        ValueError: the model has no router of that kind.
    """
    routers = [module for module in model.modules() if type(module).__name__.endswith("TopKRouter")]
    if not routers:
        raise ValueError(f"{type(model).__name__} has no router that is known here; leave --router-fp32 out.")
    for router in routers:
        router.forward = types.MethodType(_forward_in_fp32, router)
    return len(routers)
