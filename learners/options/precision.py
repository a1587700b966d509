"""What `--dtype` decides. Nothing else in the project chooses a dtype.

Compute (weights, activations, gradients, the sampler's weights and cache, and what is synchronised) is in the chosen
dtype. Master weights, gradient accumulation, gradient reduction and optimiser state are FP32 in every arm, so that two
arms differ in what the name says and in nothing else; logits are widened and log-probabilities stay FP32.
"""

from dataclasses import dataclass

import torch

from learners.options.groups import LOSS_SCALING, PrecisionOptions

TORCH_DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
NAMES = {dtype: name for name, dtype in TORCH_DTYPES.items()}


@dataclass(frozen=True)
class Precision:
    """The dtypes of a run. Example: ``Precision.of(parse(["--dtype=bf16"]).precision).train is torch.bfloat16``."""

    train: torch.dtype
    """the learner's"""
    sample: torch.dtype
    """the sampler's"""
    options: PrecisionOptions

    @classmethod
    def of(cls, options: PrecisionOptions) -> "Precision":
        return cls(TORCH_DTYPES[options.train_dtype], TORCH_DTYPES[options.sample_dtype], options)

    def deepspeed_sections(self) -> dict:
        """The part of DeepSpeed's configuration that is about dtypes."""
        scaling = {name: getattr(self.options, name) for name in LOSS_SCALING}
        return {
            "bf16": {"enabled": self.train == torch.bfloat16},
            "fp16": {"enabled": self.train == torch.float16} | scaling,
            "data_types": {"grad_accum_dtype": "fp32"},
            "communication_data_type": "fp32",
        }
