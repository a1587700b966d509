"""The policy as DeepSpeed gets it: a Hugging Face model in the training dtype."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from transformers import AutoModelForCausalLM

from actors.processes import gather
from learners.model.routers import route_in_fp32
from learners.model.weights import shard
from learners.options.precision import NAMES, Precision
from tasks.errors import NonFiniteError

if TYPE_CHECKING:
    from learners.options.config import Config


def load_model(config: Config, precision: Precision) -> torch.nn.Module:
    """The model in the training dtype, checked to fit in it.

    Raises:
        NonFiniteError: a weight exceeds the dtype's range.
    """
    attention = config.model.attn_implementation
    if attention == "auto":
        attention = "sdpa" if torch.cuda.is_available() else "eager"
    model = AutoModelForCausalLM.from_pretrained(
        config.model_path,
        dtype=precision.train,
        attn_implementation=attention,
        trust_remote_code=config.model.trust_remote_code,
    )
    model.config.use_cache = False
    if hasattr(next(model.parameters()), "ds_id"):
        restore_frequencies(model)
    if config.model.router_fp32:
        route_in_fp32(model)
    own = (name for name, parameter in model.named_parameters() if not torch.isfinite(_held(parameter)).all())
    for name in gather(next(own, None)):  # with ZeRO-3 each process sees its part alone
        if name is not None:
            raise NonFiniteError(
                f"The weight {name} of {config.model.model} is not finite in {NAMES[precision.train]}: it exceeds the "
                "range of that dtype; use --dtype bf16 or fp32 for this model."
            )
    return model


def _held(parameter: torch.nn.Parameter) -> torch.Tensor:
    """What this process holds of a parameter."""
    if not hasattr(parameter, "ds_id"):
        return parameter
    own = shard(parameter)
    return parameter.ds_tensor[: own.stop - own.start]


def restore_frequencies(model: torch.nn.Module) -> None:
    """Give rotary embeddings their FP32 frequencies back, in place.

    Whatever tensor a model makes while ZeRO-3 cuts it up is made in the training dtype (deepspeed.zero.Init), these
    constants too, which are FP32 otherwise, as in vLLM. Off by 2^-9 in BF16, a frequency of 0.56 is 4 radians off at
    position 4,000: learner and sampler would be two models.
    """
    for module in model.modules():
        if hasattr(module, "original_inv_freq"):
            fresh = type(module)(module.config)
            module.inv_freq = fresh.inv_freq.to(module.inv_freq.device)
            module.original_inv_freq = module.inv_freq.clone()
