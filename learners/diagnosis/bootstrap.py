"""Percentile bootstrap intervals."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Interval:
    """An estimate with its percentile bootstrap interval."""

    estimate: float
    low: float
    high: float


def resamples(size: int, count: int, seed: int) -> Iterator[np.ndarray]:
    """``count`` draws of ``size`` out of ``size`` with replacement: how often each was drawn, (size,) each."""
    generator = np.random.default_rng(seed)
    for _ in range(count):
        yield np.bincount(generator.integers(size, size=size), minlength=size).astype(float)


def interval(estimate: float, replicates: np.ndarray, confidence: float) -> Interval:
    """The percentile interval (Efron and Tibshirani 1993, chapter 13): the middle ``confidence`` of the replicates.

    NaN bounds if a replicate is NaN.
    """
    outside = (1 - confidence) / 2
    low, high = np.quantile(replicates, [outside, 1 - outside])
    return Interval(estimate, float(low), float(high))
