"""Objectives, advantages and the aggregation, against loops in FP64 and against exact enumeration."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from learners.advantages import group_mean
from learners.objectives import OBJECTIVES, PolicyBatch, aggregate


def random_batch(
    seed: int, rows: int, width: int, with_gradient: bool = True
) -> tuple[PolicyBatch, np.random.Generator]:
    """Responses of 1 to `width` tokens at random places, FP64 so that the formulas can be compared exactly."""
    rng = np.random.default_rng(seed)
    mask = np.zeros((rows, width), bool)
    for row in mask:
        start = rng.integers(0, width)
        row[start : rng.integers(start, width) + 1] = True
    logp, mu, old = (-rng.exponential(1.0, (rows, width)) - 1e-3 for _ in range(3))
    near = rng.random() < 0.5  # half of the cases: engines that nearly agree
    if near:
        mu, old = logp + rng.normal(0, 0.05, logp.shape), logp + rng.normal(0, 0.2, logp.shape)
    logp = torch.tensor(logp, requires_grad=with_gradient)
    junk = torch.tensor(np.where(mask, 0.0, np.nan))  # what lies outside the mask must never be read
    return PolicyBatch(
        logp=logp,
        mu_logp=torch.tensor(mu) + junk,
        advantages=torch.tensor(rng.normal(0, 1, rows)),
        mask=torch.tensor(mask),
        old_logp=torch.tensor(old) + junk,
    ), rng


def reference_loss(name: str, logp, mu, old, advantage: float, thresholds: dict) -> tuple[list, list]:
    """Loss and its derivative by log pi for one response, token by token, in plain Python floats."""
    losses, slopes = [], []
    weight = math.exp(sum(p - m for p, m in zip(logp, mu, strict=True)))
    for p, o in zip(logp, old, strict=True):
        if name == "pg-seq-is":
            losses.append(-weight * advantage * p)
            slopes.append(-weight * advantage)
        elif name == "grpo":
            ratio = math.exp(p - o)
            low, high = 1 - thresholds["clip_low"], 1 + thresholds["clip_high"]
            clipped = min(max(ratio, low), high)
            losses.append(max(-advantage * ratio, -advantage * clipped))
            takes_clipped = -advantage * clipped > -advantage * ratio
            slopes.append(0.0 if takes_clipped else -advantage * ratio)
        else:
            raise AssertionError(f"no reference for {name}")
    return losses, slopes


@pytest.mark.parametrize("name", OBJECTIVES)
@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), rows=st.integers(1, 6), width=st.integers(1, 7))
def test_loss_and_gradient_equal_a_loop_over_tokens(name, seed, rows, width):
    batch, rng = random_batch(seed, rows, width)
    objective = OBJECTIVES[name]
    thresholds = {key: value * rng.uniform(0.5, 1.5) for key, value in objective.thresholds.items()}
    kept = torch.tensor(rng.random(rows) < 0.8)
    denominator = float(rng.integers(1, 100))
    loss, _ = objective(batch, **thresholds)
    total = aggregate(loss, batch.mask, kept, denominator)
    total.backward()
    expected, slopes = 0.0, np.zeros((rows, width))
    for i in range(rows):
        places = np.flatnonzero(batch.mask[i].numpy())
        columns = [t[i, places].detach().tolist() for t in (batch.logp, batch.mu_logp, batch.old_logp)]
        losses, row_slopes = reference_loss(name, *columns, batch.advantages[i].item(), thresholds)
        if kept[i]:
            expected += sum(losses) / denominator
            slopes[i, places] = np.array(row_slopes) / denominator
    assert total.item() == pytest.approx(expected, rel=1e-10, abs=1e-12)
    np.testing.assert_allclose(batch.logp.grad.numpy(), slopes, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_micro_batches_add_up_to_the_batch(name):
    batch, _ = random_batch(3, 6, 5)
    kept = torch.ones(6, dtype=torch.bool)

    def gradient(parts):
        batch.logp.grad = None
        for part in parts:
            piece = PolicyBatch(
                batch.logp[part], batch.mu_logp[part], batch.advantages[part], batch.mask[part], batch.old_logp[part]
            )
            loss, _ = OBJECTIVES[name](piece)
            aggregate(loss, piece.mask, kept[part], 6 * 5).backward()
        return batch.logp.grad.clone()

    whole = gradient([slice(0, 6)])
    torch.testing.assert_close(gradient([slice(0, 1), slice(1, 4), slice(4, 6)]), whole, rtol=1e-12, atol=1e-14)


class ToyPolicies:
    """Three tokens, up to four steps, token 0 ends. pi has parameters, mu is another policy; both are enumerable."""

    def __init__(self, steps: int = 4, mu_equals_pi: bool = False):
        generator = torch.Generator().manual_seed(5)
        self.prefixes = [p for n in range(steps) for p in itertools.product((1, 2), repeat=n)]
        self.index = {prefix: i for i, prefix in enumerate(self.prefixes)}
        self.theta = torch.randn(len(self.prefixes), 3, generator=generator, dtype=torch.float64).requires_grad_()
        noise = 0.0 if mu_equals_pi else 0.4
        other = self.theta.detach() + noise * torch.randn(self.theta.shape, generator=generator, dtype=torch.float64)
        self.log_mu = other.log_softmax(1)
        self.sequences = []
        for n in range(1, steps + 1):
            for body in itertools.product((1, 2), repeat=n - 1):
                self.sequences += [(*body, 0)] if n < steps else [(*body, last) for last in range(3)]
        self.rewards = torch.rand(len(self.sequences), generator=generator, dtype=torch.float64)

    def batch(self) -> PolicyBatch:
        """Every sequence once."""
        log_pi, width = self.theta.log_softmax(1), max(map(len, self.sequences))
        rows = [[self.index[s[:t]] for t in range(len(s))] for s in self.sequences]
        states = torch.tensor([row + [0] * (width - len(row)) for row in rows])
        tokens = torch.tensor([list(s) + [0] * (width - len(s)) for s in self.sequences])
        mask = torch.tensor([[True] * len(s) + [False] * (width - len(s)) for s in self.sequences])
        return PolicyBatch(
            logp=log_pi[states, tokens],
            mu_logp=self.log_mu[states, tokens],
            advantages=self.rewards,
            mask=mask,
            old_logp=log_pi.detach()[states, tokens],
        )

    def probabilities(self, logp: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return (logp * mask).sum(1).exp()

    def true_gradient(self) -> torch.Tensor:
        """Of J(pi) = sum over sequences of pi(sequence) x reward, by differentiating the sum itself."""
        batch = self.batch()
        value = (self.probabilities(batch.logp, batch.mask) * self.rewards).sum()
        return torch.autograd.grad(value, self.theta)[0]

    def expected_gradient(self, name: str) -> torch.Tensor:
        """Expectation under mu of minus the objective's gradient: sum over sequences of mu(sequence) x gradient."""
        batch = self.batch()
        loss, _ = OBJECTIVES[name](batch)
        weight = self.probabilities(batch.mu_logp, batch.mask)
        expectation = (weight * (loss * batch.mask).sum(1)).sum()
        return -torch.autograd.grad(expectation, self.theta)[0]


def test_the_enumeration_is_complete():
    toy = ToyPolicies()
    batch = toy.batch()
    assert toy.probabilities(batch.logp, batch.mask).sum().item() == pytest.approx(1, abs=1e-12)
    assert toy.probabilities(batch.mu_logp, batch.mask).sum().item() == pytest.approx(1, abs=1e-12)


def test_sequence_importance_weights_give_the_true_policy_gradient():
    toy = ToyPolicies()
    torch.testing.assert_close(toy.expected_gradient("pg-seq-is"), toy.true_gradient(), rtol=0, atol=1e-10)


def test_grpo_is_biased_when_the_sampler_differs():
    toy = ToyPolicies()
    error = (toy.expected_gradient("grpo") - toy.true_gradient()).norm() / toy.true_gradient().norm()
    assert error > 0.05


@pytest.mark.parametrize("name", OBJECTIVES)
def test_without_mismatch_every_objective_gives_the_policy_gradient(name):
    toy = ToyPolicies(mu_equals_pi=True)
    torch.testing.assert_close(toy.expected_gradient(name), toy.true_gradient(), rtol=0, atol=1e-10)


def test_group_mean_advantage_against_numpy():
    rng = np.random.default_rng(0)
    rewards = rng.integers(0, 2, (5, 4)).astype(np.float64)
    rewards[2] = 1.0  # a group whose rewards are all equal teaches nothing
    ours = group_mean(torch.tensor(rewards.ravel()), 4).reshape(5, 4).numpy()
    for i in range(5):
        for j in range(4):
            others = [rewards[i, k] for k in range(4) if k != j]
            leave_one_out = rewards[i, j] - sum(others) / 3
            assert ours[i, j] == pytest.approx(leave_one_out * 3 / 4, abs=1e-12)
    assert (ours[2] == 0).all()


def test_importance_weights_carry_no_gradient():
    batch, _ = random_batch(1, 3, 4)
    batch.mu_logp.requires_grad_()
    loss, _ = OBJECTIVES["pg-seq-is"](batch)
    aggregate(loss, batch.mask, torch.ones(3, dtype=torch.bool), 1.0).backward()
    assert batch.mu_logp.grad is None
