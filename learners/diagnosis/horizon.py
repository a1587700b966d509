"""How long responses may be before importance weights leave half of the sample.

log W of a response of L tokens, the sum of its tokens' log ratios, is near normal with a variance of v L; weights that
are log-normal leave exp(-v L) of the sample (Kong 1992). A geometric weight has log W / L, a variance of v / L: there
it is the short responses that lose.
"""

import math

import numpy as np

from learners.diagnosis.totals import Totals

NORMAL = 1.96  # of a 95% interval


def horizon(totals: Totals) -> dict[str, float]:
    """``sequence_half``: above so many tokens half of the effective sample is gone, with its 95% interval;
    ``geometric_half``: below so many, for weights exp(mean log ratio); ``sequence_left``, ``geometric_left``: the
    share that is left of these responses, as they are. inf where there is no mismatch at all; empty for one response.
    """
    counted = totals.tokens > 0
    lengths, gap = totals.tokens[counted], totals.gap[counted]
    if len(gap) < 2:
        return {}
    square = (gap - gap.sum() / lengths.sum() * lengths) ** 2
    variance = square.sum() / lengths.sum()
    error = math.sqrt(((square - variance * lengths) ** 2).sum()) / lengths.sum()
    half = lambda value: math.log(2) / value if value > 0 else math.inf
    spread = math.exp(min(NORMAL * error / variance, 50.0)) if variance > 0 else 1.0
    return {
        "variance_per_token": variance,
        "sequence_half": half(variance),
        "sequence_half_low": half(variance * spread),
        "sequence_half_high": half(variance / spread),
        "geometric_half": variance / math.log(2),
        "geometric_half_low": variance / spread / math.log(2),
        "geometric_half_high": variance * spread / math.log(2),
        "sequence_left": left(gap),
        "geometric_left": left(gap / lengths),
        "mean_length": float(lengths.mean()),
    }


def left(log_weights: np.ndarray) -> float:
    """(sum W)^2 / (N sum W^2)."""
    weights = np.exp(log_weights - log_weights.max())
    return float(weights.sum() ** 2 / (len(weights) * (weights**2).sum()))
