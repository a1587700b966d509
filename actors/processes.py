"""The processes of a run: who samples what, and what passes between them."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist


@dataclass(frozen=True)
class Processes:
    """Who does what. Example: 4 processes with ``tensor_parallel=2`` hold 2 engines; processes 2 and 3 are engine 1."""

    rank: int = 0
    world_size: int = 1
    tensor_parallel: int = 1
    """processes that share one sampling engine, next to each other"""

    @property
    def engine(self) -> int:
        """Which engine this process belongs to."""
        return self.rank // self.tensor_parallel

    @property
    def engines(self) -> int:
        return self.world_size // self.tensor_parallel

    def prompts_of_engine(self, prompts: list) -> list:
        """The part of a step's prompts that this process's engine samples; all its processes are given the same."""
        size = -(-len(prompts) // self.engines)
        return prompts[self.engine * size : (self.engine + 1) * size]

    def share_of_engine(self, items: list) -> list:
        """This process's part of what its engine made; the parts of an engine's processes are its whole, in order."""
        size = -(-len(items) // self.tensor_parallel)
        part = self.rank % self.tensor_parallel
        return items[part * size : (part + 1) * size]

    @property
    def first_of_engine(self) -> bool:
        return self.rank % self.tensor_parallel == 0


def several() -> bool:
    return dist.is_initialized() and dist.get_world_size() > 1


def place() -> tuple[int, int]:
    """(rank, how many), of the processes that have met."""
    return (dist.get_rank(), dist.get_world_size()) if several() else (0, 1)


def across_processes(values: torch.Tensor, how: str) -> torch.Tensor:
    """Reduce a CPU tensor over the processes, in place: ``how`` is "sum" or "max"."""
    if several() and values.numel():
        operation = {"sum": dist.ReduceOp.SUM, "max": dist.ReduceOp.MAX}[how]
        reduced = values.to("cuda" if dist.get_backend() == "nccl" else "cpu")
        dist.all_reduce(reduced, operation)
        values.copy_(reduced)
    return values


def gather(item: Any) -> list[Any]:
    """Every process's item, in the order of the ranks, on every process. Anything that can be pickled."""
    if not several():
        return [item]
    items = [None] * dist.get_world_size()
    dist.all_gather_object(items, item)
    return items


def from_first(item: Any) -> Any:
    """The item of the process of rank 0, on every process."""
    return gather(item)[0]
