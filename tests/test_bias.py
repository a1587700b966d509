"""The objectives and rejections in expectation, against exact enumeration: what is unbiased, and which way the rest
errs."""

import math

import pytest
import torch

from learners.objectives import OBJECTIVES
from tests.toy_policies import ToyPolicies, both_probabilities, relative_error


def test_the_enumeration_is_complete():
    for probabilities in both_probabilities(ToyPolicies()):
        assert probabilities.sum().item() == pytest.approx(1, abs=1e-12)


UNBIASED = {  # the one, and what becomes it without its limit
    "pg-seq-is": {}, "pg-seq-tis": {"tis_cap": 1e9}, "pg-seq-mis": {"mis_cap": 1e9}, "grpo-seq-tis": {"tis_cap": 1e9},
    "grpo-seq-mis": {"mis_cap": 1e9}, "vespo": {"vespo_k_positive": 1.0, "vespo_lambda_positive": 0.0},
}  # fmt: skip


@pytest.mark.parametrize("name", UNBIASED)
def test_sequence_importance_weights_give_the_true_policy_gradient(name):
    toy = ToyPolicies()
    made = toy.expected_gradient(name, **UNBIASED[name])
    torch.testing.assert_close(made, toy.true_gradient(), rtol=0, atol=1e-10)


CAP = 1.2  # exceeded by several sequences of the toy, so that it matters


def test_truncation_is_biased_by_what_was_cut_off():
    """min(w, C) mu = pi - (pi - C mu)+, so the bias is minus the excess probability's part of the gradient."""
    toy = ToyPolicies()
    pi, mu = both_probabilities(toy)
    excess = (pi - CAP * mu).clamp(min=0)
    bias = toy.expected_gradient("pg-seq-tis", tis_cap=CAP) - toy.true_gradient()
    torch.testing.assert_close(bias, -toy.gradient_of_sum(excess), rtol=0, atol=1e-10)
    assert 0.02 < relative_error(toy.expected_gradient("pg-seq-tis", tis_cap=CAP), toy.true_gradient()) < 0.5


def test_masking_is_biased_by_everything_that_was_dropped():
    """w 1{w <= C} mu = pi 1{w <= C}, so the bias is minus the dropped sequences' part, more than truncation's."""
    toy = ToyPolicies()
    pi, mu = both_probabilities(toy)
    dropped = pi.where(pi > CAP * mu, torch.zeros_like(pi))
    assert 0 < (dropped > 0).sum() < len(pi)
    masked = toy.expected_gradient("pg-seq-mis", mis_cap=CAP)
    torch.testing.assert_close(masked - toy.true_gradient(), -toy.gradient_of_sum(dropped), rtol=0, atol=1e-10)
    truncated = toy.expected_gradient("pg-seq-tis", tis_cap=CAP)
    assert relative_error(masked, toy.true_gradient()) > relative_error(truncated, toy.true_gradient())


def one_state(w: float) -> ToyPolicies:
    """One step, one token right, whose pi / mu is w; the others share the rest."""
    toy = ToyPolicies(steps=1)
    toy.rewards = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
    toy.theta.data[0] = torch.tensor([0.0, 0.0, 1.0])
    pi = toy.theta.detach()[0].softmax(0)
    mu = torch.tensor([0.0, 0.0, pi[2] / w], dtype=torch.float64)
    mu[:2] = (1 - mu[2]) / 2
    toy.log_mu = mu.log()[None]
    return toy


UNDERRATED = {  # what is left of the push towards a token with w = 3
    "pg-seq-tis": ({"tis_cap": 2.0}, 2 / 3), "pg-token-tis": ({"tis_cap": 2.0}, 2 / 3),
    "pg-seq-mis": ({"mis_cap": 2.0}, 0), "vespo": ({}, 3 * math.exp(-6)), "grpo": ({}, 1 / 3), "gmpo": ({}, 1 / 3),
    "sapo": ({}, 1 / 3), "grpo-bypass": ({}, 0), "gspo-bypass": ({}, 0), "dppo-tv": ({}, 0), "dppo-kl": ({}, 0),
}  # fmt: skip


@pytest.mark.parametrize("name", UNDERRATED)
def test_what_the_sampler_rarely_samples_is_underrated(name):
    thresholds, left = UNDERRATED[name]
    toy = one_state(3.0)
    made, true = toy.expected_gradient(name, **thresholds)[0, 2], toy.true_gradient()[0, 2]
    assert (made / true).item() == pytest.approx(left, abs=1e-10)


def test_a_smooth_weight_overrates_what_the_sampler_samples_too_often():
    toy = one_state(0.8)
    made, true = toy.expected_gradient("vespo")[0, 2], toy.true_gradient()[0, 2]
    assert (made / true).item() == pytest.approx(0.8 * math.exp(0.6), abs=1e-10)  # phi(w) / w, 1.46
    toy.rewards = -toy.rewards
    made, true = toy.expected_gradient("vespo")[0, 2], toy.true_gradient()[0, 2]
    assert (made / true).item() == pytest.approx(0.64 * math.exp(0.4), abs=1e-10)  # 0.95: k and lambda are others


def test_token_weights_leave_the_other_tokens_to_the_sampler():
    """w_t alone corrects step t: the expectation is the gradient of sum over t of J(mu, but pi at step t)."""
    toy = ToyPolicies()
    batch = toy.batch()
    value = 0.0
    for t in range(batch.mask.shape[1]):
        mixed = batch.mu_logp.clone()
        mixed[:, t] = batch.logp[:, t]
        value = value + (toy.probabilities(mixed, batch.mask) * toy.rewards * batch.mask[:, t]).sum()
    expected = torch.autograd.grad(value, toy.theta)[0]
    made = toy.expected_gradient("pg-token-is")
    torch.testing.assert_close(made, expected, rtol=0, atol=1e-10)
    assert 0.03 < relative_error(made, toy.true_gradient()) < 1.0
    assert relative_error(made, toy.true_gradient()) < relative_error(
        toy.expected_gradient("reinforce"), toy.true_gradient()
    )


def test_token_truncation_adds_its_own_bias():
    """min(w_t, C) mu_t = pi_t - (pi_t - C mu_t)+ at each step, the other steps being mu's."""
    toy = ToyPolicies()
    batch = toy.batch()
    others = toy.probabilities(batch.mu_logp, batch.mask)[:, None] / batch.mu_logp.exp()
    excess = (batch.logp.exp() - CAP * batch.mu_logp.exp()).clamp(min=0).detach()
    value = (others * excess * toy.rewards[:, None] * batch.logp * batch.mask).sum()
    lost = torch.autograd.grad(value, toy.theta)[0]
    bias = toy.expected_gradient("pg-token-tis", tis_cap=CAP) - toy.expected_gradient("pg-token-is")
    torch.testing.assert_close(bias, -lost, rtol=0, atol=1e-10)
    assert lost.norm() > 0.01 * toy.true_gradient().norm()


def test_without_a_correction_the_gradient_is_that_of_the_samplers_distribution():
    toy = ToyPolicies()
    pi, mu = both_probabilities(toy)
    for name in ("reinforce", "grpo", "gspo", "gmpo", "sapo", "cispo"):  # in a step's first update, where pi is pi_old
        bias = toy.expected_gradient(name) - toy.true_gradient()
        torch.testing.assert_close(bias, toy.gradient_of_sum(mu - pi), rtol=0, atol=1e-10)
        assert relative_error(toy.expected_gradient(name), toy.true_gradient()) > 0.05


@pytest.mark.parametrize("name", OBJECTIVES)
def test_without_mismatch_every_objective_gives_the_policy_gradient(name):
    toy = ToyPolicies(mu_equals_pi=True)
    torch.testing.assert_close(toy.expected_gradient(name), toy.true_gradient(), rtol=0, atol=1e-10)


def test_a_smooth_weight_is_biased_by_how_far_it_is_from_w():
    toy = ToyPolicies()
    pi, mu = both_probabilities(toy)
    w = pi / mu
    phi = w**2 * (3 * (1 - w)).exp()  # all rewards are positive
    made = toy.expected_gradient("vespo")
    torch.testing.assert_close(made - toy.true_gradient(), toy.gradient_of_sum((phi - w) * mu), rtol=0, atol=1e-10)
    assert relative_error(made, toy.true_gradient()) > 0.05


def token_weights(toy: ToyPolicies) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(mu of every sequence, (N, 1)), pi / mu of every token and |pi - mu| of it, (N, steps)."""
    batch = toy.batch()
    ratio = (batch.logp - batch.mu_logp).exp().detach()
    return both_probabilities(toy)[1][:, None], ratio, (batch.logp.exp() - batch.mu_logp.exp()).abs().detach()


def test_clips_that_see_the_mismatch_drop_what_the_sampler_underrates():
    """The rewards are positive. In the first update nothing has moved, and yet tokens are clipped."""
    toy = ToyPolicies()
    mu, ratio, apart = token_weights(toy)
    clipped = {"grpo-bypass": ratio > 1.2, "dppo-tv": (ratio > 1) & (apart > 0.03)}
    for name, thresholds in {"grpo-bypass": {}, "dppo-tv": {"dppo_delta": 0.03}}.items():
        part = mu * ratio * clipped[name]
        bias = toy.expected_gradient(name, **thresholds) - toy.expected_gradient("pg-token-is")
        torch.testing.assert_close(bias, -toy.gradient_of_sum(part), rtol=0, atol=1e-10)
        assert bias.norm() > 0.05 * toy.true_gradient().norm()


def test_a_sequence_clip_that_sees_the_mismatch_takes_a_root_of_the_weight():
    toy = ToyPolicies()
    pi, mu = both_probabilities(toy)
    root = (pi / mu) ** (1 / toy.batch().mask.sum(1))
    made = toy.expected_gradient("gspo-bypass", clip_low=0.1, clip_high=0.1)
    expected = toy.gradient_of_sum(mu * root.where(root <= 1.1, torch.zeros_like(root)))
    torch.testing.assert_close(made, expected, rtol=0, atol=1e-10)
    assert relative_error(made, toy.true_gradient()) > 0.05


def test_the_penalty_pulls_towards_the_sampler():
    """What it adds is the gradient of -tau E_mu[sum_t (log pi/mu)^2], which is 0 at mu."""
    toy = ToyPolicies()
    batch = toy.batch()
    mu = toy.probabilities(batch.mu_logp, batch.mask)
    distance = (mu[:, None] * (batch.logp - batch.mu_logp).square() * batch.mask).sum()
    slope = torch.autograd.grad(distance, toy.theta)[0]
    for name in ("dppo-tv", "dppo-kl"):
        added = toy.expected_gradient(name, dppo_tau=0.3) - toy.expected_gradient(name)
        torch.testing.assert_close(added, -0.3 * slope, rtol=0, atol=1e-10)
    assert slope.norm() > 0.1


# ---------------------------------------------------------------------------------------------------------- rejections

OF_RESPONSES = {
    "geo": {"geo_low": 0.9, "geo_high": 1.1}, "k3": {"k3_cap": 0.05}, "max-token": {"token_k2_cap": 0.1},
    "outlier": {"outlier_low": 0.6, "outlier_high": 1.5}, "veto": {"veto_below": 0.7},
}  # fmt: skip
OF_TOKENS = {"icepop": {"icepop_low": 0.75, "icepop_high": 1.25}, "kpop": {"kpop_cap": 0.03}, "m2po": {"m2_cap": 0.04}}


@pytest.mark.parametrize(("name", "thresholds"), [*OF_RESPONSES.items(), *OF_TOKENS.items()])
def test_a_rejection_is_biased_by_what_it_rejects(name, thresholds):
    toy = ToyPolicies()
    pi, _ = both_probabilities(toy)
    keeps = toy.keeps(name, **thresholds)
    dropped = toy.batch().mask & ~keeps
    assert dropped.any() and keeps.any()
    assert (dropped.any(1) & keeps.any(1)).any() == (name in OF_TOKENS), "parts of a response, or the whole"
    bias = toy.expected_gradient("pg-seq-is", keeps) - toy.true_gradient()
    torch.testing.assert_close(bias, -toy.gradient_of_sum(pi[:, None] * dropped), rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", OF_RESPONSES)
def test_where_all_earn_the_same_a_rejection_pushes_towards_the_responses_it_keeps(name):
    """The gradient should be 0, and is that of the probability that pi gives to what is kept."""
    toy = ToyPolicies()
    toy.rewards = torch.ones_like(toy.rewards)
    torch.testing.assert_close(toy.true_gradient(), torch.zeros_like(toy.theta), rtol=0, atol=1e-10)
    keeps = toy.keeps(name, **OF_RESPONSES[name])
    batch = toy.batch()
    kept = toy.probabilities(batch.logp, batch.mask)[keeps.any(1)].sum()
    expected = torch.autograd.grad(kept, toy.theta)[0]
    torch.testing.assert_close(toy.expected_gradient("pg-seq-is", keeps), expected, rtol=0, atol=1e-10)
    assert expected.norm() > 0.01


@pytest.mark.parametrize("name", ["icepop", "kpop"])
def test_where_all_earn_the_same_a_rejection_pushes_towards_the_tokens_it_keeps(name):
    toy = ToyPolicies()
    toy.rewards = torch.ones_like(toy.rewards)
    keeps = toy.keeps(name, **OF_TOKENS[name])
    made = toy.expected_gradient("pg-seq-is", keeps)
    states, tokens = toy.places()
    mask = toy.batch().mask
    for state, token, kept in zip(states[mask].tolist(), tokens[mask].tolist(), keeps[mask].tolist(), strict=True):
        assert made[state, token] >= -1e-12 if kept else made[state, token] <= 1e-12
    assert made.norm() > 0.01


def test_opsm_spares_what_the_policy_has_left():
    """Of equally bad responses those are not pushed down whose log mu - log pi is large: pi goes towards them."""
    toy = ToyPolicies()
    toy.rewards = -torch.ones_like(toy.rewards)
    keeps = toy.keeps("opsm", opsm_delta=0.05)
    batch = toy.batch()
    spared = toy.probabilities(batch.logp, batch.mask)[~keeps.any(1)].sum()
    assert 0.01 < spared < 0.99
    expected = torch.autograd.grad(spared, toy.theta)[0]
    torch.testing.assert_close(toy.expected_gradient("pg-seq-is", keeps), expected, rtol=0, atol=1e-10)
    toy.rewards = -toy.rewards
    assert (toy.keeps("opsm", opsm_delta=0.05) == batch.mask).all(), "what is good is never rejected"
