"""Rejections: which tokens or responses a loss does not see, because pi and mu differ too much there.

They combine with any objective and with one another: what one rejects is rejected, and each judges for itself. Each
compares mu with pi_old where pi_old is there, else with pi, but for those that are after how far pi has moved; and says
whether what it rejects stays in the denominators of the aggregation (the loss is 0 there) or leaves them (as if it had
not been sampled), as its source has it. What leaves must be known before the first backward pass of a step, and so must
what depends on other responses than its own: the learner then evaluates pi_old, one more forward pass. A weight or a
ratio of a response is of all its tokens, rejected ones too. Only tensor methods are used, as in the objectives.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from learners.objectives.batch import PolicyBatch, Registered
from learners.objectives.trust_regions import bernoulli_kl

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Rejection(Registered):
    """What is kept, ``batch -> bool``: (B, T) of each token, or (B, 1) of each response, as it is the one or the other
    that is rejected. What it says outside the mask is of no meaning. The batch's ``logp`` is log pi_old or log pi."""

    stays_counted: bool = True
    """whether what is rejected stays in the denominators"""
    needs_all: bool = False
    """whether it looks at all the responses of a step together"""
    sees_movement: bool = False
    """whether it compares mu with pi as it is now even where pi_old is there"""

    @property
    def needs_pi_old(self) -> bool:
        return self.needs_all or not self.stays_counted


REJECTIONS: dict[str, Rejection] = {}


def rejection(
    name: str, stays_counted: bool = True, needs_all: bool = False, sees_movement: bool = False, **thresholds: float
):
    """Register a rejection under its command-line name, with the defaults of the thresholds it uses."""

    def register(function):
        REJECTIONS[name] = Rejection(name, function, thresholds, stays_counted, needs_all, sees_movement)
        return function

    return register


# ------------------------------------------------------------------------------------------------ of responses


@rejection("geo", geo_low=0.999, geo_high=1.001)
def geo(batch: PolicyBatch, geo_low: float, geo_high: float) -> Tensor:
    """Keeps a response whose geometric mean weight, exp(mean_t log w), is within the band ("When Speed Kills
    Stability", 2025)."""
    mean_weight = batch.mean(batch.log_weight).exp()
    return (mean_weight >= geo_low) & (mean_weight <= geo_high)


@rejection("k3", k3_cap=0.01)
def k3(batch: PolicyBatch, k3_cap: float) -> Tensor:
    """Keeps a response whose mean of w - 1 - log w, an estimate of KL(mu, pi), is at most the cap."""
    return batch.mean(batch.log_weight.expm1() - batch.log_weight) <= k3_cap


@rejection("max-token", token_k2_cap=2.5)
def max_token(batch: PolicyBatch, token_k2_cap: float) -> Tensor:
    """Keeps a response none of whose tokens has a (log w)^2 / 2 above the cap (trust region masking, arXiv 2512.23075;
    the estimate and the cap are verl's)."""
    return batch.all(batch.log_weight.square() / 2 <= token_k2_cap)


@rejection("outlier", outlier_low=1e-4, outlier_high=100.0)
def outlier(batch: PolicyBatch, outlier_low: float, outlier_high: float) -> Tensor:
    """Keeps a response all of whose tokens' weights are within the bounds."""
    weight = batch.log_weight.exp()
    return batch.all((weight >= outlier_low) & (weight <= outlier_high))


@rejection("veto", veto_below=1e-4)
def veto(batch: PolicyBatch, veto_below: float) -> Tensor:
    """Keeps a response none of whose tokens has a weight below the bound."""
    return batch.all(batch.log_weight.exp() >= veto_below)


@rejection("opsm", sees_movement=True, opsm_delta=0.5)
def opsm(batch: PolicyBatch, opsm_delta: float) -> Tensor:
    """Rejects a response with a negative advantage and a mean of log mu - log pi above delta, pi being the policy as it
    is now (off-policy sequence masking, DeepSeek-V3.2, arXiv 2512.02556)."""
    away = batch.mean(-batch.log_weight) > opsm_delta
    return ~(away & (batch.advantages[:, None] < 0))


# ------------------------------------------------------------------------------------------------ of tokens


@rejection("icepop", icepop_low=0.5, icepop_high=5.0)
def icepop(batch: PolicyBatch, icepop_low: float, icepop_high: float) -> Tensor:
    """Keeps a token whose weight is within the band (IcePop, Ling team, 2025)."""
    weight = batch.log_weight.exp()
    return (weight >= icepop_low) & (weight <= icepop_high)


@rejection("kpop", kpop_cap=2.0)
def kpop(batch: PolicyBatch, kpop_cap: float) -> Tensor:
    """Keeps a token whose KL divergence between "this token or another" under mu and under pi is at most the cap, both
    ways."""
    log_pi, log_mu = map(batch.inside, (batch.logp, batch.mu_logp))
    return (bernoulli_kl(log_mu, log_pi) <= kpop_cap) & (bernoulli_kl(log_pi, log_mu) <= kpop_cap)


@rejection("m2po", stays_counted=False, needs_all=True, m2_cap=0.04)
def m2po(batch: PolicyBatch, m2_cap: float) -> Tensor:
    """Rejects the tokens with the largest (log w)^2, as few as it takes for the mean over the rest of a step's tokens
    to be at most the cap (M2PO, arXiv 2510.01161)."""
    squares = batch.log_weight.square()[batch.mask].double()
    ordered, places = squares.sort(stable=True)
    means = ordered.cumsum(0) / ordered.new_ones(ordered.shape).cumsum(0)  # of the smallest 1, 2, ...: never falling
    kept = (means <= m2_cap).new_zeros(squares.shape).scatter(0, places, means <= m2_cap)
    return batch.mask.masked_scatter(batch.mask, kept)
