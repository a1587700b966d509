"""From losses per token to the loss of an update, so that micro-batches and processes add up to it exactly.

What a token weighs depends on counts over the whole update. They are counted first, over all processes, and each
micro-batch then sums its own tokens' weighted losses; nothing is averaged in parts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

Aggregation = Literal["token-sum-constant", "token-mean-sequence", "token-mean-batch"]


@dataclass(frozen=True)
class UpdateCounts:
    """What an update consists of, over all processes."""

    sequences: float
    """responses, those left out of the loss included"""
    kept_sequences: float
    """responses in the loss"""
    kept_tokens: float
    """response tokens in the loss"""
    max_length: int
    """generate_max_length, tokens"""


def aggregate(loss: Tensor, mask: Tensor, kept: Tensor, aggregation: Aggregation, counts: UpdateCounts) -> Tensor:
    """This micro-batch's part of the update's loss: sum over its tokens of weight x loss.

    - token-sum-constant: 1 / (sequences x max_length). A token weighs the same in a short response as in a long one
      (Dr.GRPO, arXiv 2503.20783).
    - token-mean-sequence: 1 / (kept_sequences x length of its response). Every response weighs the same (GRPO).
    - token-mean-batch: 1 / kept_tokens. Every token weighs the same, and so does every update (DAPO, arXiv 2503.14476).

    Args:
        loss: (B, T) per token; what lies outside the mask is never read.
        mask: (B, T) bool.
        kept: (B,) bool, False for responses that are left out of the loss.
        aggregation: one of the three.
        counts: of the whole update; a denominator of 0 (nothing is kept) gives 0.

    Returns:
        A scalar that carries the gradient.
    """
    used = mask & kept[:, None]
    loss = loss.where(used, loss.new_zeros(()))
    if aggregation == "token-mean-sequence":
        loss = loss / mask.sum(1, keepdim=True).clamp(min=1)
    denominator = {
        "token-sum-constant": counts.sequences * counts.max_length,
        "token-mean-sequence": counts.kept_sequences,
        "token-mean-batch": counts.kept_tokens,
    }[aggregation]
    return loss.sum() / max(denominator, 1)
