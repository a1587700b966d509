"""Advantages and aggregations against numpy and loops."""

from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from learners.objectives.advantages import ADVANTAGES
from learners.objectives.aggregation import Aggregation, UpdateCounts, aggregate

AGGREGATIONS = get_args(Aggregation)


@pytest.mark.parametrize("name", ADVANTAGES)
@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), groups=st.integers(1, 5), size=st.integers(2, 6), binary=st.booleans())
def test_advantages_equal_a_loop_over_groups(name, seed, groups, size, binary):
    rng = np.random.default_rng(seed)
    rewards = rng.integers(0, 2, (groups, size)).astype(float) if binary else rng.normal(0, 1, (groups, size))
    ours = ADVANTAGES[name](torch.tensor(rewards.ravel()), size).reshape(groups, size).numpy()
    for i in range(groups):
        for j in range(size):
            others = [rewards[i, k] for k in range(size) if k != j]
            expected = {
                "group-mean": rewards[i, j] - np.mean(rewards[i]),
                "leave-one-out": rewards[i, j] - np.mean(others),
                "group-std": (rewards[i, j] - np.mean(rewards[i])) / (np.std(rewards[i], ddof=1) + 1e-8),
            }[name]
            assert ours[i, j] == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("name", ADVANTAGES)
def test_a_group_of_equal_rewards_has_no_advantage(name):
    rewards = torch.tensor([1.0, 1.0, 1.0, 0.0, 1.0, 0.0])
    made = ADVANTAGES[name](rewards, 3)
    assert made[:3].tolist() == [0, 0, 0]
    assert made[3:].abs().min() > 0
    assert made.dtype == torch.float32


@pytest.mark.parametrize("name", ADVANTAGES)
@given(reward=st.floats(-1e3, 1e3, width=32), size=st.integers(2, 17))
@example(reward=0.7, size=8)  # whose mean is another number in FP32; divided by the spread that was 0.809
@example(reward=0.1, size=8)
@example(reward=1 / 3, size=8)
def test_equal_rewards_of_any_size_have_an_advantage_of_exactly_0(name, reward, size):
    rewards = torch.full((2 * size,), reward)
    rewards[size] += 1
    made = ADVANTAGES[name](rewards, size)
    assert made[:size].eq(0).all()
    assert made[size:].ne(0).all()


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), rows=st.integers(1, 7), width=st.integers(1, 6), cut=st.integers(1, 4))
def test_aggregation_equals_a_loop_whatever_the_micro_batches(aggregation, seed, rows, width, cut):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, width + 1, rows)
    values = rng.normal(0, 1, (rows, width))
    mask = np.arange(width) < lengths[:, None]
    values[~mask] = np.nan
    kept = rng.random(rows) < 0.7
    max_length = width + 3
    counts = UpdateCounts(rows, kept.sum(), lengths[kept].sum(), max_length)
    loss = torch.tensor(values, requires_grad=True)
    total = sum(
        aggregate(loss[part], torch.tensor(mask[part]), torch.tensor(kept[part]), aggregation, counts)
        for part in np.array_split(np.arange(rows), min(cut, rows))
    )
    total.backward()
    sums = [sum(values[i, t] for t in range(lengths[i])) for i in range(rows) if kept[i]]
    means = [s / length for s, length in zip(sums, lengths[kept], strict=True)]
    expected = {
        "token-sum-constant": sum(sums) / (rows * max_length),
        "token-mean-sequence": float(np.mean(means)) if means else 0.0,
        "token-mean-batch": sum(sums) / lengths[kept].sum() if sums else 0.0,
    }[aggregation]
    assert total.item() == pytest.approx(expected, abs=1e-12)
    gradient = loss.grad.numpy()
    assert (gradient[~mask] == 0).all() and (gradient[~kept] == 0).all()
    if kept.any():
        i = int(np.flatnonzero(kept)[0])
        weight = {
            "token-sum-constant": 1 / (rows * max_length),
            "token-mean-sequence": 1 / (kept.sum() * lengths[i]),
            "token-mean-batch": 1 / lengths[kept].sum(),
        }[aggregation]
        np.testing.assert_allclose(gradient[i, : lengths[i]], weight, rtol=1e-12)
