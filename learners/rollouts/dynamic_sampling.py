"""DAPO's dynamic sampling (arXiv 2503.14476): a batch of prompts that have something to teach.

A prompt whose responses all earn the same has no advantage, hence no gradient. Such prompts are dropped, and further
ones sampled, until the batch is full. The functions here know neither engine nor data: they are handed a way to draw
prompts and a way to sample them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from oat.types import TransitionData

Drawn = TypeVar("Drawn")

# Of Oat's statistics of a call, those that do not add up over calls.
NOT_ADDITIVE = ("actor/rewards", "actor/response_tok_len", "actor/sampling_max_tokens", "actor/sampling_temperature")


@dataclass
class Collected:
    """The prompts of a step, as they were drawn, with their responses and what it took to find them."""

    prompts: list[Drawn]
    transitions: list[TransitionData]
    """the responses of a prompt next to each other; ``info`` adds up over all that was sampled"""
    metrics: dict[str, int]
    """by their names in metrics.jsonl"""


def collect_mixed(
    draw: Callable[[int], list[Drawn]],
    sample: Callable[[list[Drawn]], list[TransitionData]],
    wanted: int,
    group_size: int,
    max_rounds: int,
    largest: Callable[[int], int] = int,
) -> Collected:
    """Sample until ``wanted`` prompts with mixed rewards are there, or ``max_rounds`` are over.

    The first round samples ``wanted`` prompts, each later one as many as should do, judging by the share that was mixed
    so far. What is mixed beyond ``wanted`` is given up: at the next step it would be from an older policy. When the
    rounds are over the batch is filled up with dropped prompts; their advantage is 0, so that they add nothing to the
    gradient, and a step keeps its number of updates and each update its size.

    Args:
        draw: the next so many prompts, in whatever form ``sample`` takes them.
        sample: what was drawn -> transitions, ``group_size`` a prompt.
        wanted: prompts in the batch of this process.
        group_size: responses of a prompt.
        max_rounds: at least 1.
        largest: the largest of a number over all processes, which take the same rounds.
    """
    mixed, equal, infos = [], [], []
    rounds, count = 0, wanted
    while rounds < max_rounds and count > 0:
        prompts = draw(count)
        transitions = sample(prompts)
        infos.append(transitions[0].info)
        for i, prompt in enumerate(prompts):
            group = transitions[i * group_size : (i + 1) * group_size]
            rewards = {sum(transition.rewards) for transition in group}
            (mixed if len(rewards) > 1 else equal).append((prompt, group))
        rounds += 1
        count = largest(prompts_to_draw(wanted, len(mixed), len(mixed) + len(equal)))
    batch = mixed[:wanted]
    filling = equal[: wanted - len(batch)]
    info = total_info(infos)
    return Collected(
        prompts=[prompt for prompt, _ in batch + filling],
        transitions=[replace(transition, info=info) for _, group in batch + filling for transition in group],
        metrics={
            "sampling/rounds": rounds,
            "sampling/prompts": len(mixed) + len(equal),
            "sampling/dropped_prompts": len(equal) - len(filling),
            "sampling/filled_prompts": len(filling),
        },
    )


def prompts_to_draw(wanted: int, mixed: int, sampled: int) -> int:
    """How many more prompts should fill the batch, if as many are mixed as so far; from 0 to ``wanted``.

    Example: 8 are wanted and 6 of the first 8 were mixed: 3 more, of which 2.25 should be mixed.
    """
    missing = max(wanted - mixed, 0)
    return min(math.ceil(missing * sampled / mixed), wanted) if mixed else wanted


def total_info(infos: list[dict]) -> dict:
    """Oat's statistics of several calls, added up; what does not add up is left out."""
    return {key: sum(info[key] for info in infos) for key in infos[0] if key not in NOT_ADDITIVE}
