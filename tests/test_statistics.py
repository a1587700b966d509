"""Mismatch, tally and the rollout tensors."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from learners.mismatch import measure
from learners.rollout import RolloutBatch
from learners.tally import Tally


def batch(seed: int, rows: int = 6, width: int = 5):
    rng = np.random.default_rng(seed)
    mu = torch.tensor(-rng.exponential(1, (rows, width)), dtype=torch.float32)
    pi = mu + torch.tensor(rng.normal(0, 0.1, (rows, width)), dtype=torch.float32)
    mask = torch.tensor(rng.random((rows, width)) < 0.7)
    mask[0, 0] = True
    return pi.clamp(max=0), mu, mask


def test_mismatch_against_a_loop():
    pi, mu, mask = batch(0)
    tally = Tally()
    measure(tally, pi, mu, mask)
    ratios = [(float(p), float(m)) for p, m, k in zip(pi.flatten(), mu.flatten(), mask.flatten(), strict=True) if k]
    differences = [abs(np.exp(p) - np.exp(m)) for p, m in ratios]
    result = tally.result()
    assert result["mismatch/abs_prob_diff_mean"] == pytest.approx(np.mean(differences), rel=1e-12)
    assert result["mismatch/abs_prob_diff_max"] == pytest.approx(max(differences), rel=1e-12)
    assert result["mismatch/kl_k1"] == pytest.approx(np.mean([m - p for p, m in ratios]), rel=1e-9)
    assert result["mismatch/kl_k3"] == pytest.approx(
        np.mean([np.exp(p - m) - 1 - (p - m) for p, m in ratios]), rel=1e-6
    )


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), cut=st.integers(1, 5))
def test_mismatch_does_not_depend_on_how_the_batch_is_cut(seed, cut):
    pi, mu, mask = batch(seed)
    whole, parts = Tally(), Tally()
    measure(whole, pi, mu, mask)
    for rows in (slice(0, cut), slice(cut, 6)):
        measure(parts, pi[rows], mu[rows], mask[rows])
    assert parts.result() == pytest.approx(whole.result(), rel=1e-12)


def test_expected_k1_and_k3_are_the_kl_divergence():
    rng = np.random.default_rng(1)
    mu, pi = (rng.dirichlet(np.ones(50)) for _ in range(2))
    expected = float((mu * np.log(mu / pi)).sum())
    tokens = rng.choice(50, size=400_000, p=mu)
    tally = Tally()
    log_pi, log_mu = (torch.tensor(np.log(p[tokens]), dtype=torch.float32)[None] for p in (pi, mu))
    measure(tally, log_pi, log_mu, torch.ones_like(log_pi, dtype=torch.bool))
    assert tally.result()["mismatch/kl_k1"] == pytest.approx(expected, rel=0.02)
    assert tally.result()["mismatch/kl_k3"] == pytest.approx(expected, rel=0.02)


def test_log_probabilities_rounded_to_bf16_move_the_metric():
    _, mu, mask = batch(2)
    exact, rounded = Tally(), Tally()
    measure(exact, mu, mu, mask)
    measure(rounded, mu.bfloat16().float(), mu, mask)
    assert exact.result()["mismatch/abs_prob_diff_mean"] == 0
    assert rounded.result()["mismatch/abs_prob_diff_mean"] > 1e-4


def test_tally_averages_over_everything_that_was_added():
    tally = Tally()
    tally.add("a", torch.tensor([1.0, 2.0]))
    tally.add("a", torch.tensor([6.0]))
    tally.add("b", torch.tensor(10.0), count=4)
    tally.maximum("m", 2.0)
    tally.maximum("m", -1.0)
    assert tally.result() == {"a": 3.0, "b": 2.5, "m": 2.0}


def test_rollout_batch_places_everything_where_it_belongs():
    long = {"prompt_ids": [5, 6], "response_ids": [7, 8, 9], "response_logprobs": [-0.1, -0.2, -0.3]}
    short = {"prompt_ids": [4], "response_ids": [3], "response_logprobs": [-2.0]}
    rows = [
        SimpleNamespace(**long, rewards=[0, 0, 1.0], loss_mask=True),
        SimpleNamespace(**short, rewards=[0.5], loss_mask=False),
    ]
    made = RolloutBatch.from_transitions(rows, torch.device("cpu"))
    assert made.input_ids.tolist() == [[5, 6, 7, 8, 9], [4, 3, 0, 0, 0]]
    assert made.attention_mask.tolist() == [[1] * 5, [1, 1, 0, 0, 0]]
    assert made.response_mask.int().tolist() == [[0, 1, 1, 1], [1, 0, 0, 0]]
    assert made.mu_logp.tolist() == [pytest.approx([0, -0.1, -0.2, -0.3]), pytest.approx([-2.0, 0, 0, 0])]
    assert made.rewards.tolist() == [1.0, 0.5]
    assert made.kept.tolist() == [True, False]
    alone = made.select(torch.tensor([1]))
    assert alone.input_ids.tolist() == [[4, 3]]
    assert alone.response_mask.tolist() == [[True]]
