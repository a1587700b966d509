"""How far the sampler's probabilities mu are from the trainer's pi, on the tokens that were sampled.

Both engines hold the same weights, so with exact arithmetic every number here would be 0 (a weight, a ratio, a
correlation or an effective sample size would be 1). `measure` adds a batch's moments to a tally, in FP64 from unclamped
FP32 log-probabilities; they add up over micro-batches and processes, and `derive` turns their means into the metrics.
docs/metrics.md has the formulas in one table.
"""

import math

from torch import Tensor

from learners.record.tally import Tally

PREFIX = "mismatch/"
MOMENT = "moment/"  # names of the tally that are material for `derive`, not metrics


def measure(tally: Tally, logp: Tensor, mu_logp: Tensor, mask: Tensor) -> None:
    """Add a batch of whole responses to the mismatch statistics of a step.

    Args:
        tally: what it is added to.
        logp: (B, T) FP32, log pi at the weights that mu sampled with; no gradient is kept.
        mu_logp: (B, T) FP32, log mu as the sampler reported it.
        mask: (B, T) bool, response tokens; every response has at least one.
    """
    log_pi, log_mu = logp.detach().double(), mu_logp.double()
    sequence_log_ratio, lengths = (log_pi - log_mu).where(mask, 0.0).sum(1), mask.sum(1).double()
    log_pi, log_mu = log_pi[mask], log_mu[mask]
    pi, mu, log_ratio = log_pi.exp(), log_mu.exp(), log_pi - log_mu
    ratio, difference, weight = log_ratio.exp(), pi - mu, sequence_log_ratio.exp()
    for name, values in {
        "abs_prob_diff_mean": difference.abs(),
        "abs_log_ratio_mean": log_ratio.abs(),
        "kl_k1": -log_ratio,
        "kl_k3": log_ratio.expm1() - log_ratio,
        "reverse_kl_k1": ratio * log_ratio,
        "reverse_kl_k3": ratio * log_ratio - log_ratio.expm1(),
        "ppl_ratio": (-sequence_log_ratio / lengths.clamp(min=1)).exp(),
        "seq_log_ratio_mean": sequence_log_ratio,
    }.items():
        tally.add(PREFIX + name, values)
    for name, values in {
        "abs_prob_diff_max": difference.abs(),
        "prob_diff_max": difference,
        "abs_log_ratio_max": log_ratio.abs(),
    }.items():
        tally.maximum(PREFIX + name, values)
    tally.minimum(PREFIX + "prob_diff_min", difference)
    for name, values in {
        "weight": ratio, "weight^2": ratio**2,
        "pi": pi, "mu": mu, "pi^2": pi**2, "mu^2": mu**2, "pi mu": pi * mu,
        "seq log_ratio^2": sequence_log_ratio**2, "seq weight": weight, "seq weight^2": weight**2,
        "length": lengths, "length^2": lengths**2, "length log_ratio": lengths * sequence_log_ratio,
    }.items():  # fmt: skip
        tally.add(MOMENT + name, values)


def derive(means: dict[str, float]) -> dict[str, float]:
    """The metrics of a step: what the tally gives, without the moments, and with the metrics that are functions of
    them."""
    metrics = {name: value for name, value in means.items() if not name.startswith(MOMENT)}
    if PREFIX + "seq_log_ratio_mean" not in means:
        return metrics
    m = {name.removeprefix(MOMENT): value for name, value in means.items() if name.startswith(MOMENT)}
    mean_log_ratio = means[PREFIX + "seq_log_ratio_mean"]
    length_variance = m["length^2"] - m["length"] ** 2
    derived = {
        "chi2_token": m["weight^2"] - 1,
        "chi2_seq": m["seq weight^2"] - 1,
        "ess_token": _divide(m["weight"] ** 2, m["weight^2"]),
        "ess_seq": _divide(m["seq weight"] ** 2, m["seq weight^2"]),
        "pearson": _divide(
            m["pi mu"] - m["pi"] * m["mu"], _root(m["pi^2"] - m["pi"] ** 2) * _root(m["mu^2"] - m["mu"] ** 2)
        ),
        "seq_log_ratio_std": _root(m["seq log_ratio^2"] - mean_log_ratio**2),
        "seq_log_ratio_slope": 1000 * _divide(m["length log_ratio"] - m["length"] * mean_log_ratio, length_variance),
    }
    return metrics | {PREFIX + name: value for name, value in derived.items()}


def _root(variance: float) -> float:
    return math.sqrt(max(variance, 0.0))  # rounding may leave a variance of 0 a little below it


def _divide(top: float, bottom: float) -> float:
    return top / bottom if bottom > 0 and math.isfinite(bottom) else math.nan
