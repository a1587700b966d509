"""Statistics that add up over micro-batches and processes: sums with counts, and extremes."""

import math

import torch
import torch.distributed as dist


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
        """Means and extremes over all processes (each must have tallied the same names in the same order)."""
        sums = torch.tensor([*self.sums.values(), *self.counts.values()], dtype=torch.float64)
        maxima = torch.tensor([*self.maxima.values()], dtype=torch.float64)
        across_processes(sums, "sum")
        across_processes(maxima, "max")
        totals, counts = sums.chunk(2)
        means = {name: (t / max(c, 1.0)).item() for name, t, c in zip(self.sums, totals, counts, strict=True)}
        extremes = zip(self.maxima, maxima.tolist(), strict=True)
        return means | {name: -value if name in self.negated else value for name, value in extremes}


def across_processes(values: torch.Tensor, how: str) -> torch.Tensor:
    """Reduce a CPU tensor over the processes, in place: ``how`` is "sum" or "max"."""
    if dist.is_initialized() and dist.get_world_size() > 1 and values.numel():
        operation = {"sum": dist.ReduceOp.SUM, "max": dist.ReduceOp.MAX}[how]
        device = "cuda" if dist.get_backend() == "nccl" else "cpu"
        reduced = values.to(device)
        dist.all_reduce(reduced, operation)
        values.copy_(reduced)
    return values
