"""PPO's clipped surrogate and its kin, in pi / pi_old, some times a weight pi_old / mu."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from learners.objectives.batch import PolicyBatch, Statistics, finite_exp, objective
from learners.objectives.weights import importance_weight, limits_of

if TYPE_CHECKING:
    from torch import Tensor


def clipped_surrogate(
    ratio: Tensor, advantages: Tensor, clip_low: float, clip_high: float, dual_clip: float = 0.0
) -> tuple[Tensor, Statistics]:
    """The pessimistic of the surrogate -A r and its clipped form, per token, and where the clipped one was taken.

    Args:
        ratio: (B, T), carries the gradient.
        advantages: (B, 1).
        clip_low, clip_high: the ratio is clipped to [1 - clip_low, 1 + clip_high].
        dual_clip: where A < 0 the loss is at most -A dual_clip (arXiv 1912.09729); 0 leaves that out.
    """
    plain = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - clip_low, 1 + clip_high)
    loss = plain.maximum(clipped)
    statistics = {"ratio": ratio.detach(), "clip_fraction": (clipped > plain).double()}
    if dual_clip:
        bound = -advantages * dual_clip
        above = (advantages < 0) & (loss > bound)
        loss = bound.expand_as(loss).where(above, loss)
        statistics["dual_clip_fraction"] = above.double()
    return loss, statistics


SURROGATE = {"clip_low": 0.2, "clip_high": 0.2, "dual_clip": 0.0}


@objective("grpo", needs_pi_old=True, **SURROGATE)
def grpo(batch: PolicyBatch, **clips: float) -> tuple[Tensor, Statistics]:
    """max(-A r, -A clip(r, 1 - clip_low, 1 + clip_high)) with r = pi / pi_old: PPO's clipped surrogate
    (arXiv 1707.06347), as GRPO uses it (arXiv 2402.03300)."""
    return clipped_surrogate(batch.ratio, batch.advantages[:, None], **clips)


@objective("grpo-bypass", **SURROGATE)
def grpo_bypass(batch: PolicyBatch, **clips: float) -> tuple[Tensor, Statistics]:
    """GRPO's loss with mu for pi_old: the clip sees pi / mu, and so the difference between both engines (the bypass
    modes of verl and slime)."""
    ratio = finite_exp(batch.inside(batch.logp - batch.mu_logp))
    return clipped_surrogate(ratio, batch.advantages[:, None], **clips)


def weighted_grpo(batch: PolicyBatch, level: str, **thresholds: float) -> tuple[Tensor, Statistics]:
    """GRPO's loss times rho = pi_old / mu of the level, limited."""
    limits = limits_of(thresholds)
    loss, statistics = grpo(batch, **{name: value for name, value in thresholds.items() if name not in limits})
    log_weight = batch.log_ratio(batch.old_logp, batch.mu_logp, level)
    weight, weight_statistics = importance_weight(level, log_weight, **limits)
    return weight * loss, statistics | weight_statistics


# With rho_t = pi_old / mu of the token and rho = prod_t rho_t:
for name, level, limits in (
    ("grpo-token-tis", "token", {"tis_cap": 2.0}),  # min(rho_t, C) (Yao et al., 2025)
    ("grpo-seq-tis", "sequence", {"tis_cap": 2.0}),  # min(rho, C)
    ("grpo-seq-mis", "sequence", {"mis_cap": 10.0}),  # rho 1{rho <= C} ("When Speed Kills Stability", 2025)
    # rho_t where low <= rho_t <= high, and 0 elsewhere (IcePop, Ling team, 2025)
    ("icepop", "token", {"icepop_low": 0.5, "icepop_high": 5.0}),
):
    register = objective(name, needs_pi_old=True, weighs=level, log_weight_clamp=0.0, **limits, **SURROGATE)
    register(partial(weighted_grpo, level=level))


def sequence_surrogate(batch: PolicyBatch, base_logp: Tensor, **clips: float) -> tuple[Tensor, Statistics]:
    """The clipped surrogate in the sequence's ratio s = exp(mean_t(log pi - base)), which each token carries as
    sg(s) pi / sg(pi) (GSPO-token, arXiv 2507.18071)."""
    mean_log_ratio = batch.mean((batch.logp - base_logp).detach())
    own = batch.inside(batch.logp - batch.logp.detach()).exp()  # 1, with the gradient of log pi
    return clipped_surrogate(finite_exp(mean_log_ratio) * own, batch.advantages[:, None], **clips)


@objective("gspo", needs_pi_old=True, clip_low=3e-4, clip_high=4e-4)
def gspo(batch: PolicyBatch, **clips: float) -> tuple[Tensor, Statistics]:
    """The sequence's surrogate in pi / pi_old (arXiv 2507.18071)."""
    return sequence_surrogate(batch, batch.old_logp, **clips)


@objective("gspo-bypass", clip_low=3e-4, clip_high=4e-4)
def gspo_bypass(batch: PolicyBatch, **clips: float) -> tuple[Tensor, Statistics]:
    """GSPO's loss with mu for pi_old, as `grpo-bypass`."""
    return sequence_surrogate(batch, batch.mu_logp, **clips)


@objective("gmpo", needs_pi_old=True, clip_low=0.4, clip_high=0.4)
def gmpo(batch: PolicyBatch, clip_low: float, clip_high: float) -> tuple[Tensor, Statistics]:
    """-A exp(mean_t of clipped log r) with r = pi / pi_old: the geometric mean of the ratios, log r being clipped to
    [-clip_low, clip_high] where A wants to push it further (GMPO, arXiv 2507.20673)."""
    advantages = batch.advantages[:, None]
    log_ratio = batch.inside(batch.logp - batch.old_logp)
    clipped = log_ratio.clamp(-clip_low, clip_high)
    used = log_ratio.minimum(clipped).where(advantages >= 0, log_ratio.maximum(clipped))
    statistics = {"ratio": log_ratio.detach().exp(), "clip_fraction": (used != log_ratio).double()}
    return (-advantages * batch.mean(used).exp()).expand_as(log_ratio), statistics


@objective("sapo", needs_pi_old=True, sapo_tau_positive=1.0, sapo_tau_negative=1.05)
def sapo(batch: PolicyBatch, sapo_tau_positive: float, sapo_tau_negative: float) -> tuple[Tensor, Statistics]:
    """-A (4 / tau) sigmoid(tau (r - 1)) with r = pi / pi_old and tau by the sign of A: a gate in place of the clip,
    whose slope is 1 at r = 1 and fades both ways (SAPO, arXiv 2511.20347)."""
    advantages, ratio = batch.advantages[:, None], batch.ratio
    positive = (advantages > 0).to(ratio)
    tau = sapo_tau_positive * positive + sapo_tau_negative * (1 - positive)
    gate = (tau * (ratio.detach() - 1)).sigmoid()
    soft = (tau * (ratio - 1)).sigmoid() * 4 / tau
    return -advantages * soft, {"ratio": ratio.detach(), "gate": 4 * gate * (1 - gate)}


@objective("cispo", needs_pi_old=True, clip_low=1.0, clip_high=4.0)
def cispo(batch: PolicyBatch, clip_low: float, clip_high: float) -> tuple[Tensor, Statistics]:
    """-sg(clip(r, 1 - clip_low, 1 + clip_high)) A log pi with r = pi / pi_old: the weight is clipped and no token is
    dropped (MiniMax-M1, arXiv 2506.13585; the upper end at 5 as in ScaleRL, arXiv 2510.13786; none below)."""
    ratio = batch.ratio.detach()
    weight = ratio.clamp(1 - clip_low, 1 + clip_high)
    return -weight * batch.gain, {"ratio": ratio, "clip_fraction": (weight != ratio).double()}
