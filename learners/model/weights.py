"""The policy's weights, where they are and on their way out: to the sampler, and to disk in Hugging Face format.

Whatever leaves is cast once from the FP32 master weights. The learner's own tensors are the masters already cast to
its dtype, so they are handed over as they are where the receiver wants that dtype.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import deepspeed
import torch
from deepspeed.utils import safe_get_full_fp32_param
from torch import Tensor, nn

from learners.model import lora


def master(parameter: nn.Parameter) -> Tensor:
    """The FP32 master of a trained parameter, gathered from the processes that hold parts of it (all must ask); a
    frozen one is its own master."""
    return safe_get_full_fp32_param(parameter) if parameter.requires_grad else parameter.data


def shard(parameter: torch.nn.Parameter) -> slice:
    """ZeRO-3: which of a parameter's elements, counted through its flat form, this process holds.

    The parameter's ``ds_tensor`` begins with them; it is equally long everywhere, and nothing sets what the last
    processes have left of it.
    """
    size, whole = parameter.ds_tensor.ds_numel, parameter.ds_numel
    start = min(size * torch.distributed.get_rank(), whole)
    return slice(start, min(start + size, whole))


def whole_weights(model: nn.Module, dtype: torch.dtype, train_dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """The model's weights with adapters merged: (Hugging Face name, tensor in ``dtype``), one at a time.

    With ZeRO-3 each is gathered when its turn comes and given up again afterwards, so no more than one is ever whole;
    all processes go through them together.

    Args:
        model: the Hugging Face model that DeepSpeed trains, with or without adapters.
        dtype: of what comes out.
        train_dtype: of the learner.
    """
    adapted = lora.adapted_layers(model)
    for long_name, parameter in model.named_parameters():
        if lora.is_adapter(long_name):
            continue
        name = lora.plain_name(long_name)
        with deepspeed.zero.GatheredParameters([parameter], enabled=hasattr(parameter, "ds_id")):
            if name in adapted:
                yield name, lora.merged(adapted[name], parameter.data, master).to(dtype)
            elif dtype == train_dtype or not parameter.requires_grad:
                yield name, parameter.data.to(dtype)
            else:
                yield name, master(parameter).to(dtype)


def save_whole(
    model: nn.Module, tokenizer, folder: Path, dtype: torch.dtype, train_dtype: torch.dtype, writes: bool
) -> None:
    """Write a plain Hugging Face model, which transformers and vLLM load, and its tokenizer beside it. All processes
    call this, and the one that ``writes`` does; for the rest see `whole_weights`."""
    state = {}
    for name, tensor in whole_weights(model, dtype, train_dtype):
        if writes:
            state[name] = tensor.detach().to("cpu", copy=True)
    if not writes:
        return
    use_cache, model.config.use_cache = model.config.use_cache, True
    model.save_pretrained(folder, state_dict=state)
    model.config.use_cache = use_cache
    tokenizer.save_pretrained(folder)
    described = json.loads((folder / "config.json").read_text())  # says the learner's dtype
    described["dtype"] = str(dtype).removeprefix("torch.")
    (folder / "config.json").write_text(json.dumps(described, indent=2) + "\n")
