"""The objectives, token by token against plain Python, and in expectation against exact enumeration."""

import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from learners.objectives import OBJECTIVES, PolicyBatch, defaults, reference_kl


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
        mu, old = (np.minimum(logp + rng.normal(0, spread, logp.shape), -1e-3) for spread in (0.05, 0.2))
    logp = torch.tensor(logp, requires_grad=with_gradient)
    junk = torch.tensor(np.where(mask, 0.0, np.nan))  # what lies outside the mask must never be read
    return PolicyBatch(
        logp=logp,
        mu_logp=torch.tensor(mu) + junk,
        advantages=torch.tensor(rng.normal(0, 1, rows)),
        mask=torch.tensor(mask),
        old_logp=torch.tensor(old) + junk,
    ), rng


def clip(value: float, low: float, high: float) -> float:
    return low if value < low else high if value > high else value


def surrogate(ratio: float, advantage: float, low: float, high: float, dual: float = 0.0):
    """(loss, its derivative by the log of the ratio, clipped?, dual-clipped?)"""
    loss, slope, clipped, dual_clipped = -advantage * ratio, -advantage * ratio, False, False
    if -advantage * clip(ratio, 1 - low, 1 + high) > loss:
        loss, slope, clipped = -advantage * clip(ratio, 1 - low, 1 + high), 0.0, True
    if dual and advantage < 0 and loss > -advantage * dual:
        loss, slope, dual_clipped = -advantage * dual, 0.0, True
    return loss, slope, clipped, dual_clipped


def binary_kl(p: float, q: float) -> float:
    return p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))


def weigh(name: str, log_weight: float, th: SimpleNamespace) -> tuple[float, dict[str, bool]]:
    """The weight that a loss is multiplied by, and what was done to the weight as it was."""
    plain = math.exp(log_weight)
    used = math.exp(clip(log_weight, -th.log_weight_clamp, th.log_weight_clamp)) if th.log_weight_clamp else plain
    if name.endswith("-tis"):
        return min(used, th.tis_cap), {"truncated_fraction": plain > th.tis_cap}
    if name.endswith("-mis"):
        return (used if used <= th.mis_cap else 0.0), {"masked_fraction": plain > th.mis_cap}
    if name == "icepop":
        outside = not th.icepop_low <= plain <= th.icepop_high
        return (0.0 if outside else used), {"masked_fraction": outside}
    return used, {}


def reference(name: str, logp: list, mu: list, old: list, advantage: float, options: dict):
    """One response in plain Python: losses, their derivatives by log pi, and the statistics, token by token."""
    th = SimpleNamespace(**{"log_weight_clamp": 0.0, "dual_clip": 0.0} | options)
    losses, slopes, flags = [], [], []
    for p, m, o in zip(logp, mu, old, strict=True):
        flag = {}
        if name == "reinforce":
            loss, slope = -advantage * p, -advantage
        elif name.startswith("pg-"):
            weight, flag = weigh(name, sum(logp) - sum(mu) if "seq" in name else p - m, th)
            loss, slope = -weight * advantage * p, -weight * advantage
        elif name.startswith("grpo") or name == "icepop":
            loss, slope, clipped, dual = surrogate(math.exp(p - o), advantage, th.clip_low, th.clip_high, th.dual_clip)
            weight = 1.0
            if name != "grpo":
                weight, flag = weigh(name, sum(old) - sum(mu) if "seq" in name else o - m, th)
            loss, slope = weight * loss, weight * slope
            flag["clip_fraction"] = clipped
            if th.dual_clip:
                flag["dual_clip_fraction"] = dual
        elif name == "gspo":
            ratio = math.exp((sum(logp) - sum(old)) / len(logp))
            loss, slope, flag["clip_fraction"], _ = surrogate(ratio, advantage, th.clip_low, th.clip_high)
        elif name == "cispo":
            ratio = math.exp(p - o)
            weight = clip(ratio, 1 - th.clip_low, 1 + th.clip_high)
            flag["clip_fraction"] = weight != ratio
            loss, slope = -weight * advantage * p, -weight * advantage
        elif name in ("dppo-tv", "dppo-kl"):
            pi_p, mu_p = math.exp(p), math.exp(m)
            apart = abs(pi_p - mu_p) if name == "dppo-tv" else binary_kl(mu_p, pi_p)
            away = (advantage > 0 and pi_p > mu_p) or (advantage < 0 and pi_p < mu_p)
            flag["masked_fraction"] = away and apart > th.dppo_delta
            loss = slope = 0.0 if flag["masked_fraction"] else -advantage * pi_p / mu_p
        else:
            raise AssertionError(f"no reference for {name}")
        losses.append(loss)
        slopes.append(slope)
        flags.append(flag)
    return losses, slopes, flags


def draw_thresholds(name: str, rng: np.random.Generator) -> dict[str, float]:
    """Around the defaults, and the optional ones switched on half of the time."""
    chosen = {key: value * rng.uniform(0.3, 1.0) for key, value in OBJECTIVES[name].thresholds.items()}
    if "dual_clip" in chosen:
        chosen["dual_clip"] = float(rng.choice([0.0, rng.uniform(1.05, 2)]))
    if "log_weight_clamp" in chosen:
        chosen["log_weight_clamp"] = float(rng.choice([0.0, rng.uniform(0.1, 3)]))
    return chosen


@pytest.mark.parametrize("name", OBJECTIVES)
@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), rows=st.integers(1, 6), width=st.integers(1, 7))
def test_loss_gradient_and_fractions_equal_plain_python(name, seed, rows, width):
    batch, rng = random_batch(seed, rows, width)
    thresholds = draw_thresholds(name, rng)
    loss, statistics = OBJECTIVES[name](batch, **thresholds)
    loss[batch.mask].sum().backward()
    for i in range(rows):
        places = np.flatnonzero(batch.mask[i].numpy())
        columns = [t[i, places].detach().tolist() for t in (batch.logp, batch.mu_logp, batch.old_logp)]
        losses, slopes, flags = reference(name, *columns, batch.advantages[i].item(), thresholds)
        np.testing.assert_allclose(loss[i, places].detach().numpy(), losses, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(batch.logp.grad[i, places].numpy(), slopes, rtol=1e-9, atol=1e-12)
        for key in flags[0]:
            made = statistics[key][i].expand(width)[places].tolist()
            assert made == [flag[key] for flag in flags], key
    assert (batch.logp.grad[~batch.mask] == 0).all()
    assert all(torch.isfinite(v[batch.mask] if v.shape == batch.mask.shape else v).all() for v in statistics.values())


@pytest.mark.parametrize("name", OBJECTIVES)
def test_equal_rewards_teach_nothing(name):
    batch, _ = random_batch(4, 5, 4)
    batch.advantages = torch.zeros_like(batch.advantages)
    loss, _ = OBJECTIVES[name](batch)
    loss[batch.mask].sum().backward()
    assert (batch.logp.grad == 0).all()


def test_truncation_and_masking_are_two_things():
    """A weight of 5 with a cap of 3: TIS leaves 3, MIS leaves 0; a weight of 2 is left as it is by both."""
    batch = PolicyBatch(
        logp=torch.tensor([[0.0, 0.0]], requires_grad=True),
        mu_logp=-torch.tensor([[5.0, 2.0]]).log(),
        advantages=torch.ones(1),
        mask=torch.ones(1, 2, dtype=torch.bool),
        old_logp=torch.zeros(1, 2),
    )
    slopes = {}
    for name in ("pg-token-tis", "grpo-token-tis", "pg-seq-tis", "pg-seq-mis", "grpo-seq-tis", "grpo-seq-mis"):
        cap = {"tis_cap": 3.0} if name.endswith("tis") else {"mis_cap": 3.0}
        loss, _ = OBJECTIVES[name](batch, **cap)
        slopes[name] = torch.autograd.grad(-loss.sum(), batch.logp)[0][0].tolist()
    assert slopes["pg-token-tis"] == slopes["grpo-token-tis"] == pytest.approx([3, 2])
    assert slopes["pg-seq-tis"] == slopes["grpo-seq-tis"] == pytest.approx([3, 3])  # of the response: 10, cut to 3
    assert slopes["pg-seq-mis"] == slopes["grpo-seq-mis"] == [0, 0]


def test_recipes_are_the_authors_constants():
    """As read in their code of October 2025."""
    oat, verl = (lambda name, r=recipe: defaults(name, r) for recipe in ("oat", "verl"))
    assert (oat("grpo")["clip_low"], oat("grpo")["clip_high"]) == (0.2, 0.2)
    assert (verl("grpo")["clip_low"], verl("grpo")["clip_high"]) == (0.2, 0.28)
    assert (oat("grpo-token-tis")["tis_cap"], verl("grpo-token-tis")["tis_cap"]) == (2, 3)
    assert (oat("grpo-seq-mis")["mis_cap"], verl("grpo-seq-mis")["mis_cap"]) == (10, 3)
    for made in (oat, verl):
        assert (made("pg-seq-tis")["tis_cap"], made("pg-seq-mis")["mis_cap"]) == (3, 3)
        assert (made("gspo")["clip_low"], made("gspo")["clip_high"]) == (3e-4, 4e-4)
    assert (oat("pg-seq-is")["log_weight_clamp"], verl("pg-seq-is")["log_weight_clamp"]) == (0, 20)
    assert (oat("gspo")["advantage"], verl("gspo")["advantage"]) == ("group-std", "group-mean")


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_reference_kl_equals_plain_python(seed):
    batch, _ = random_batch(seed, 3, 4)
    made = reference_kl(batch.logp, batch.mu_logp, batch.mask)
    made.sum().backward()
    for p, r, k, g in zip(
        batch.logp[batch.mask].tolist(), batch.mu_logp[batch.mask].tolist(),
        made[batch.mask].tolist(), batch.logp.grad[batch.mask].tolist(), strict=True,
    ):  # fmt: skip
        assert k == pytest.approx(math.exp(r - p) - 1 - (r - p), rel=1e-8, abs=1e-13)
        assert g == pytest.approx(1 - math.exp(r - p), rel=1e-8, abs=1e-13)


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

    def gradient_of_sum(self, weights: torch.Tensor) -> torch.Tensor:
        """Of sum over sequences of weight x reward x log pi(sequence)."""
        batch = self.batch()
        value = (weights.detach() * self.rewards * (batch.logp * batch.mask).sum(1)).sum()
        return torch.autograd.grad(value, self.theta)[0]

    def expected_gradient(self, name: str, **thresholds: float) -> torch.Tensor:
        """Expectation under mu of minus the objective's gradient: sum over sequences of mu(sequence) x gradient."""
        batch = self.batch()
        loss, _ = OBJECTIVES[name](batch, **thresholds)
        weight = self.probabilities(batch.mu_logp, batch.mask)
        expectation = (weight * (loss * batch.mask).sum(1)).sum()
        return -torch.autograd.grad(expectation, self.theta)[0]


def both_probabilities(toy: ToyPolicies) -> tuple[torch.Tensor, torch.Tensor]:
    """(pi, mu) of every sequence."""
    batch = toy.batch()
    return tuple(toy.probabilities(logp, batch.mask).detach() for logp in (batch.logp, batch.mu_logp))


def relative_error(gradient: torch.Tensor, truth: torch.Tensor) -> float:
    return ((gradient - truth).norm() / truth.norm()).item()


def test_the_enumeration_is_complete():
    for probabilities in both_probabilities(ToyPolicies()):
        assert probabilities.sum().item() == pytest.approx(1, abs=1e-12)


def test_sequence_importance_weights_give_the_true_policy_gradient():
    toy = ToyPolicies()
    torch.testing.assert_close(toy.expected_gradient("pg-seq-is"), toy.true_gradient(), rtol=0, atol=1e-10)


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


@pytest.mark.parametrize("name", ["pg-seq-tis", "pg-seq-mis", "pg-token-tis"])
def test_a_cap_underrates_what_the_sampler_rarely_samples(name):
    """One step, one token right, and mu gives it a third of what pi does: the push towards it comes out too small."""
    toy = ToyPolicies(steps=1)
    toy.rewards = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
    toy.theta.data[0] = torch.tensor([0.0, 0.0, 1.0])
    pi = toy.theta.detach()[0].softmax(0)
    mu = torch.tensor([0.0, 0.0, pi[2] / 3], dtype=torch.float64)
    mu[:2] = (1 - mu[2]) / 2
    toy.log_mu = mu.log()[None]
    cap = {"tis_cap": 2.0} if name.endswith("tis") else {"mis_cap": 2.0}
    true, made = toy.true_gradient()[0, 2], toy.expected_gradient(name, **cap)[0, 2]
    # w = 3: truncated to 2 a third of the gradient is lost, masked all of it
    assert (made / true).item() == pytest.approx(2 / 3 if name.endswith("tis") else 0.0, abs=1e-10)


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
    bias = toy.expected_gradient("reinforce") - toy.true_gradient()
    torch.testing.assert_close(bias, toy.gradient_of_sum(mu - pi), rtol=0, atol=1e-10)
    assert relative_error(toy.expected_gradient("grpo"), toy.true_gradient()) > 0.05


@pytest.mark.parametrize("name", OBJECTIVES)
def test_without_mismatch_every_objective_gives_the_policy_gradient(name):
    toy = ToyPolicies(mu_equals_pi=True)
    torch.testing.assert_close(toy.expected_gradient(name), toy.true_gradient(), rtol=0, atol=1e-10)


def test_importance_weights_carry_no_gradient():
    for made in OBJECTIVES.values():
        batch, _ = random_batch(1, 3, 4)
        batch.mu_logp.requires_grad_()
        loss, statistics = made(batch)
        if made.name.startswith("dppo"):  # the ratio itself is the loss; nothing differentiates mu in the learner
            continue
        loss[batch.mask].sum().backward()
        assert batch.mu_logp.grad is None, made.name
        assert not any(values.requires_grad for values in statistics.values()), made.name
