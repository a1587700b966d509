"""A step's transitions as tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from oat.types import TransitionData


class Packed(NamedTuple):
    """N responses as they pass between processes: no padding, ids in 32 bits."""

    ids: Tensor
    """int32, each response's prompt and tokens, one response after the other"""
    prompt_lengths: Tensor
    """(N,) int64"""
    response_lengths: Tensor
    """(N,) int64"""
    mu_logp: Tensor
    """FP32, of the response tokens alone, what the sampler reported"""
    rewards: Tensor
    """(N,) FP32"""
    kept: Tensor
    """(N,) bool"""

    @classmethod
    def of(cls, transitions: Sequence[TransitionData]) -> Packed:
        """Take from Oat's transitions what is learned from; there may be none."""
        ids = chain.from_iterable(chain(t.prompt_ids, t.response_ids) for t in transitions)
        mu_logp = chain.from_iterable(t.response_logprobs for t in transitions)
        return cls(
            ids=torch.from_numpy(np.fromiter(ids, np.int32)),
            prompt_lengths=torch.tensor([len(t.prompt_ids) for t in transitions], dtype=torch.long),
            response_lengths=torch.tensor([len(t.response_ids) for t in transitions], dtype=torch.long),
            mu_logp=torch.from_numpy(np.fromiter(mu_logp, np.float32)),
            rewards=torch.tensor([sum(t.rewards) for t in transitions], dtype=torch.float32),
            kept=torch.tensor([bool(t.loss_mask) for t in transitions], dtype=torch.bool),
        )


@dataclass
class RolloutBatch:
    """B responses, right-padded to L tokens of prompt and response together.

    Position t of a (B, L - 1) tensor is about predicting token t + 1. Example: a prompt of 2 tokens with a response of
    3 fills 5 places, and its ``response_mask`` is ``[0, 1, 1, 1]``.
    """

    input_ids: Tensor
    """(B, L) int32; the padding token is 0, and never read"""
    lengths: Tensor
    """(B,) int64, tokens of each response with its prompt"""
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
    loss_mask: Tensor | None = None
    """(B, L - 1) bool, the response tokens that rejections left in the loss; None: all"""
    old_logp: Tensor | None = None
    """(B, L - 1) FP32, log pi_old"""
    reference_logp: Tensor | None = None
    """(B, L - 1) FP32, the reference model's"""

    @classmethod
    def unpack(cls, parts: Sequence[Packed]) -> RolloutBatch:
        """One batch of the responses of several processes, in their order; on the CPU, padded to the longest."""
        packed = Packed(*map(torch.cat, zip(*parts, strict=True)))
        lengths = packed.prompt_lengths + packed.response_lengths
        places = torch.arange(int(lengths.max()))
        tokens = places < lengths[:, None]
        response_mask = tokens[:, 1:] & (places[1:] >= packed.prompt_lengths[:, None])
        return cls(
            input_ids=torch.zeros(tokens.shape, dtype=torch.int32).masked_scatter_(tokens, packed.ids),
            lengths=lengths,
            response_mask=response_mask,
            mu_logp=torch.zeros(response_mask.shape).masked_scatter_(response_mask, packed.mu_logp),
            rewards=packed.rewards,
            kept=packed.kept,
        )

    @classmethod
    def from_transitions(cls, transitions: Sequence[TransitionData]) -> RolloutBatch:
        return cls.unpack([Packed.of(transitions)])

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def in_loss(self) -> Tensor:
        """(B, L - 1) bool: the tokens that the loss is made of."""
        left = self.response_mask if self.loss_mask is None else self.loss_mask
        return left & self.kept[:, None]

    def tensors(self) -> dict[str, Tensor]:
        """By name, those that are there."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: tensor for name, tensor in values.items() if tensor is not None}

    def select(self, indices: Tensor) -> RolloutBatch:
        """The responses at ``indices``, without the padding that only the others needed."""
        length, full = int(self.lengths[indices].max()) if len(indices) else 1, self.input_ids.shape[1]
        parts = {}
        for name, tensor in self.tensors().items():
            values = tensor[indices]
            parts[name] = values if values.dim() == 1 else values[:, : length - (full - values.shape[1])]
        return RolloutBatch(**parts)

    def to(self, device: torch.device) -> RolloutBatch:
        return RolloutBatch(**{name: tensor.to(device) for name, tensor in self.tensors().items()})
