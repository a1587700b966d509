"""Micro-batches: every response once, within the limits, little padding, equally many on every process."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from learners.update.micro_batches import MOST_PADDING, deal, with_something_to_teach


def padding_share(cuts: list, lengths) -> float:
    """The share of the tokens of these micro-batches that is padding, from 0 to below 1."""
    padded = sum(len(cut) * int(lengths[cut].max()) for cut in cuts)
    return 1 - sum(int(lengths[cut].sum()) for cut in cuts) / padded


@settings(max_examples=100, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 400), min_size=4, max_size=80), processes=st.integers(1, 4),
    limit=st.one_of(st.tuples(st.just("size"), st.integers(1, 9)), st.tuples(st.just("tokens"), st.integers(1, 900))),
)  # fmt: skip
def test_every_response_is_dealt_once_and_no_limit_is_exceeded(lengths, processes, limit):
    lengths, (kind, most) = torch.tensor(lengths[: len(lengths) // processes * processes]), limit
    dealt = deal(lengths, processes, **{kind: most})
    assert len(dealt) == processes
    assert len({len(cuts) for cuts in dealt}) == 1
    everything = torch.cat([cut for cuts in dealt for cut in cuts])
    assert sorted(everything.tolist()) == list(range(len(lengths)))
    for cut in (cut for cuts in dealt for cut in cuts):
        padded = len(cut) * int(lengths[cut].max())
        assert len(cut) <= most if kind == "size" else (padded <= most or len(cut) == 1)


@given(lengths=st.lists(st.integers(1, 400), min_size=1, max_size=60), tokens=st.integers(1, 3000))
def test_a_micro_batch_ends_where_the_next_response_would_break_a_limit(lengths, tokens):
    lengths = torch.tensor(lengths)
    for cut, following in pairwise(deal(lengths, 1, tokens=tokens)[0]):
        joined = lengths[torch.cat([cut, following[:1]])]
        padded = len(joined) * int(joined.max())
        assert padded > tokens or padded - int(joined.sum()) > MOST_PADDING * padded


def test_the_larger_one_of_a_round_goes_to_each_process_in_turn():
    assert deal(torch.tensor([8, 7, 6, 5, 4, 3, 2, 1]), 2, size=1) == [[0, 3, 4, 7], [1, 2, 5, 6]]


def long_tailed(seed: int) -> torch.Tensor:
    """128 prompts of 100 tokens with responses of log-normal length, from 50 to 8192 tokens."""
    rng = np.random.default_rng(seed)
    return torch.tensor(100 + np.exp(rng.normal(6.5, 0.8, 128)).clip(50, 8192).astype(int))


@pytest.mark.parametrize("tokens", [9216, 32768, 10**6])
def test_padding_of_a_long_tailed_batch_is_under_a_tenth(tokens):
    for seed in range(5):
        lengths = long_tailed(seed)
        cuts = [cut for cuts in deal(lengths, 8, tokens=tokens) for cut in cuts]
        assert padding_share(cuts, lengths) < 0.1
        in_order = list(torch.arange(128).split(4))
        assert padding_share(in_order, lengths) > 0.3, "the batch is not one that padding is a problem of"


def test_processes_have_about_equally_much_to_do():
    lengths = long_tailed(0)
    for limit in ({"tokens": 9216}, {"size": 4}):
        work = [sum(int(lengths[cut].sum()) for cut in cuts) for cuts in deal(lengths, 4, **limit)]
        assert max(work) < 1.25 * min(work)


def test_padding_share_counts_what_is_not_a_token():
    assert padding_share([torch.tensor([0, 1])], torch.tensor([4, 2])) == pytest.approx(2 / 8)


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 60)), min_size=1, max_size=12), st.integers(1, 5))
def test_what_is_passed_backwards_is_all_that_teaches_and_as_little_else_as_the_processes_need(rows, processes):
    rows = rows * processes  # an update is a multiple of them
    teaches, lengths = torch.tensor([t for t, _ in rows]), torch.tensor([n for _, n in rows])
    chosen = with_something_to_teach(teaches, lengths, processes)
    assert chosen.tolist() == sorted(set(chosen.tolist()))
    assert set(teaches.nonzero().flatten().tolist()) <= set(chosen.tolist())
    assert len(chosen) % processes == 0 and len(chosen) >= processes
    fillers = [i for i in chosen.tolist() if not teaches[i]]
    assert len(fillers) < processes or (len(fillers) == processes and not teaches.any())
    left = [i for i in range(len(rows)) if not teaches[i] and i not in fillers]
    assert max((int(lengths[i]) for i in fillers), default=0) <= min((int(lengths[i]) for i in left), default=99)
    deal(lengths[chosen], processes, size=4)
