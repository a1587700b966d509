"""Statistics that add up over micro-batches and processes: sums with counts, and extremes."""

import math

import torch

from actors.processes import across_processes


class Tally:
    """Collects means and extremes by name; nothing is averaged before everything is in.

    Example:
        >>> tally = Tally()
        >>> tally.add("reward", torch.tensor([1.0, 0.0]))
        >>> tally.add("reward", torch.tensor([1.0, 1.0]))
        >>> tally.result()
        {'reward': 0.75}
    """

    def __init__(self):
        self.sums: dict[str, float] = {}
        self.counts: dict[str, float] = {}
        self.maxima: dict[str, float] = {}
        self.negated: set[str] = set()

    def add(self, name: str, values: torch.Tensor, count: float | None = None) -> None:
        """Count values towards the mean of ``name``; with ``count``, ``values`` is their sum already."""
        self.sums[name] = self.sums.get(name, 0.0) + values.detach().double().sum().item()
        self.counts[name] = self.counts.get(name, 0.0) + (values.numel() if count is None else count)

    def maximum(self, name: str, values: torch.Tensor) -> None:
        """Keep the largest of ``values`` and of what was given before."""
        largest = values.max().item() if values.numel() else -math.inf
        self.maxima[name] = max(self.maxima.get(name, -math.inf), largest)

    def minimum(self, name: str, values: torch.Tensor) -> None:
        """Keep the smallest."""
        self.negated.add(name)
        self.maximum(name, -values)

    def result(self) -> dict[str, float]:
        """Means and extremes over all processes."""
        whole = self.whole()
        means = {name: total / max(whole["counts"][name], 1.0) for name, total in whole["sums"].items()}
        extremes = whole["maxima"].items()
        return means | {name: -value if name in self.negated else value for name, value in extremes}

    def whole(self) -> dict:
        """What all processes tallied, as JSON can hold it; each must have tallied the same names, in the same order."""
        sums = torch.tensor([*self.sums.values(), *self.counts.values()], dtype=torch.float64)
        maxima = torch.tensor([*self.maxima.values()], dtype=torch.float64)
        across_processes(sums, "sum")
        across_processes(maxima, "max")
        totals, counts = sums.chunk(2)
        return {
            "sums": dict(zip(self.sums, totals.tolist(), strict=True)),
            "counts": dict(zip(self.counts, counts.tolist(), strict=True)),
            "maxima": dict(zip(self.maxima, maxima.tolist(), strict=True)),
            "negated": sorted(self.negated),
        }

    @classmethod
    def of(cls, whole: dict, empty: bool = False) -> "Tally":
        """A tally that goes on from `whole`; with ``empty`` it has the same names and nothing in them."""
        tally = cls()
        tally.sums = dict.fromkeys(whole["sums"], 0.0) if empty else dict(whole["sums"])
        tally.counts = dict.fromkeys(whole["counts"], 0.0) if empty else dict(whole["counts"])
        tally.maxima = dict.fromkeys(whole["maxima"], -math.inf) if empty else dict(whole["maxima"])
        tally.negated = set(whole["negated"])
        return tally
