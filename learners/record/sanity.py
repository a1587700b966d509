"""The verdict of the sanity test: a sound algorithm solves almost every problem of a set of perfectible problems."""

from collections.abc import Sequence

PASS_MARK = 0.95


def sanity_passed(rewards: Sequence[float], steps_per_epoch: int) -> bool | None:
    """Whether training accuracy was above 95% over the last epoch's steps; None while there have been fewer.

    Args:
        rewards: mean reward of each step so far, which for rewards of 0 and 1 is the share of right responses.
        steps_per_epoch: steps in which every problem is sampled once, wherever an epoch begins.
    """
    last = rewards[-steps_per_epoch:]
    return sum(last) / steps_per_epoch > PASS_MARK if len(last) == steps_per_epoch else None
