"""The policy losses, each a pure function of tensors, chosen by name.

Shapes: B responses, T token positions. pi is the trainer now, mu the sampler (its own log-probabilities, reported when
it sampled), pi_old the trainer re-evaluated at the rollout weights. Every importance weight is detached. A loss is
given per token, to be minimised; `aggregate` reduces it with a denominator that the caller counted beforehand, so that
micro-batches and processes add up to the gradient of the whole batch.

An objective is registered with the thresholds it uses and whether it needs pi_old, which costs one more forward pass.
Only tensor methods are used, so that naming the objectives (for ``--help``) does not import torch.

Formulas: "Defeating the Training-Inference Mismatch via FP16" (arXiv 2510.26788) and the references beside each.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class PolicyBatch:
    """What an objective sees: right-padded responses.

    Example: two responses of 2 and 1 tokens have ``mask = [[1, 1], [0, 1]]`` or any other layout; what is not in the
    mask is never read.
    """

    logp: Tensor
    """(B, T) FP32, log pi of the sampled tokens; carries the gradient"""
    mu_logp: Tensor
    """(B, T) FP32, log mu"""
    advantages: Tensor
    """(B,) FP32"""
    mask: Tensor
    """(B, T) bool, the response's tokens"""
    old_logp: Tensor | None = None
    """(B, T) FP32, log pi_old; None unless the objective needs it"""

    def sequence_sum(self, values: Tensor) -> Tensor:
        """(B, T) -> (B, 1): sum over each response's own tokens."""
        return values.where(self.mask, values.new_zeros(())).sum(1, keepdim=True)

    def log_ratio(self, numerator: Tensor, denominator: Tensor) -> Tensor:
        """(B, T): the difference of two log-probabilities, detached; 0 outside the mask."""
        difference = (numerator - denominator).detach()
        return difference.where(self.mask, difference.new_zeros(()))

    @property
    def gain(self) -> Tensor:
        """(B, T): A log pi, what every policy gradient differentiates; 0 outside the mask."""
        logp = self.logp.where(self.mask, self.logp.new_zeros(()))
        return self.advantages[:, None] * logp


@dataclass(frozen=True)
class Objective:
    """A registered loss: ``function(batch, **thresholds) -> (loss (B, T), statistics)``.

    A statistic is a (B, T) tensor, averaged over tokens, or a (B, 1) tensor, averaged over responses.
    """

    name: str
    function: Callable
    needs_pi_old: bool
    thresholds: dict[str, float]

    def __call__(self, batch: PolicyBatch, **thresholds: float) -> tuple[Tensor, dict[str, Tensor]]:
        assert set(thresholds) <= set(self.thresholds), (self.name, thresholds)
        return self.function(batch, **{**self.thresholds, **thresholds})


OBJECTIVES: dict[str, Objective] = {}


def objective(name: str, needs_pi_old: bool = False, **thresholds: float):
    """Register a loss under its command-line name, with the defaults of the thresholds it uses."""

    def register(function):
        OBJECTIVES[name] = Objective(name, function, needs_pi_old, thresholds)
        return function

    return register


@objective("pg-seq-is")
def pg_seq_is(batch: PolicyBatch) -> tuple[Tensor, dict[str, Tensor]]:
    """-w A log pi with w = prod_t pi / mu: the unbiased policy gradient of pi from samples of mu."""
    weight = batch.sequence_sum(batch.log_ratio(batch.logp, batch.mu_logp)).exp()
    return -weight * batch.gain, {"sequence_weight": weight}


@objective("grpo", needs_pi_old=True, clip_low=0.2, clip_high=0.2)
def grpo(batch: PolicyBatch, clip_low: float, clip_high: float) -> tuple[Tensor, dict[str, Tensor]]:
    """max(-A r, -A clip(r, 1 - clip_low, 1 + clip_high)) with r = pi / pi_old: PPO's clipped surrogate
    (arXiv 1707.06347), as GRPO uses it (arXiv 2402.03300)."""
    difference = batch.logp - batch.old_logp
    ratio = difference.where(batch.mask, difference.new_zeros(())).exp()
    return clipped_surrogate(ratio, batch.advantages[:, None], clip_low, clip_high)


def clipped_surrogate(ratio: Tensor, advantages: Tensor, low: float, high: float) -> tuple[Tensor, dict[str, Tensor]]:
    """The pessimistic of the surrogate and its clipped form, per token, and where the clipped one was taken."""
    plain = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - low, 1 + high)
    return plain.maximum(clipped), {"clip_fraction": (clipped > plain).to(ratio.dtype)}


def aggregate(loss: Tensor, mask: Tensor, kept: Tensor, denominator: float) -> Tensor:
    """Sum a per-token loss over the responses that are kept, and divide by what the whole update counts.

    With denominator = (responses of the update) x (generate_max_length) this is Dr.GRPO's length normalisation
    (arXiv 2503.20783): a token weighs the same in a short response as in a long one.

    Args:
        loss: (B, T) per token.
        mask: (B, T) bool.
        kept: (B,) bool, False for responses that are left out of the loss (they still count in the denominator).
        denominator: counted over the whole update, before any backward pass; the sum of this function over the
            micro-batches and processes of an update is then the loss of the update.

    Returns:
        A scalar that carries the gradient.
    """
    return loss.where(mask & kept[:, None], loss.new_zeros(())).sum() / denominator
