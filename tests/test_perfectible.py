"""When a problem is perfectible, and that stopping early changes nothing; against full enumeration."""

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scripts.parts.perfectible import Draws, band_counts, fewest_draws_left, verdict

SHARES = st.integers(0, 20).map(lambda twentieths: twentieths / 20)
BANDS = st.tuples(SHARES, SHARES).map(sorted)


def is_kept(right: int, samples: int, low: float, high: float) -> bool:
    """The definition, in whole numbers: twentieths, as the bounds are drawn."""
    return round(20 * low) * samples <= 20 * right <= round(20 * high) * samples


@given(st.integers(1, 12), BANDS)
def test_a_verdict_falls_exactly_when_every_continuation_agrees(samples, band):
    for drawn in range(samples + 1):
        for right in range(drawn + 1):
            ends = {is_kept(right + more, samples, *band) for more in range(samples - drawn + 1)}
            expected = ends.pop() if len(ends) == 1 else None
            assert verdict(right, drawn, samples, *band) is expected


@given(st.integers(1, 8), BANDS)
def test_the_fewest_draws_left_is_the_shortest_continuation_that_decides(samples, band):
    for drawn in range(samples + 1):
        for right in range(drawn + 1):
            shortest = min(
                length
                for length in range(samples - drawn + 1)
                for good in range(length + 1)
                if verdict(right + good, drawn + length, samples, *band) is not None
            )
            assert fewest_draws_left(right, drawn, samples, *band) == shortest


def test_the_bounds_are_inclusive_decimals():
    assert band_counts(40, 0.2, 0.8) == (8, 32)
    assert band_counts(10, 0.3, 0.7) == (3, 7)  # 0.7 * 10 is 7.000000000000001 in binary
    assert [verdict(right, 40, 40, 0.2, 0.8) for right in (7, 8, 32, 33)] == [False, True, True, False]


def draws_needed(correct: list[bool], samples: int, low: float, high: float) -> int | None:
    """How many responses, taken in their order, decide a problem; None if these do not.

    Args:
        correct: whether response 0, 1, ... is right.
    """
    right = 0
    for drawn in range(len(correct) + 1):
        if verdict(right, drawn, samples, low, high) is not None:
            return drawn
        if drawn < len(correct):
            right += bool(correct[drawn])
    return None


def test_draws_needed_by_hand():
    assert draws_needed([True] * 40, 40, 0.2, 0.8) == 33
    assert draws_needed([False] * 40, 40, 0.2, 0.8) == 33
    assert draws_needed([True, False] * 20, 40, 0.2, 0.8) == 16
    assert draws_needed([True, False], 40, 0.2, 0.8) is None


def run(outcomes, samples, band, early, in_flight, rng, known=()) -> tuple[Draws, int]:
    """Draw with ``in_flight`` responses under way, finishing in any order. Returns the draws and how many were made."""
    draws = Draws(list(outcomes), samples, *band, early=early)
    for problem, sample in known:
        draws.record(problem, sample, outcomes[problem][sample])
    wanted, flying, made = draws.wanted(), [], set(known)
    while True:
        while len(flying) < in_flight and (key := next(wanted, None)) is not None:
            assert key not in made
            made.add(key)
            flying.append(key)
        if not flying:
            assert draws.remaining == 0
            assert draws.num_kept == len(draws.kept())
            return draws, len(made)
        problem, sample = flying.pop(rng.randrange(len(flying)))
        draws.record(problem, sample, outcomes[problem][sample])


@given(st.integers(1, 10), BANDS, st.integers(1, 12), st.randoms(use_true_random=False))
def test_early_stopping_keeps_the_same_problems_whatever_the_order(samples, band, in_flight, rng):
    outcomes = {f"p{i}": [rng.random() < i / 7 for _ in range(samples)] for i in range(8)}
    full, made_in_full = run(outcomes, samples, band, False, in_flight, rng)
    early, made_early = run(outcomes, samples, band, True, in_flight, rng)
    assert made_in_full == 8 * samples
    assert made_early <= made_in_full
    assert early.kept() == full.kept() == [p for p in outcomes if is_kept(sum(outcomes[p]), samples, *band)]
    for problem, outcome in outcomes.items():
        needed = draws_needed(outcome, samples, *band)
        assert (early.drawn[problem], early.right[problem]) == (needed, sum(outcome[:needed]))
    known = [key for key in itertools.product(outcomes, range(samples)) if rng.random() < 0.4]
    resumed, _ = run(outcomes, samples, band, True, in_flight, rng, known)
    assert (resumed.kept(), resumed.drawn, resumed.right) == (early.kept(), early.drawn, early.right)


def test_one_at_a_time_draws_nothing_in_vain():
    rng = random.Random(0)
    outcomes = {f"p{i}": [rng.random() < i / 30 for _ in range(40)] for i in range(30)}
    _, made = run(outcomes, 40, (0.2, 0.8), True, 1, rng)
    assert made == sum(draws_needed(outcome, 40, 0.2, 0.8) for outcome in outcomes.values())


@pytest.mark.parametrize("early", [True, False])
def test_what_remains_is_none_at_the_end(early):
    rng = random.Random(1)
    outcomes = {f"p{i}": [rng.random() < 0.5 for _ in range(12)] for i in range(5)}
    draws, _ = run(outcomes, 12, (0.2, 0.8), early, 3, rng)
    assert draws.remaining == 0
