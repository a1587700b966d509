"""Several datasets as one."""

from collections.abc import Sequence
from dataclasses import replace

from tasks.task import Example


def mix(datasets: list[list[Example]], weights: Sequence[float] = ()) -> list[Example]:
    """All examples, each with its dataset's number and, if there are ``--data-weights``, its weight."""
    return [
        replace(example, source=source, weight=weight)
        for source, (examples, weight) in enumerate(zip(datasets, weights or [None] * len(datasets), strict=True))
        for example in examples
    ]


def epoch_counts(sizes: Sequence[int], weights: Sequence[float]) -> list[int]:
    """How many of each dataset's prompts an epoch takes: in proportion to the weights, as many as the scarcest allows.

    Example: ``epoch_counts([100, 1000], [1, 2]) == [100, 200]``.
    """
    scarcest = min(size / weight for size, weight in zip(sizes, weights, strict=True))
    return [min(size, int(scarcest * weight + 1e-9)) for size, weight in zip(sizes, weights, strict=True)]
