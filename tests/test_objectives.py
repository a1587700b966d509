"""The objectives, token by token against plain Python; tests/test_bias.py has their expectations."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from learners.objectives import OBJECTIVES, RECIPES, THRESHOLDS, PolicyBatch, defaults, reference_kl

SIZES = {"near": (0.05, 0.2), "apart": (1.0, 1.0), "far": (30.0, 30.0)}  # of log pi/mu and of log pi/pi_old


def random_batch(seed: int, rows: int, width: int) -> tuple[PolicyBatch, np.random.Generator]:
    """Responses of 0 to `width` tokens at random places, some with gaps, some without an advantage; engines that nearly
    agree or are far apart. FP64, so that the formulas can be compared exactly."""
    rng = np.random.default_rng(seed)
    mask = np.zeros((rows, width), bool)
    for row in mask:
        start = rng.integers(0, width)
        row[start : rng.integers(start, width) + 1] = True
    if rng.random() < 0.5:
        mask &= rng.random(mask.shape) < 0.6
    logp = -rng.exponential(1.0, mask.shape) - 1e-3
    mu, old = (np.minimum(logp + rng.normal(0, spread, mask.shape), -1e-3) for spread in SIZES[rng.choice(list(SIZES))])
    junk = np.where(mask, 0.0, np.nan)  # what lies outside the mask must never be read
    return PolicyBatch(
        logp=torch.tensor(logp + junk, requires_grad=True),
        mu_logp=torch.tensor(mu + junk),
        advantages=torch.tensor(rng.normal(0, 1, rows) * (rng.random(rows) < 0.8)),
        mask=torch.tensor(mask),
        old_logp=torch.tensor(old + junk),
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
    told = {"sequence_weight" if "seq" in name else "token_weight": plain}
    if name.endswith("-tis"):
        return min(used, th.tis_cap), told | {"truncated_fraction": plain > th.tis_cap}
    if name.endswith("-mis"):
        return (used if used <= th.mis_cap else 0.0), told | {"masked_fraction": plain > th.mis_cap}
    if name == "icepop":
        outside = not th.icepop_low <= plain <= th.icepop_high
        return (0.0 if outside else used), told | {"masked_fraction": outside}
    return used, told


def reference(name: str, logp: list, mu: list, old: list, advantage: float, options: dict):
    """One response in plain Python: losses, their derivatives by log pi, and all statistics, token by token."""
    th = SimpleNamespace(**{"log_weight_clamp": 0.0, "dual_clip": 0.0} | options)
    if name.endswith("-bypass"):  # mu in the place of pi_old
        name, old = name.removesuffix("-bypass"), mu
    losses, slopes, flags = [], [], []
    for p, m, o in zip(logp, mu, old, strict=True):
        flag = {}
        if name == "reinforce":
            loss, slope = -advantage * p, -advantage
        elif name.startswith("pg-"):
            weight, flag = weigh(name, sum(logp) - sum(mu) if "seq" in name else p - m, th)
            loss, slope = -weight * advantage * p, -weight * advantage
        elif name == "vespo":
            side = "positive" if advantage >= 0 else "negative"
            k, lam = options[f"vespo_k_{side}"], options[f"vespo_lambda_{side}"]
            log_weight = sum(logp) - sum(mu)
            flag["sequence_weight"] = math.exp(log_weight)
            flag["phi"] = math.exp(k * log_weight + lam * (1 - math.exp(log_weight)))  # w^k exp(lambda (1 - w))
            loss, slope = -flag["phi"] * advantage * p, -flag["phi"] * advantage
        elif name.startswith("grpo") or name == "icepop":
            loss, slope, clipped, dual = surrogate(math.exp(p - o), advantage, th.clip_low, th.clip_high, th.dual_clip)
            weight = 1.0
            if name != "grpo":
                weight, flag = weigh(name, sum(old) - sum(mu) if "seq" in name else o - m, th)
            loss, slope = weight * loss, weight * slope
            flag["ratio"], flag["clip_fraction"] = math.exp(p - o), clipped
            if th.dual_clip:
                flag["dual_clip_fraction"] = dual
        elif name == "gspo":
            flag["ratio"] = ratio = math.exp((sum(logp) - sum(old)) / len(logp))
            loss, slope, flag["clip_fraction"], _ = surrogate(ratio, advantage, th.clip_low, th.clip_high)
        elif name == "gmpo":
            flag["ratio"], pushes_up = math.exp(p - o), advantage >= 0
            used = [(min if pushes_up else max)(a - b, clip(a - b, -th.clip_low, th.clip_high))
                    for a, b in zip(logp, old, strict=True)]  # fmt: skip
            loss = -advantage * math.exp(sum(used) / len(used))
            flag["clip_fraction"] = p - o > th.clip_high if pushes_up else p - o < -th.clip_low
            slope = 0.0 if flag["clip_fraction"] else loss  # len(used) losses, each with 1 / len(used) of this slope
        elif name == "sapo":
            tau = th.sapo_tau_positive if advantage > 0 else th.sapo_tau_negative
            sigmoid = 1 / (1 + math.exp(-tau * (math.exp(p - o) - 1)))
            flag["ratio"], flag["gate"] = math.exp(p - o), 4 * sigmoid * (1 - sigmoid)
            loss, slope = -advantage * sigmoid * 4 / tau, -advantage * flag["gate"] * math.exp(p - o)
        elif name == "cispo":
            flag["ratio"] = ratio = math.exp(p - o)
            weight = clip(ratio, 1 - th.clip_low, 1 + th.clip_high)
            flag["clip_fraction"] = weight != ratio
            loss, slope = -weight * advantage * p, -weight * advantage
        elif name in ("dppo-tv", "dppo-kl"):
            pi_p, mu_p = math.exp(p), math.exp(m)
            apart = abs(pi_p - mu_p) if name == "dppo-tv" else binary_kl(mu_p, pi_p)
            away = (advantage > 0 and pi_p > mu_p) or (advantage < 0 and pi_p < mu_p)
            flag["ratio"], flag["masked_fraction"] = pi_p / mu_p, away and apart > th.dppo_delta
            loss = slope = 0.0 if flag["masked_fraction"] else -advantage * pi_p / mu_p
            loss, slope = loss + th.dppo_tau * (p - m) ** 2, slope + 2 * th.dppo_tau * (p - m)
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
    if "dppo_tau" in chosen:
        chosen["dppo_tau"] = float(rng.choice([0.0, rng.uniform(0.001, 1)]))
    return chosen


@pytest.mark.parametrize("name", OBJECTIVES)
@settings(max_examples=80, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), rows=st.integers(1, 6), width=st.integers(1, 7))
def test_loss_gradient_and_fractions_equal_plain_python(name, seed, rows, width):
    batch, rng = random_batch(seed, rows, width)
    for other in (batch.mu_logp, batch.old_logp):  # larger ratios: tests/test_extreme_numbers.py
        assume(((batch.logp - other).detach()[batch.mask] < 88).all())
    thresholds = draw_thresholds(name, rng)
    loss, statistics = OBJECTIVES[name](batch, **thresholds)
    loss[batch.mask].sum().backward()
    for i in range(rows):
        places = np.flatnonzero(batch.mask[i].numpy())
        columns = [t[i, places].detach().tolist() for t in (batch.logp, batch.mu_logp, batch.old_logp)]
        losses, slopes, flags = reference(name, *columns, batch.advantages[i].item(), thresholds)
        np.testing.assert_allclose(loss[i, places].detach().numpy(), losses, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(batch.logp.grad[i, places].numpy(), slopes, rtol=1e-9, atol=1e-12)
        assert not flags or set(statistics) == set(flags[0])
        for key in flags[0] if flags else ():
            made = statistics[key][i].expand(width)[places].tolist()
            np.testing.assert_allclose(made, [flag[key] for flag in flags], rtol=1e-9, atol=1e-12, err_msg=key)
    assert (batch.logp.grad[~batch.mask] == 0).all()
    assert all(torch.isfinite(v[batch.mask] if v.shape == batch.mask.shape else v).all() for v in statistics.values())


@pytest.mark.parametrize("name", OBJECTIVES)
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_a_response_without_an_advantage_teaches_only_where_the_objective_says_so(name, seed):
    batch, rng = random_batch(seed, 6, 5)
    batch.advantages[::2] = 0.0
    thresholds = draw_thresholds(name, rng)
    loss, _ = OBJECTIVES[name](batch, **thresholds)
    loss[batch.mask].sum().backward()
    says = OBJECTIVES[name].trains_without_advantage(**thresholds)
    assert says == (thresholds.get("dppo_tau", 0.0) > 0)
    assert says or (batch.logp.grad[::2] == 0).all()
    assert not says or (batch.logp.grad[::2][batch.mask[::2]] != 0).all()
    assert not OBJECTIVES[name].trains_without_advantage(), "none does by default"


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


FRAMEWORKS = {  # (recipe, objective): what its sources say, read in August 2026
    ("trl", "grpo-seq-mis"): {"mis_cap": 3.0, "clip_high": 0.2, "advantage": "group-std"},
    ("trl", "grpo"): {"aggregation": "token-mean-batch"},
    ("trl", "sapo"): {"sapo_tau_positive": 1.0, "sapo_tau_negative": 1.05, "aggregation": "token-mean-sequence"},
    ("prime-rl", "dppo-tv"): {"dppo_delta": 0.2, "dppo_tau": 1e-3, "aggregation": "token-mean-batch"},
    ("prime-rl", "reinforce"): {"advantage": "group-mean"},
    ("prime-rl", "dppo-kl"): {"dppo_delta": 0.05},  # which it does not have
    ("skyrl", "dppo-tv"): {"dppo_delta": 0.2, "dppo_tau": 0.0}, ("skyrl", "dppo-kl"): {"dppo_delta": 0.05},
    ("skyrl", "grpo-seq-tis"): {"tis_cap": 5.0}, ("skyrl", "grpo-token-tis"): {"tis_cap": 2.0},
    ("slime", "grpo-token-tis"): {"tis_cap": 2.0, "clip_high": 0.2, "aggregation": "token-mean-sequence"},
    ("nemo-rl", "grpo-token-tis"): {"tis_cap": 2.0}, ("nemo-rl", "icepop"): {"icepop_low": 0.5, "icepop_high": 5.0},
    ("areal", "gmpo"): {"clip_low": 0.4, "clip_high": 0.4, "aggregation": "token-mean-sequence"},
    ("openrlhf", "grpo-token-tis"): {"tis_cap": 5.0}, ("openrlhf", "gspo"): {"aggregation": "token-mean-sequence"},
}  # fmt: skip
BANDS = {"oat": (0.999, 1.001), "verl": (0.999, 1.001), "nemo-rl": (0.999, 1.002), "skyrl": (0.99, 1.01),
         "slime": (0.9999, 1.0001), "openrlhf": (0.5, 5.0)}  # fmt: skip


def test_the_frameworks_constants_are_theirs():
    for (recipe, name), constants in FRAMEWORKS.items():
        made = defaults(name, recipe)
        assert {key: made[key] for key in constants} == constants, (recipe, name)
    for recipe, band in BANDS.items():
        made = defaults("reinforce", recipe, ["geo"])
        assert (made["geo_low"], made["geo_high"]) == band, recipe
    deltas = {recipe: defaults("grpo", recipe, ["opsm"])["opsm_delta"] for recipe in ("trl", "slime")}
    assert deltas == {"trl": 0.5, "slime": 1e-4}


def test_every_constant_of_a_recipe_is_somebodys():
    for recipe, constants in RECIPES.items():
        for key in constants:
            name, _, threshold = key.rpartition(".")
            known = OBJECTIVES[name].thresholds.keys() if name else set(THRESHOLDS)
            assert threshold in known | {"advantage", "aggregation"}, (recipe, key)


def test_a_recipe_can_mean_one_objective_alone(monkeypatch):
    made_up = {"clip_low": 0.1, "clip_high": 0.9, "geo_low": 0.5, "tis_cap": 7.0}
    own = {"gspo.clip_high": 0.7, "grpo.aggregation": "token-mean-batch", "gmpo.advantage": "group-std"}
    monkeypatch.setitem(RECIPES, "made-up", made_up | own)
    plain = defaults("grpo", "made-up")
    assert plain == {"clip_low": 0.1, "clip_high": 0.9, "dual_clip": 0.0, "advantage": "group-mean",
                     "aggregation": "token-mean-batch"}  # fmt: skip
    rejecting = defaults("grpo", "made-up", ["geo", "opsm"])
    assert rejecting == plain | {"geo_low": 0.5, "geo_high": 1.001, "opsm_delta": 0.5}
    for name in ("gspo", "gspo-bypass", "gmpo", "cispo"):  # their clipping is of another size
        low, high = OBJECTIVES[name].thresholds["clip_low"], OBJECTIVES[name].thresholds["clip_high"]
        made = defaults(name, "made-up")
        assert (made["clip_low"], made["clip_high"]) == (low, 0.7 if name == "gspo" else high)
        assert made["aggregation"] == ("token-sum-constant" if name == "cispo" else "token-mean-sequence")
        assert made["advantage"] == ("group-std" if name == "gmpo" else "group-mean")
    assert defaults("grpo-bypass", "made-up")["clip_high"] == 0.9
    assert "tis_cap" not in defaults("reinforce", "made-up")


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
        d = clip(r - p, -40, 40)
        assert k == pytest.approx(math.exp(d) - 1 - d, rel=1e-8, abs=1e-13)
        assert g == pytest.approx(1 - math.exp(d) if d == r - p else 0.0, rel=1e-8, abs=1e-13)


def test_importance_weights_carry_no_gradient():
    for made in OBJECTIVES.values():
        batch, _ = random_batch(1, 3, 4)
        batch.mu_logp.requires_grad_()
        loss, statistics = made(batch)
        if made.name.startswith("dppo") or made.name == "grpo-bypass":
            continue  # the ratio itself is the loss; nothing differentiates mu in the learner
        loss[batch.mask].sum().backward()
        assert batch.mu_logp.grad is None, made.name
        assert not any(values.requires_grad for values in statistics.values()), made.name
