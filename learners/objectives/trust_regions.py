"""Trust regions: DPPO's around mu, and the divergence from the initial model that ``--beta`` adds to any objective."""

from __future__ import annotations

from typing import TYPE_CHECKING

from learners.objectives.batch import PolicyBatch, Statistics, finite_exp, objective

if TYPE_CHECKING:
    from torch import Tensor


def masked_surrogate(batch: PolicyBatch, divergence: Tensor, delta: float, tau: float) -> tuple[Tensor, Statistics]:
    """-A r with r = pi / mu, without the tokens whose probability is more than ``delta`` away from mu's already and
    which the update would push further: up (A > 0, r > 1), or down (A < 0, r < 1); plus tau (log r)^2 of every token.
    arXiv 2602.04879; the penalty: arXiv 2602.02276.

    Args:
        divergence: (B, T), detached.
        delta: radius of the trust region.
        tau: weight of the penalty; 0 leaves it out.
    """
    advantages = batch.advantages[:, None]
    log_ratio = batch.inside(batch.logp - batch.mu_logp)
    ratio = finite_exp(log_ratio)
    pushed_away = ((advantages > 0) & (ratio > 1)) | ((advantages < 0) & (ratio < 1))
    dropped = pushed_away & (divergence > delta)
    loss = (-advantages * ratio).where(~dropped, ratio.new_zeros(()))
    if tau:
        loss = loss + tau * log_ratio.square()
    return loss, {"ratio": ratio.detach(), "masked_fraction": dropped.double()}


def bernoulli_kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p, q) between "this token or another" under both: p log(p / q) + (1 - p) log((1 - p) / (1 - q))."""
    p_others, q_others = (-log.expm1().clamp(max=-1e-12) for log in (log_p, log_q))  # 1 - p, exact near p = 1
    return log_p.exp() * (log_p - log_q) + p_others * (p_others.log() - q_others.log())


@objective("dppo-tv", penalties=("dppo_tau",), dppo_delta=0.15, dppo_tau=0.0)
def dppo_tv(batch: PolicyBatch, dppo_delta: float, dppo_tau: float) -> tuple[Tensor, Statistics]:
    """DPPO with the total variation between "this token or another" under mu and under pi: |pi - mu|."""
    pi, mu = batch.inside(batch.logp.detach()).exp(), batch.inside(batch.mu_logp).exp()
    return masked_surrogate(batch, (pi - mu).abs(), dppo_delta, dppo_tau)


@objective("dppo-kl", penalties=("dppo_tau",), dppo_delta=0.05, dppo_tau=0.0)
def dppo_kl(batch: PolicyBatch, dppo_delta: float, dppo_tau: float) -> tuple[Tensor, Statistics]:
    """DPPO with the KL divergence between "this token or another" under mu and under pi:
    mu log(mu / pi) + (1 - mu) log((1 - mu) / (1 - pi))."""
    log_pi, log_mu = batch.inside(batch.logp.detach()), batch.inside(batch.mu_logp)
    return masked_surrogate(batch, bernoulli_kl(log_mu, log_pi), dppo_delta, dppo_tau)


def reference_kl(logp: Tensor, reference_logp: Tensor, mask: Tensor) -> Tensor:
    """(B, T): the k3 estimate of KL(pi, reference) per token, e^d - 1 - d with d = log reference - log pi, carrying the
    gradient; d is kept within +-40, as in Oat. http://joschu.net/blog/kl-approx.html"""
    difference = reference_logp - logp
    difference = difference.where(mask, difference.new_zeros(())).clamp(-40.0, 40.0)
    return difference.expm1() - difference
