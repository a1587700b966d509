"""Policy gradients: ``-weight A log pi``, whose weight corrects for mu."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from learners.objectives.batch import PolicyBatch, Statistics, objective
from learners.objectives.weights import importance_weight

if TYPE_CHECKING:
    from torch import Tensor


@objective("reinforce")
def reinforce(batch: PolicyBatch) -> tuple[Tensor, Statistics]:
    """-A log pi: as if mu were pi."""
    return -batch.gain, {}


def weighted_gain(batch: PolicyBatch, level: str, **limits: float) -> tuple[Tensor, Statistics]:
    """-w A log pi with w = pi / mu of the level."""
    log_weight = batch.log_ratio(batch.logp, batch.mu_logp, level)
    weight, statistics = importance_weight(level, log_weight, **limits)
    # An infinite weight ends the run, but not where the advantage is 0: nothing is to be weighed there.
    weight = weight.where(batch.advantages[:, None] != 0, weight.new_zeros(()))
    return -weight * batch.gain, statistics


# With w = prod_t pi / mu and w_t = pi / mu of the token alone; w A log pi is the unbiased policy gradient of pi from
# samples of mu.
for name, level, limits in (
    ("pg-seq-is", "sequence", {}),  # w
    ("pg-seq-tis", "sequence", {"tis_cap": 3.0}),  # min(w, C)
    ("pg-seq-mis", "sequence", {"mis_cap": 3.0}),  # w 1{w <= C}
    ("pg-token-is", "token", {}),  # w_t
    ("pg-token-tis", "token", {"tis_cap": 2.0}),  # min(w_t, C)
):
    objective(name, weighs=level, log_weight_clamp=0.0, **limits)(partial(weighted_gain, level=level))


# ------------------------------------------------------------------------------------------------ a smooth weight


@objective("vespo", vespo_k_positive=2.0, vespo_lambda_positive=3.0, vespo_k_negative=3.0, vespo_lambda_negative=2.0)
def vespo(
    batch: PolicyBatch,
    vespo_k_positive: float,
    vespo_lambda_positive: float,
    vespo_k_negative: float,
    vespo_lambda_negative: float,
) -> tuple[Tensor, Statistics]:
    """-phi(w) A log pi with phi(w) = w^k exp(lambda (1 - w)) and w = prod_t pi / mu: 1 at w = 1, largest (1.2) at
    k / lambda and falling to 0 both ways; k and lambda by the sign of A (VESPO, arXiv 2602.10693)."""
    log_weight = batch.log_ratio(batch.logp, batch.mu_logp, "sequence")
    positive = (batch.advantages[:, None] >= 0).to(log_weight)
    k = vespo_k_positive * positive + vespo_k_negative * (1 - positive)
    lam = vespo_lambda_positive * positive + vespo_lambda_negative * (1 - positive)
    weight = log_weight.exp()
    phi = (k * log_weight + lam * (1 - weight)).exp()
    return -phi * batch.gain, {"sequence_weight": weight, "phi": phi}
