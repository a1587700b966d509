"""A step's transitions as tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from oat.types import TransitionData


@dataclass
class RolloutBatch:
    """B responses, right-padded to L tokens of prompt and response together.

    Position t of a (B, L - 1) tensor is about predicting token t + 1. Example: a prompt of 2 tokens with a response of
    3 fills 5 places, and its ``response_mask`` is ``[0, 1, 1, 1]``.
    """

    input_ids: Tensor
    """(B, L) int64"""
    attention_mask: Tensor
    """(B, L) int64, 1 on tokens"""
    response_mask: Tensor
    """(B, L - 1) bool"""
    mu_logp: Tensor
    """(B, L - 1) FP32, what the sampler reported; 0 outside the response"""
    rewards: Tensor
    """(B,) FP32"""
    kept: Tensor
    """(B,) bool, False for responses that are left out of the loss"""
    advantages: Tensor | None = None
    """(B,) FP32; what stands below is added by the learner"""
    old_logp: Tensor | None = None
    """(B, L - 1) FP32, log pi_old"""
    reference_logp: Tensor | None = None
    """(B, L - 1) FP32, the reference model's"""

    @classmethod
    def from_transitions(cls, transitions: Sequence[TransitionData]) -> RolloutBatch:
        """Pad and stack, on the CPU; the padding token is 0, and never read."""
        rows = [list(t.prompt_ids) + list(t.response_ids) for t in transitions]
        size, length = len(rows), max(map(len, rows))
        input_ids = torch.zeros(size, length, dtype=torch.long)
        attention_mask = torch.zeros(size, length, dtype=torch.long)
        response_mask = torch.zeros(size, length - 1, dtype=torch.bool)
        mu_logp = torch.zeros(size, length - 1, dtype=torch.float32)
        for i, (row, t) in enumerate(zip(rows, transitions, strict=True)):
            response = slice(len(t.prompt_ids) - 1, len(row) - 1)
            input_ids[i, : len(row)] = torch.tensor(row)
            attention_mask[i, : len(row)] = 1
            response_mask[i, response] = True
            mu_logp[i, response] = torch.tensor(t.response_logprobs, dtype=torch.float32)
        return cls(
            input_ids=input_ids,
            attention_mask=attention_mask,
            response_mask=response_mask,
            mu_logp=mu_logp,
            rewards=torch.tensor([sum(t.rewards) for t in transitions], dtype=torch.float32),
            kept=torch.tensor([bool(t.loss_mask) for t in transitions]),
        )

    @classmethod
    def concatenate(cls, parts: Sequence[RolloutBatch]) -> RolloutBatch:
        """One batch of several, padded to the longest."""
        width = max(part.input_ids.shape[1] for part in parts)
        return cls(
            **{
                name: torch.cat([_widen(part.tensors()[name], width - part.input_ids.shape[1]) for part in parts])
                for name in parts[0].tensors()
            }
        )

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def lengths(self) -> Tensor:
        """(B,) tokens of each response with its prompt."""
        return self.attention_mask.sum(1)

    def tensors(self) -> dict[str, Tensor]:
        """By name, those that are there."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: tensor for name, tensor in values.items() if tensor is not None}

    def select(self, indices: Tensor) -> RolloutBatch:
        """The responses at ``indices``, without the padding that only the others needed."""
        length, full = int(self.lengths[indices].max()), self.input_ids.shape[1]
        parts = {}
        for name, tensor in self.tensors().items():
            values = tensor[indices]
            parts[name] = values if values.dim() == 1 else values[:, : length - (full - values.shape[1])]
        return RolloutBatch(**parts)

    def to(self, device: torch.device) -> RolloutBatch:
        return RolloutBatch(**{name: tensor.to(device) for name, tensor in self.tensors().items()})


def _widen(tensor: Tensor, by: int) -> Tensor:
    return tensor if tensor.dim() == 1 else torch.nn.functional.pad(tensor, (0, by))
