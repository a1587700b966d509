"""Low-rank adapters: put in with peft, merged in FP32 for the sampler, saved in peft's format.

The base weights stay as they were loaded: they are never merged in place, so nothing drifts however often the
sampler is given the sum.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from peft import PeftModel

    from learners.options.groups import LoraOptions

ADAPTER = "default"  # peft's name for the only one


def add_adapters(model: nn.Module, options: LoraOptions) -> PeftModel:
    """Put adapters into a Hugging Face model, in its own dtype, and freeze the rest.

    Args:
        model: changed in place.
        options: resolved; ``lora_rank`` above 0.

    Raises:
        ValueError: no layer of the model has one of the names in ``lora_targets``.
    """
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=options.lora_rank,
        lora_alpha=options.lora_alpha,
        target_modules=list(options.lora_targets) or "all-linear",
        lora_dropout=0.0,
        bias="none",
    )
    return get_peft_model(model, config, autocast_adapter_dtype=False)


def is_adapter(name: str) -> bool:
    """Whether a parameter's name is that of a part of an adapter."""
    return ".lora_A." in name or ".lora_B." in name


def merged(layer: nn.Module, base: Tensor, master: Callable[[nn.Parameter], Tensor]) -> Tensor:
    """W + alpha / rank x B A of an adapted linear layer, in FP32 (LoRA, arXiv 2106.09685, equation 3): W is its frozen
    weight ``base``, A and B are the FP32 masters, which ``master`` gives of parameters."""
    down, up = master(layer.lora_A[ADAPTER].weight), master(layer.lora_B[ADAPTER].weight)
    return base.float() + layer.scaling[ADAPTER] * (up.float() @ down.float())


def adapted_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Peft's layers by the name that their weight had before: ``model.layers.0.self_attn.q_proj.weight``."""
    return {f"{name}.weight": layer for name, layer in model.named_modules() if hasattr(layer, "lora_A")}


def plain_name(name: str) -> str:
    """A parameter's name without what peft put into it."""
    return name.replace(".base_layer.", ".")


def adapter_tensors(
    model: nn.Module, master: Callable[[nn.Parameter], Tensor], dtype: torch.dtype
) -> dict[str, Tensor]:
    """Every part of every adapter in ``dtype`` on the CPU, from the FP32 masters, by its name in the model."""
    parts = model.named_parameters()
    return {name: master(parameter).to("cpu", dtype) for name, parameter in parts if is_adapter(name)}


def save_adapter(peft: PeftModel, tensors: dict[str, Tensor], folder: Path) -> None:
    """Write an adapter, from `adapter_tensors`, in peft's format; the model is asked for its configuration."""
    peft.save_pretrained(folder, state_dict={f"base_model.model.{name}": tensor for name, tensor in tensors.items()})
