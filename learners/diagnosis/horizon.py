"""How long may responses be before their importance weights are lost to rounding? From log pi and log mu alone.

With w = pi/mu of a whole response, the share of a sample that is left is Kish's (sum w)^2 / (N sum w^2). It is measured
on the first L tokens of the responses that have so many, and extrapolated: a sum of many small log ratios is close to
normal, w to log-normal, and the share left of log-normal weights is exp(-V), V(L) being the variance of the sum.

Functions of numpy arrays: what has log-probabilities of both engines for any responses, a run's or a file's, calls
`horizon_of` with all tokens in a row, response after response, and the index at which each begins.
"""

import math
from dataclasses import asdict, dataclass

import numpy as np

from learners.diagnosis.bootstrap import Interval, interval, resamples

LENGTHS = tuple(2**power for power in range(3, 16))  # 8 to 32,768 tokens
LAGS = 32  # tokens over which log ratios may depend on each other; of short responses, half of their mean length
FEWEST = 8  # responses of a length, for a measured share


@dataclass(frozen=True)
class Horizon:
    """What is left of a sample at each of some lengths; a list has an entry for each."""

    lengths: list[int]
    responses: list[int]
    """that are so long"""
    measured: list[Interval | None]
    """share left of weights of the first so many tokens; None where fewer than `FEWEST` responses have them"""
    measured_geometric: list[Interval | None]
    """the same of w^(1/L)"""
    extrapolated: list[Interval]
    """share left of log-normal weights"""
    extrapolated_geometric: list[Interval]
    half: Interval
    """the length at which half of the sample is gone, tokens; infinite where the variance does not grow"""
    variance: Interval
    """of a token's log ratio"""
    dependence: Interval
    """variance of a long sum over that of as many independent tokens: 1 if tokens do not depend on each other"""

    def to_dict(self) -> dict:
        """For JSON: a row for each length; what is infinite or missing becomes None."""
        columns = ("measured", "measured_geometric", "extrapolated", "extrapolated_geometric")
        rows = [
            {"length": length, "responses": count} | {name: plain(getattr(self, name)[i]) for name in columns}
            for i, (length, count) in enumerate(zip(self.lengths, self.responses, strict=True))
        ]
        return {"rows": rows} | {name: plain(getattr(self, name)) for name in ("half", "variance", "dependence")}


def plain(value: Interval | None) -> dict | None:
    return None if value is None else {k: x if math.isfinite(x) else None for k, x in asdict(value).items()}


def horizon_of(
    log_mu: np.ndarray,
    log_pi: np.ndarray,
    starts: np.ndarray,
    lengths: tuple[int, ...] = LENGTHS,
    replicates: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Horizon:
    """Everything, with bootstrap intervals over responses.

    Args:
        log_mu: (tokens,) of every response, one after the other.
        log_pi: (tokens,) the same from the trainer.
        starts: (responses,) where each begins; ascending, the first is 0, none is empty.
        lengths: to give shares at, tokens.
        replicates: bootstrap samples of the responses.
        confidence: of the intervals.
        seed: of the bootstrap.
    """
    log_ratio = np.asarray(log_pi, float) - np.asarray(log_mu, float)
    times = np.array([np.ones(len(starts)), *resamples(len(starts), replicates, seed)])  # the sample itself first
    lags = max(1, min(LAGS, len(log_ratio) // (2 * len(starts))))  # a lag that few pairs have would decide all
    products, counts = lagged_products(log_ratio, starts, lags)
    covariances = autocovariance(products, counts, times)

    def spread(values: np.ndarray) -> Interval:
        with np.errstate(invalid="ignore"):  # a bound between two infinite lengths is NaN
            return interval(float(values[0]), values[1:], confidence)

    shares, geometric, sizes = [], [], []
    for length in lengths:
        sums, longer = prefix_sums(log_ratio, starts, length)
        sizes.append(len(sums))
        enough = len(sums) >= FEWEST
        drawn = times[:, longer]
        drawn = drawn[drawn.sum(1) > 0]  # a replicate without a single long response says nothing
        shares.append(spread(kish_share(sums, drawn)) if enough else None)
        geometric.append(spread(kish_share(sums / length, drawn)) if enough else None)
    variances = variance_of_sum(covariances, np.array(lengths))
    alone = np.maximum(covariances[:, 0], np.finfo(float).tiny)
    return Horizon(
        list(lengths),
        sizes,
        shares,
        geometric,
        [spread(column) for column in np.exp(-variances).T],
        [spread(column) for column in np.exp(-variances / np.square(lengths, dtype=float)).T],
        spread(half_length(covariances)),
        spread(covariances[:, 0]),
        spread(1 + 2 * covariances[:, 1:].sum(1) / alone),
    )


def prefix_sums(log_ratio: np.ndarray, starts: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Sums of the first ``length`` log ratios of the responses that have so many.

    Returns:
        The sums, and which responses they are of, bool of shape (responses,).
    """
    longer = np.diff(np.append(starts, len(log_ratio))) >= length
    total = np.concatenate([[0.0], np.cumsum(log_ratio)])
    return total[starts[longer] + length] - total[starts[longer]], longer


def kish_share(log_weights: np.ndarray, times: np.ndarray) -> np.ndarray:
    """(sum w)^2 / (N sum w^2) of weights, each counted as often as a row of ``times`` says.

    Args:
        log_weights: (N,).
        times: (replicates, N).

    Returns:
        (replicates,), between 1/N and 1.
    """
    weights = np.exp(log_weights - log_weights.max(initial=-np.inf))
    return (times @ weights) ** 2 / (times.sum(1) * (times @ weights**2))


def lagged_products(log_ratio: np.ndarray, starts: np.ndarray, lags: int) -> tuple[np.ndarray, np.ndarray]:
    """Sums over each response of the products of log ratios, less their mean, that are k tokens apart, and how many.

    Returns:
        Two arrays (responses, lags + 1), k from 0.
    """
    centred = log_ratio - log_ratio.mean()
    response = np.repeat(np.arange(len(starts)), np.diff(np.append(starts, len(log_ratio))))
    products, counts = np.zeros((2, len(starts), lags + 1))
    for k in range(min(lags + 1, len(centred))):
        first = response[: len(response) - k]
        inside = first == response[k:]
        values = (centred[: len(centred) - k] * centred[k:])[inside]
        products[:, k] = np.bincount(first[inside], values, len(starts))
        counts[:, k] = np.bincount(first[inside], minlength=len(starts))
    return products, counts


def autocovariance(products: np.ndarray, counts: np.ndarray, times: np.ndarray) -> np.ndarray:
    """(replicates, lags + 1): the mean product at each lag; 0 where no response is so long."""
    return times @ products / np.maximum(times @ counts, 1)


def variance_of_sum(covariances: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Variance of the sum of so many tokens: L c_0 + 2 sum_k (L - k) c_k over lags k below L; never below 0.

    Args:
        covariances: (replicates, lags + 1), which are 0 beyond.
        lengths: (G,).

    Returns:
        (replicates, G).
    """
    pairs = np.maximum(lengths - np.arange(covariances.shape[1])[:, None], 0.0)
    pairs[1:] *= 2
    return np.maximum(covariances @ pairs, 0)


def half_length(covariances: np.ndarray) -> np.ndarray:
    """Tokens after which exp(-V) is a half, (replicates,); infinite where V does not grow with the length.

    Beyond the last lag V is a straight line, so that this is exact; where V has reached log 2 before, it is the first
    length at which it has.
    """
    lags = np.arange(covariances.shape[1])
    slope = covariances[:, 0] + 2 * covariances[:, 1:].sum(1)
    offset = 2 * covariances @ lags
    with np.errstate(divide="ignore", invalid="ignore"):
        line = np.where(slope > 0, (math.log(2) + offset) / slope, np.inf)
    reached = variance_of_sum(covariances, lags[1:]) >= math.log(2)
    return np.where(reached.any(1), lags[1 + reached.argmax(1)], line)
