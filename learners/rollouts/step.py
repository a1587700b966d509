"""A training step while it is in progress, so that a run can be stopped between two of its updates and go on."""

from __future__ import annotations

from dataclasses import dataclass, field

from learners.record.tally import Tally
from learners.rollouts.batch import RolloutBatch


@dataclass(frozen=True)
class Position:
    """How far a step has come."""

    number: int
    """of the step, from 1"""
    updates_done: int
    at_rollout_weights: bool
    """no update has been applied since its responses were sampled"""
    mean_weight: float
    """what importance weights are divided by, over the step's responses"""
    times: dict[str, float]
    """``time/...`` in seconds and ``throughput/...``, so far"""


@dataclass
class Step:
    """One step: its responses, on every process all of them, and what has been learned from them."""

    number: int
    batch: RolloutBatch
    times: dict[str, float]
    updates_done: int = 0
    at_rollout_weights: bool = True
    mean_weight: float = 1.0
    tally: Tally = field(default_factory=Tally)

    def position(self) -> Position:
        return Position(self.number, self.updates_done, self.at_rollout_weights, self.mean_weight, self.times)

    @classmethod
    def at(cls, position: dict, batch: RolloutBatch, first: bool) -> Step:
        """The step that `position` (with the ``tally`` of all processes) was taken of.

        Args:
            first: whether this process is the one that takes the tally over; the others begin empty ones.
        """
        tally = Tally.of(position["tally"], empty=not first)
        told = {key: value for key, value in position.items() if key != "tally"}
        return cls(batch=batch, tally=tally, **told)
