"""A model's sizes from its config.json alone: no weights are read, no GPU is needed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from learners.model.config_file import read_model_config
from tasks.errors import UsageError, first_line

if TYPE_CHECKING:
    from learners.options.config import Config


@dataclass(frozen=True)
class ModelShape:
    """Sizes, in elements where nothing else is said."""

    trained: tuple[int, ...]
    """of each parameter that is trained: all of the model's, or the adapters'"""
    frozen: tuple[int, ...]
    """of each that is not"""
    whole: int
    """the model without adapters: what the sampler holds"""
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    mlp: int
    """width of a dense layer's MLP; 0 where every layer has experts"""
    experts: int
    """of a layer; 0 for a dense model"""
    chosen_experts: int
    """that a token goes through"""
    expert: int
    """width of one"""
    norms_queries: bool
    """whether queries and keys are normalised, as in Qwen3"""
    trains_head: bool


def shape_of(config: Config) -> ModelShape:
    """Build the model, adapters included, on torch's meta device, where tensors have shapes and nothing else.

    Raises:
        UsageError: there is no such model, or transformers cannot build it.
    """
    import torch
    from huggingface_hub.errors import StrictDataclassError  # how transformers finds a value of another type
    from transformers import AutoConfig, AutoModelForCausalLM

    from learners.model.lora import add_adapters

    content, trusted = read_model_config(config), config.model.trust_remote_code
    try:
        if "auto_map" in content and trusted:
            described = AutoConfig.from_pretrained(config.model_path, trust_remote_code=True)
        else:
            described = AutoConfig.for_model(**content)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(described, trust_remote_code=trusted)
            whole = sum(p.numel() for p in model.parameters())
            if config.lora.lora_rank > 0:
                add_adapters(model, config.lora)
    except (ValueError, TypeError, AttributeError, KeyError, StrictDataclassError) as error:
        what = f"--model {config.model.model} cannot be built from its config.json ({first_line(error)})"
        raise UsageError(f"{what}; choose another model.") from error
    names = dict(model.named_parameters())
    first = lambda *options: next((value for name in options if (value := getattr(described, name, None))), 0)
    experts = first("num_experts", "num_local_experts", "n_routed_experts")
    dense = [n for n in range(described.num_hidden_layers) if experts == 0 or _is_dense(described, n)]
    return ModelShape(
        trained=tuple(p.numel() for p in names.values() if p.requires_grad),
        frozen=tuple(p.numel() for p in names.values() if not p.requires_grad),
        whole=whole,
        layers=described.num_hidden_layers,
        hidden=described.hidden_size,
        heads=described.num_attention_heads,
        kv_heads=first("num_key_value_heads", "num_attention_heads"),
        head_dim=first("head_dim") or described.hidden_size // described.num_attention_heads,
        vocabulary=described.vocab_size,
        mlp=described.intermediate_size if dense else 0,
        experts=experts,
        chosen_experts=first("num_experts_per_tok"),
        expert=first("moe_intermediate_size", "intermediate_size") if experts else 0,
        norms_queries=any(name.endswith("q_norm.weight") for name in names),
        trains_head=model.get_output_embeddings().weight.requires_grad,
    )


def _is_dense(described, layer: int) -> bool:
    """Whether a layer of a mixture of experts has none, as Qwen's configurations say it."""
    step = getattr(described, "decoder_sparse_step", None) or 1
    return layer in (getattr(described, "mlp_only_layers", None) or []) or (layer + 1) % step != 0
