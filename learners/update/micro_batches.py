"""Cutting an update's responses into micro-batches with little padding, and dealing them to the processes.

Pure functions of the responses' lengths. Whatever the cut, the loss and its gradient are the same but for rounding
(learners/objectives/aggregation.py), so speed and memory alone decide.
"""

import torch
from torch import Tensor

MOST_PADDING = 0.1  # share of a micro-batch's tokens; a shorter response begins the next one


def deal(lengths: Tensor, processes: int, *, size: int | None = None, tokens: int | None = None) -> list[list[Tensor]]:
    """Micro-batches for every process.

    The responses are sorted by length, longest first, so that those of a micro-batch are about equally long and what
    needs most memory comes first; neighbours go to different processes, so that all have about equally much to do.

    Args:
        lengths: (N,) tokens of each response with its prompt.
        processes: how many there are; N is a multiple of it.
        size: responses in each micro-batch, or
        tokens: most tokens in each, padding included, of which at most a tenth is padding; a response that is longer
            stands alone.

    Returns:
        For each process its micro-batches, as index tensors; each process has the same number of them, since its
        backward passes meet those of the others.
    """
    order = lengths.argsort(descending=True, stable=True)
    cuts = list(order.split(size)) if tokens is None else _cut_by_tokens(order, lengths, tokens)
    while len(cuts) % processes:
        cuts = _halve_the_largest(cuts, lengths)
    rounds = [cuts[i : i + processes] for i in range(0, len(cuts), processes)]
    rounds = [each if i % 2 == 0 else each[::-1] for i, each in enumerate(rounds)]  # nobody always gets the larger one
    return [list(own) for own in zip(*rounds, strict=True)]


def with_something_to_teach(teaches: Tensor, lengths: Tensor, processes: int) -> Tensor:
    """The responses of an update that are passed backwards.

    Args:
        teaches: (N,) bool, whether a response can have a gradient.
        lengths: (N,) tokens of each.
        processes: how many there are; N is a multiple of it.

    Returns:
        Indices in ascending order: those that teach, and of the others the shortest that make them a multiple of the
        processes, and at least one each, since backward passes of several processes meet; their gradient is 0.
    """
    count = int(teaches.sum())
    more = -count % processes if count else processes
    order = (lengths + teaches * (lengths.max() + 1)).argsort(stable=True)  # those that do not teach first
    return torch.cat([teaches.nonzero().flatten(), order[:more]]).sort().values


def _cut_by_tokens(order: Tensor, lengths: Tensor, tokens: int) -> list[Tensor]:
    cuts, start = [], 0
    ordered = lengths[order].tolist()
    while start < len(order):
        longest, end, held = ordered[start], start, 0
        while end < len(order):
            padded, held = (end + 1 - start) * longest, held + ordered[end]
            if end > start and (padded > tokens or padded - held > MOST_PADDING * padded):
                break
            end += 1
        cuts.append(order[start:end])
        start = end
    return cuts


def _halve_the_largest(cuts: list[Tensor], lengths: Tensor) -> list[Tensor]:
    sizes = [len(cut) * int(lengths[cut].max()) if len(cut) > 1 else 0 for cut in cuts]
    largest = max(range(len(cuts)), key=sizes.__getitem__)
    assert sizes[largest] > 0, "the responses are no multiple of the processes"
    cut = cuts[largest]
    return [*cuts[:largest], cut[: len(cut) // 2], cut[len(cut) // 2 :], *cuts[largest + 1 :]]
