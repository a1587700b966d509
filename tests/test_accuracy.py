"""The statistics of an evaluation, against brute force and against numpy."""

import itertools
import math
from statistics import fmean

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.accuracy import Accuracy, clustered_stderr, pass_at_k

GRIDS = st.integers(1, 6).flatmap(
    lambda n: st.lists(st.lists(st.booleans(), min_size=n, max_size=n), min_size=2, max_size=6)
)


@given(GRIDS, st.integers(1, 6))
def test_pass_at_k_is_the_share_of_subsets_with_a_right_response(grid, k):
    if k > len(grid[0]):
        with pytest.raises(ValueError, match="between 1 and"):
            pass_at_k(grid, k)
        return
    by_problem = [fmean(any(subset) for subset in itertools.combinations(row, k)) for row in grid]
    assert pass_at_k(grid, k) == pytest.approx(fmean(by_problem))


def test_pass_at_k_stays_exact_where_binomials_overflow():
    row = [True] * 3 + [False] * 4997
    exact = 1 - math.comb(4997, 1000) / math.comb(5000, 1000)
    assert pass_at_k([row], 1000) == pytest.approx(exact, rel=1e-12)


@given(GRIDS)
def test_pass_at_1_is_avg_at_n(grid):
    assert pass_at_k(grid, 1) == pytest.approx(Accuracy.of(grid, 1).mean) == pytest.approx(np.mean(grid))


def double_sum(grid) -> float:
    """Miller's formula as it is written: the plain variance, and the products of every pair within a cluster."""
    scores, mean = np.asarray(grid, float), np.mean(grid)
    total = 0.0
    for row in scores:
        for first in row:
            total += sum((first - mean) * (second - mean) for second in row)
    return math.sqrt(max(total, 0.0)) / scores.size  # rounding may leave a sum of 0 a little below it


@given(GRIDS)
def test_the_standard_error_is_millers_with_the_correction_for_few_clusters(grid):
    problems = len(grid)
    expected = double_sum(grid) * math.sqrt(problems / (problems - 1))
    assert clustered_stderr(grid) == pytest.approx(expected, abs=1e-7)


def test_repeating_every_response_does_not_shrink_the_standard_error():
    grid = [[1, 0], [1, 1], [0, 0]]
    assert clustered_stderr([row * 10 for row in grid]) == pytest.approx(clustered_stderr(grid))


def test_the_standard_error_is_the_spread_of_the_mean_over_draws_of_problems():
    rng = np.random.default_rng(0)
    chances = rng.beta(0.5, 0.5, size=(4000, 50, 1))
    grids = rng.random((4000, 50, 8)) < chances
    estimated = fmean(clustered_stderr(grid) for grid in grids)
    assert estimated == pytest.approx(grids.mean(axis=(1, 2)).std(), rel=0.03)


def test_one_problem_has_no_standard_error():
    made = Accuracy.of([[1, 0, 1]], k=2)
    assert (made.mean, made.stderr, made.pass_at_k) == (pytest.approx(2 / 3), None, 1.0)
