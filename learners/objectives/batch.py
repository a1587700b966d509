"""What a loss sees, and the register of losses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

Statistics = dict[str, "Tensor"]


@dataclass
class PolicyBatch:
    """What an objective or a rejection sees: right-padded responses.

    Example: two responses of 2 and 1 tokens have ``mask = [[1, 1], [0, 1]]`` or any other layout; what is not in the
    mask is never read.
    """

    logp: Tensor
    """(B, T) FP32, log pi of the sampled tokens; an objective's carries the gradient"""
    mu_logp: Tensor
    """(B, T) FP32, log mu"""
    advantages: Tensor
    """(B,) FP32"""
    mask: Tensor
    """(B, T) bool, the response's tokens"""
    old_logp: Tensor | None = None
    """(B, T) FP32, log pi_old; None unless the objective needs it"""

    def inside(self, values: Tensor) -> Tensor:
        """(B, T): the values, 0 outside the mask, whatever stood there."""
        return values.where(self.mask, values.new_zeros(()))

    def log_ratio(self, numerator: Tensor, denominator: Tensor, level: str) -> Tensor:
        """The difference of two log-probabilities, detached: (B, T) of each "token", 0 outside the mask, or (B, 1)
        summed over each "sequence"."""
        difference = self.inside((numerator - denominator).detach())
        return difference.sum(1, keepdim=True) if level == "sequence" else difference

    @property
    def log_weight(self) -> Tensor:
        """(B, T): log pi - log mu, detached; 0 outside the mask."""
        return self.log_ratio(self.logp, self.mu_logp, "token")

    def mean(self, values: Tensor) -> Tensor:
        """(B, 1): over a response's tokens; 0 for a response without any."""
        return self.inside(values).sum(1, keepdim=True) / self.mask.sum(1, keepdim=True).clamp(min=1)

    def all(self, fine: Tensor) -> Tensor:
        """(B, 1): whether it is so of all of a response's tokens."""
        return (fine | ~self.mask).all(1, keepdim=True)

    @property
    def gain(self) -> Tensor:
        """(B, T): A log pi, what every policy gradient differentiates; 0 outside the mask."""
        return self.advantages[:, None] * self.inside(self.logp)

    @property
    def ratio(self) -> Tensor:
        """(B, T): pi / pi_old, carrying the gradient; 1 outside the mask."""
        return finite_exp(self.inside(self.logp - self.old_logp))


@dataclass(frozen=True)
class Registered:
    """``function(batch, **thresholds)``, chosen by name."""

    name: str
    function: Callable
    thresholds: dict[str, float]
    """names and default values"""

    def __call__(self, batch: PolicyBatch, **thresholds: float):
        assert set(thresholds) <= set(self.thresholds), (self.name, thresholds)
        return self.function(batch, **{**self.thresholds, **thresholds})


@dataclass(frozen=True)
class Objective(Registered):
    """A loss, ``batch -> (loss (B, T), statistics)``. A statistic is a (B, T) tensor, averaged over tokens, or a (B, 1)
    tensor, averaged over responses."""

    needs_pi_old: bool = False
    weighs: str | None = None
    """ "token" or "sequence" where its loss is a multiple of such an importance weight"""
    penalties: tuple[str, ...] = ()
    """thresholds that, unless 0, add a term without the advantage"""

    def trains_without_advantage(self, **thresholds: float) -> bool:
        """Whether a response whose advantage is 0 can have a gradient."""
        return any(thresholds.get(name, self.thresholds[name]) for name in self.penalties)


OBJECTIVES: dict[str, Objective] = {}


def objective(
    name: str,
    needs_pi_old: bool = False,
    weighs: str | None = None,
    penalties: tuple[str, ...] = (),
    **thresholds: float,
):
    """Register a loss under its command-line name, with the defaults of the thresholds it uses."""

    def register(function):
        OBJECTIVES[name] = Objective(name, function, thresholds, needs_pi_old, weighs, penalties)
        return function

    return register


def finite_exp(log_ratio: Tensor) -> Tensor:
    """exp, but e^88 above that, with that slope. FP32 ends at e^88.7, and an infinite ratio that a clip leaves out of
    the loss would be 0 x inf in its backward pass."""
    return (log_ratio - (log_ratio.detach() - 88.0).clamp(min=0.0)).exp()
