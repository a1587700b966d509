"""A training step while it is in progress, so that a run can be stopped between two of its updates and go on."""

from __future__ import annotations

from dataclasses import dataclass, field

from learners.record.tally import Tally
from learners.rollouts.batch import RolloutBatch

POSITION = ("number", "updates_done", "at_rollout_weights", "mean_weight", "times")


@dataclass
class Step:
    """One step: its responses, on every process all of them, and what has been learned from them."""

    number: int
    """from 1"""
    batch: RolloutBatch
    times: dict[str, float]
    """``time/...`` in seconds and ``throughput/...``, so far"""
    updates_done: int = 0
    at_rollout_weights: bool = True
    """no update has been applied since its responses were sampled"""
    mean_weight: float = 1.0
    """what importance weights are divided by, over the step's responses"""
    tally: Tally = field(default_factory=Tally)

    def position(self) -> dict:
        """How far it has come: all but its tensors and its tally."""
        return {name: getattr(self, name) for name in POSITION}

    @classmethod
    def at(cls, position: dict, batch: RolloutBatch, first: bool) -> Step:
        """The step that `position` (with the ``tally`` of all processes) was taken of.

        Args:
            first: whether this process is the one that takes the tally over; the others begin empty ones.
        """
        tally = Tally.of(position["tally"], empty=not first)
        return cls(batch=batch, tally=tally, **{name: position[name] for name in POSITION})
