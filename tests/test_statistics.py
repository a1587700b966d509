"""Mismatch, tally and the rollout tensors."""

import math
import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from learners.record.mismatch import derive, measure
from learners.record.tally import Tally
from learners.rollouts.batch import Packed, RolloutBatch
from tests.toy_policies import ToyPolicies


def batch(seed: int, rows: int = 6, width: int = 5):
    rng = np.random.default_rng(seed)
    mu = torch.tensor(-rng.exponential(1, (rows, width)), dtype=torch.float32)
    pi = mu + torch.tensor(rng.normal(0, 0.1, (rows, width)), dtype=torch.float32)
    mask = torch.tensor(rng.random((rows, width)) < 0.7)
    mask[:, 0] = True  # every response has a token
    return pi.clamp(max=0), mu, mask


def responses(pi, mu, mask) -> list[list[tuple[float, float]]]:
    """(log pi, log mu) of each response's tokens."""
    return [
        [(p, m) for p, m, k in zip(*row, strict=True) if k]
        for row in zip(pi.double().tolist(), mu.double().tolist(), mask.tolist(), strict=True)
    ]


def perplexity(log_probabilities: list[float]) -> float:
    return float(np.exp(-np.mean(log_probabilities)))


def test_every_metric_against_numpy():
    pi, mu, mask = batch(0, rows=9)
    tally = Tally()
    measure(tally, pi, mu, mask)
    made = {key.removeprefix("mismatch/"): value for key, value in derive(tally.result()).items()}
    rows = responses(pi, mu, mask)
    p, m = (np.array(column) for column in zip(*[pair for row in rows for pair in row], strict=True))
    r, difference = np.exp(p - m), np.exp(p) - np.exp(m)
    y = np.array([sum(a - b for a, b in row) for row in rows])
    n = np.array([len(row) for row in rows])
    w = np.exp(y)
    expected = {
        "abs_prob_diff_mean": np.abs(difference).mean(),
        "abs_prob_diff_max": np.abs(difference).max(),
        "prob_diff_min": difference.min(),
        "prob_diff_max": difference.max(),
        "abs_log_ratio_mean": np.abs(p - m).mean(),
        "abs_log_ratio_max": np.abs(p - m).max(),
        "kl_k1": (m - p).mean(),
        "kl_k3": (r - 1 - np.log(r)).mean(),
        "reverse_kl_k1": (r * np.log(r)).mean(),
        "reverse_kl_k3": (r * (1 / r - 1 + np.log(r))).mean(),  # k3 of the other direction, weighted to samples of pi
        "ppl_ratio": np.mean([perplexity([a for a, _ in row]) / perplexity([b for _, b in row]) for row in rows]),
        "chi2_token": (r**2).mean() - 1,
        "chi2_seq": (w**2).mean() - 1,
        "ess_token": r.sum() ** 2 / (r**2).sum() / len(r),
        "ess_seq": w.sum() ** 2 / (w**2).sum() / len(w),
        "pearson": np.corrcoef(np.exp(p), np.exp(m))[0, 1],
        "seq_log_ratio_mean": y.mean(),
        "seq_log_ratio_std": y.std(),
        "seq_log_ratio_slope": 1000 * np.polyfit(n, y, 1)[0],
    }  # fmt: skip
    assert made == pytest.approx(expected, rel=1e-8)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), cut=st.integers(1, 5))
def test_mismatch_does_not_depend_on_how_the_batch_is_cut(seed, cut):
    pi, mu, mask = batch(seed)
    whole, parts = Tally(), Tally()
    measure(whole, pi, mu, mask)
    for rows in (slice(0, cut), slice(cut, 6)):
        measure(parts, pi[rows], mu[rows], mask[rows])
    assert derive(parts.result()) == pytest.approx(derive(whole.result()), rel=1e-7, abs=1e-9, nan_ok=True)


def test_log_probabilities_rounded_to_bf16_show():
    """Two engines that agree to FP32 have next to no mismatch; a path that rounds log pi to BF16 has."""
    _, mu, mask = batch(3, rows=200)
    pi = mu + 1e-6 * torch.sin(torch.arange(mu.numel()).view_as(mu))
    clean, rounded = Tally(), Tally()
    measure(clean, pi, mu, mask)
    measure(rounded, pi.bfloat16().float(), mu, mask)
    assert clean.result()["mismatch/abs_log_ratio_mean"] < 2e-6
    assert rounded.result()["mismatch/abs_log_ratio_mean"] > 5e-4
    assert rounded.result()["mismatch/kl_k3"] > 1e4 * clean.result()["mismatch/kl_k3"]


def test_identical_engines_have_no_mismatch():
    _, mu, mask = batch(1)
    tally = Tally()
    measure(tally, mu, mu, mask)
    made = derive(tally.result())
    ones = {"mismatch/ppl_ratio", "mismatch/ess_token", "mismatch/ess_seq", "mismatch/pearson"}
    assert made == pytest.approx({key: float(key in ones) for key in made}, abs=1e-9)


def test_a_step_without_a_measurement_has_no_mismatch_metrics():
    tally = Tally()
    tally.add("train/reward", torch.ones(3))
    assert derive(tally.result()) == {"train/reward": 1.0}


def test_expectations_over_all_sequences_are_the_divergences():
    """Enumerating what mu can sample: the token estimators sum to the KL divergences of the two sequence
    distributions (mu, pi), those of the other direction to the divergence of the next token (pi, mu) averaged over mu's
    prefixes, and the squared sequence weight to the chi-square divergence."""
    toy = ToyPolicies()
    everything = toy.batch()
    mu = toy.probabilities(everything.mu_logp, everything.mask).double()
    pi = toy.probabilities(everything.logp, everything.mask).detach()
    sums = dict.fromkeys(("kl_k1", "kl_k3", "reverse_kl_k1", "reverse_kl_k3"), 0.0)
    squared_weight = 0.0
    for i, probability in enumerate(mu.tolist()):
        tally = Tally()
        measure(tally, everything.logp[i : i + 1], everything.mu_logp[i : i + 1], everything.mask[i : i + 1])
        for key in sums:
            sums[key] += probability * tally.sums[f"mismatch/{key}"]
        squared_weight += probability * tally.sums["moment/seq weight^2"]
    kl = (mu * (mu / pi).log()).sum().item()
    log_pi = toy.theta.detach().log_softmax(1)
    reach = torch.zeros(len(toy.prefixes), dtype=torch.float64)
    for prefix, index in toy.index.items():
        reach[index] = math.exp(sum(toy.log_mu[toy.index[prefix[:t]], prefix[t]].item() for t in range(len(prefix))))
    other = (reach[:, None] * log_pi.exp() * (log_pi - toy.log_mu)).sum().item()
    assert kl > 0.05 and other > 0.05
    assert sums["kl_k1"] == pytest.approx(kl, abs=1e-12)
    assert sums["kl_k3"] == pytest.approx(kl, abs=1e-12)
    assert sums["reverse_kl_k1"] == pytest.approx(other, abs=1e-12)
    assert sums["reverse_kl_k3"] == pytest.approx(other, abs=1e-12)
    assert squared_weight - 1 == pytest.approx((pi**2 / mu).sum().item() - 1, abs=1e-12)


def test_tally_averages_over_everything_that_was_added():
    tally = Tally()
    tally.add("a", torch.tensor([1.0, 2.0]))
    tally.add("a", torch.tensor([6.0]))
    tally.add("b", torch.tensor(10.0), count=4)
    for values in (torch.tensor([2.0, 1.0]), torch.tensor([-1.0]), torch.tensor([])):
        tally.maximum("largest", values)
        tally.minimum("smallest", values)
    assert tally.result() == {"a": 3.0, "b": 2.5, "largest": 2.0, "smallest": -1.0}


def means_of(**changes: float) -> dict[str, float]:
    """Moments of two engines that differ, as a tally gives them."""
    moments = {
        "weight": 1.0, "weight^2": 1.25, "pi": 0.5, "mu": 0.4, "pi^2": 0.5, "mu^2": 0.32, "pi mu": 0.3,
        "seq log_ratio^2": 0.5, "seq weight": 1.0, "seq weight^2": 2.0, "length": 3.0, "length^2": 13.0,
        "length log_ratio": 1.0,
    }  # fmt: skip
    return {"mismatch/seq_log_ratio_mean": 0.5} | {f"moment/{k}": v for k, v in (moments | changes).items()}


def test_metrics_of_moments_by_hand():
    """Var pi = 1/4, var mu = 4/25, cov = 1/10; var length = 4, cov(length, log ratio) = -1/2; var log ratio = 1/4."""
    expected = {
        "chi2_token": 0.25, "chi2_seq": 1.0, "ess_token": 0.8, "ess_seq": 0.5, "pearson": 0.1 / (0.5 * 0.4),
        "seq_log_ratio_mean": 0.5, "seq_log_ratio_std": 0.5, "seq_log_ratio_slope": -125.0,
    }  # fmt: skip
    assert derive(means_of()) == pytest.approx({f"mismatch/{name}": value for name, value in expected.items()})


def test_where_there_is_nothing_to_divide_by_there_is_no_number():
    """Equal lengths have no slope, equal probabilities no correlation, weights out of range no sample size."""
    nothing = lambda **moments: {k.removeprefix("mismatch/") for k, v in derive(means_of(**moments)).items() if v != v}
    assert nothing() == set()
    assert nothing(**{"length^2": 9.0}) == nothing(**{"length^2": 8.999}) == {"seq_log_ratio_slope"}
    assert nothing(**{"pi^2": 0.25}) == nothing(**{"mu^2": 0.159}) == {"pearson"}
    assert nothing(**{"weight^2": math.inf}) == {"ess_token"}
    assert nothing(**{"seq weight^2": math.inf}) == {"ess_seq"}
    assert nothing(**{"weight^2": math.inf, "seq weight^2": math.inf}) == {"ess_token", "ess_seq"}
    assert derive(means_of(**{"seq log_ratio^2": 0.2499}))["mismatch/seq_log_ratio_std"] == 0.0, "rounded below 0"
    assert derive(means_of(**{"length^2": 9.5}))["mismatch/seq_log_ratio_slope"] == pytest.approx(-1000.0)


def test_what_lies_outside_the_mask_is_never_read_and_no_gradient_is_kept():
    pi, mu, mask = batch(4)
    clean, with_junk = Tally(), Tally()
    measure(clean, pi, mu, mask)
    junk = torch.full_like(pi, math.nan)
    measure(with_junk, pi.where(mask, junk).requires_grad_(), mu.where(mask, junk), mask)
    assert with_junk.whole() == clean.whole()
    counts = clean.whole()["counts"]
    assert counts["mismatch/kl_k3"] == mask.sum() and counts["mismatch/ppl_ratio"] == len(mask)


def test_a_tally_is_whole_to_the_last_bit_of_fp64():
    tally = Tally()
    tally.add("count", torch.tensor(1.0), count=2**24 + 1)
    tally.maximum("third", torch.tensor([1 / 3], dtype=torch.float64))
    tally.add("third", torch.tensor([1 / 3], dtype=torch.float64))
    whole = tally.whole()
    assert (whole["counts"]["count"], whole["maxima"]["third"], whole["sums"]["third"]) == (2**24 + 1, 1 / 3, 1 / 3)


def test_rollout_batch_places_everything_where_it_belongs():
    long = {"prompt_ids": [5, 6], "response_ids": [7, 8, 9], "response_logprobs": [-0.1, -0.2, -0.3]}
    short = {"prompt_ids": [4], "response_ids": [3], "response_logprobs": [-2.0]}
    rows = [
        SimpleNamespace(**long, rewards=[0, 0, 1.0], loss_mask=True),
        SimpleNamespace(**short, rewards=[0.5], loss_mask=False),
    ]
    made = RolloutBatch.from_transitions(rows)
    assert made.input_ids.tolist() == [[5, 6, 7, 8, 9], [4, 3, 0, 0, 0]]
    assert made.lengths.tolist() == [5, 2]
    assert made.response_mask.int().tolist() == [[0, 1, 1, 1], [1, 0, 0, 0]]
    assert made.mu_logp.tolist() == [pytest.approx([0, -0.1, -0.2, -0.3]), pytest.approx([-2.0, 0, 0, 0])]
    assert made.rewards.tolist() == [1.0, 0.5]
    assert made.kept.tolist() == [True, False]
    alone = made.select(torch.tensor([1]))
    assert alone.input_ids.tolist() == [[4, 3]]
    assert alone.response_mask.tolist() == [[True]]


TRANSITION = st.builds(
    lambda prompt, response, reward, kept: SimpleNamespace(
        prompt_ids=prompt,
        response_ids=[token for token, _ in response],
        response_logprobs=[logp for _, logp in response],
        rewards=[0.0] * (len(response) - 1) + [reward],
        loss_mask=kept,
    ),
    st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=5),
    st.lists(st.tuples(st.integers(0, 2**31 - 1), st.floats(-20, 0, width=32)), min_size=1, max_size=7),
    st.floats(-1, 1, width=32),
    st.booleans(),
)


@settings(max_examples=100, deadline=None)
@given(parts=st.lists(st.lists(TRANSITION, max_size=4), min_size=1, max_size=4).filter(any), data=st.data())
def test_what_the_processes_sampled_becomes_one_batch_in_their_order(parts, data):
    """Packed on each process, gathered (what is gathered passes as a pickle), unpacked: no token, log mu or reward is
    lost, moved or rounded, and no part of the batch is."""
    packed = [pickle.loads(pickle.dumps(Packed.of(own))) for own in parts]
    batch = RolloutBatch.unpack(packed)
    rows = [transition for own in parts for transition in own]
    chosen = data.draw(st.lists(st.integers(0, len(rows) - 1), min_size=1, max_size=6))
    indices = torch.tensor(chosen)
    for made, expected in ((batch, rows), (batch.select(indices), [rows[i] for i in chosen])):
        width = max(len(t.prompt_ids) + len(t.response_ids) for t in expected)
        assert made.input_ids.shape == (len(expected), width)
        assert made.input_ids.dtype == torch.int32
        for i, t in enumerate(expected):
            prompt, response = len(t.prompt_ids), len(t.response_ids)
            padding = [0] * (width - prompt - response)
            assert made.input_ids[i].tolist() == t.prompt_ids + t.response_ids + padding
            assert made.lengths[i] == prompt + response
            assert made.response_mask[i].tolist() == [False] * (prompt - 1) + [True] * response + [False] * len(padding)
            assert made.mu_logp[i].tolist() == [0] * (prompt - 1) + t.response_logprobs + padding
            assert (made.rewards[i], made.kept[i]) == (t.rewards[-1], t.loss_mask)


def test_what_travels_is_eight_bytes_a_response_token_and_no_padding():
    def row(response: int):
        numbers = {"prompt_ids": [1] * 10, "response_ids": [2] * response, "response_logprobs": [-1.0] * response}
        return SimpleNamespace(**numbers, rewards=[1.0], loss_mask=True)

    packed = pickle.dumps(Packed.of([row(20_000)] + [row(10)] * 100))
    assert len(packed) < 8 * (20_000 + 100 * 10) + 4 * 101 * 10 + 101 * 21 + 3000
