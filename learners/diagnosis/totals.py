"""Sums over every token of a dump, response by response, in one pass over chunks."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

CHUNK_TOKENS = 2**21
MOST_LISTED = 20
STEEPEST = 60.0  # of a log ratio, before its exponential is taken


@dataclass
class Totals:
    """(N,) float64 each, over the tokens of which both log-probabilities are finite."""

    tokens: np.ndarray
    """how many these are"""
    gap: np.ndarray
    """sum of g = log pi - log mu"""
    gap_squared: np.ndarray
    excess: np.ndarray
    """sum of w - 1, w = e^g"""
    worst_tokens: list[tuple[float, int]]
    """(|g|, index) of the tokens with the largest"""
    not_finite: dict[str, int]
    """tokens, by what is found: "log_mu nan", "log_pi -inf" ..."""
    first_not_finite: dict[str, int]
    """index of the first such token"""
    above_zero: dict[str, int]
    """tokens whose log-probability is above what rounding allows, by side"""

    @property
    def k1(self) -> float:
        return -self.gap.sum() / max(self.tokens.sum(), 1.0)

    @property
    def k3(self) -> float:
        return (self.excess.sum() - self.gap.sum()) / max(self.tokens.sum(), 1.0)


def chunks(starts: np.ndarray, size: int = CHUNK_TOKENS) -> Iterator[tuple[int, int]]:
    """Ranges of responses that hold about ``size`` tokens each; a longer response goes alone."""
    first, count = 0, len(starts) - 1
    while first < count:
        last = int(np.searchsorted(starts, starts[first] + size, side="right")) - 1
        last = min(max(last, first + 1), count)
        yield first, last
        first = last


def sum_by_response(values: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """(N,) float64 sums of ``values[starts[i]:starts[i + 1]]``; 0 where a response is empty."""
    lengths = np.diff(starts)
    made = np.zeros(len(lengths))
    filled = lengths > 0
    if filled.any():
        made[filled] = np.add.reduceat(values, starts[:-1][filled], dtype=np.float64)
    return made


def add_up(starts: np.ndarray, log_mu: np.ndarray, log_pi: np.ndarray) -> Totals:
    """One pass over all tokens, at most some 40 MB beside them."""
    count = len(starts) - 1
    made = Totals(*(np.zeros(count) for _ in range(4)), [], {}, {}, {"log_mu": 0, "log_pi": 0})
    for first, last in chunks(starts):
        begin, end = int(starts[first]), int(starts[last])
        mu, pi = log_mu[begin:end], log_pi[begin:end]
        with np.errstate(invalid="ignore", over="ignore"):
            gap = pi - mu
            bad = ~np.isfinite(gap)
        if bad.any():
            _count_not_finite(made, mu, pi, begin)
            gap = np.where(bad, np.float32(0), gap)
        for side, values in (("log_mu", mu), ("log_pi", pi)):
            made.above_zero[side] += int(np.count_nonzero(values > 1e-3))
        own = starts[first : last + 1] - begin
        rows = slice(first, last)
        made.gap[rows] = sum_by_response(gap, own)
        made.tokens[rows] = np.diff(own) if not bad.any() else sum_by_response(~bad, own)
        made.gap_squared[rows] = sum_by_response(np.square(gap, dtype=np.float64), own)
        made.excess[rows] = sum_by_response(np.expm1(np.clip(gap, -STEEPEST, STEEPEST)), own)
        size = np.abs(gap)
        most = min(MOST_LISTED, len(size))
        if most:
            top = np.argpartition(size, len(size) - most)[-most:]
            found = made.worst_tokens + [(float(size[i]), begin + int(i)) for i in top]
            made.worst_tokens = sorted(found, reverse=True)[:MOST_LISTED]
    return made


def _count_not_finite(made: Totals, mu: np.ndarray, pi: np.ndarray, begin: int) -> None:
    for side, values in (("log_mu", mu), ("log_pi", pi)):
        for name, flags in (("nan", np.isnan(values)), ("-inf", np.isneginf(values)), ("inf", np.isposinf(values))):
            found = int(np.count_nonzero(flags))
            if found:
                key = f"{side} {name}"
                made.not_finite[key] = made.not_finite.get(key, 0) + found
                made.first_not_finite.setdefault(key, begin + int(np.argmax(flags)))
