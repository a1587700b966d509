"""The rejections, one by one against plain Python."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from learners.objectives import REJECTIONS, PolicyBatch

SPREADS = {"near": 0.02, "apart": 0.5, "far": 8.0}  # of log pi/mu


def random_comparison(seed: int, rows: int, width: int) -> tuple[PolicyBatch, np.random.Generator]:
    """Responses of 0 to `width` tokens with gaps, FP64; what lies outside the mask must never be read."""
    rng = np.random.default_rng(seed)
    mask = rng.random((rows, width)) < 0.7
    logp = -rng.exponential(1.0, mask.shape) - 1e-3
    mu_logp = np.minimum(logp + rng.normal(0, SPREADS[rng.choice(list(SPREADS))], mask.shape), -1e-3)
    junk = np.where(mask, 0.0, np.nan)
    advantages = rng.choice([-1.0, 0.0, 1.0], rows) * rng.uniform(0.1, 2, rows)
    return PolicyBatch(*map(torch.tensor, (logp + junk, mu_logp + junk, advantages, mask))), rng


def binary_kl(p: float, q: float) -> float:
    return p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))


def k3(pi: float, mu: float) -> float:
    return pi / mu - 1 - math.log(pi / mu)


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def geometric_mean(values: list[float]) -> float:
    return math.prod(value ** (1 / len(values)) for value in values)


# By name: whether a response, its tokens' (pi, mu) being given, is kept; or a token.
RESPONSES = {
    "geo": lambda tokens, a, th: th["geo_low"] <= geometric_mean([p / m for p, m in tokens]) <= th["geo_high"],
    "k3": lambda tokens, a, th: mean([k3(p, m) for p, m in tokens]) <= th["k3_cap"],
    "max-token": lambda tokens, a, th: max(math.log(p / m) ** 2 / 2 for p, m in tokens) <= th["token_k2_cap"],
    "outlier": lambda tokens, a, th: all(th["outlier_low"] <= p / m <= th["outlier_high"] for p, m in tokens),
    "veto": lambda tokens, a, th: min(p / m for p, m in tokens) >= th["veto_below"],
    "opsm": lambda tokens, a, th: a >= 0 or mean([math.log(m / p) for p, m in tokens]) <= th["opsm_delta"],
}  # fmt: skip
TOKENS = {
    "icepop": lambda p, m, th: th["icepop_low"] <= p / m <= th["icepop_high"],
    "kpop": lambda p, m, th: max(binary_kl(p, m), binary_kl(m, p)) <= th["kpop_cap"],
}
ALL_TOGETHER = {"m2po"}


def test_every_rejection_has_a_reference():
    assert set(RESPONSES) | set(TOKENS) | ALL_TOGETHER == set(REJECTIONS)


def draw_thresholds(name: str, rng: np.random.Generator) -> dict[str, float]:
    """At the defaults, or where about half is rejected whatever the spread."""
    chosen = dict(REJECTIONS[name].thresholds)
    if rng.random() < 0.7:
        nearness = 10 ** rng.uniform(-3, 1)
        for key in chosen:
            low, high = key.endswith("_low") or key == "veto_below", key.endswith("_high")
            chosen[key] = math.exp(-nearness) if low else math.exp(nearness) if high else nearness
    return chosen


@pytest.mark.parametrize("name", [*RESPONSES, *TOKENS])
@settings(max_examples=80, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), rows=st.integers(1, 6), width=st.integers(1, 7))
def test_what_is_kept_equals_plain_python(name, seed, rows, width):
    compared, rng = random_comparison(seed, rows, width)
    thresholds = draw_thresholds(name, rng)
    verdict = REJECTIONS[name](compared, **thresholds)
    made = verdict & compared.mask
    assert verdict.shape == (rows, 1 if name in RESPONSES else width)
    for i in range(rows):
        places = np.flatnonzero(compared.mask[i].numpy())
        tokens = list(zip(*(t[i, places].exp().tolist() for t in (compared.logp, compared.mu_logp)), strict=True))
        if name in RESPONSES:
            # one without tokens has nothing that could be rejected
            kept = not tokens or RESPONSES[name](tokens, compared.advantages[i].item(), thresholds)
            assert verdict[i].item() == kept
            expected = [kept] * len(tokens)
        else:
            expected = [TOKENS[name](p, m, thresholds) for p, m in tokens]
        assert made[i, places].tolist() == expected


@pytest.mark.parametrize("name", [*RESPONSES, *TOKENS, *ALL_TOGETHER])
def test_each_rejects_something_and_keeps_something_at_its_defaults(name):
    """One response as the engines agree, one as they differ."""
    logp = torch.tensor([[-1.0, -2.0], [-1.0, -20.0], [-1.0, -2.0]], dtype=torch.float64)
    mu_logp = torch.tensor([[-1.0, -2.0001], [-1.0, -2.0], [-15.0, -2.0]], dtype=torch.float64)
    compared = PolicyBatch(logp, mu_logp, torch.tensor([-1.0, -1.0, -1.0]), torch.ones(3, 2, dtype=torch.bool))
    made = REJECTIONS[name](compared) & compared.mask
    assert made[0].all()
    assert not made[1, 1], "far below mu"
    assert made[2, 0] == (name in ("veto", "opsm")), "far above mu, which these two allow"
    assert made[1, 0] == (name not in RESPONSES), "a response goes as a whole"


def m2po_by_trying(squares: list[float], cap: float) -> int:
    """The largest number of tokens whose mean square is at most the cap, over all subsets."""
    subsets = (s for n in range(len(squares), 0, -1) for s in itertools.combinations(squares, n))
    return next((len(s) for s in subsets if sum(s) / len(s) <= cap), 0)


@settings(max_examples=150, deadline=None)
@given(
    log_weights=st.lists(st.integers(-8, 8), min_size=1, max_size=9),
    gaps=st.lists(st.booleans(), min_size=9, max_size=9),
    cap=st.integers(1, 200),
)
def test_m2po_rejects_the_fewest_tokens_that_it_takes(log_weights, gaps, cap):
    """Whole and half numbers, so that no sum is rounded; a response a token or gap, padded with junk."""
    width = 3
    places = [place for place, gap in enumerate(gaps * 2) if not gap][: len(log_weights)]
    log_weights = log_weights[: len(places)]
    mask = torch.zeros(6 * width, dtype=torch.bool)
    mask[places] = True
    log_weight = torch.full(mask.shape, math.nan, dtype=torch.float64)
    log_weight[places] = torch.tensor([x / 4 for x in log_weights], dtype=torch.float64)
    mu_logp = torch.full(mask.shape, -4.0, dtype=torch.float64)
    shape = (6, width)
    compared = PolicyBatch((mu_logp + log_weight).view(shape), mu_logp.view(shape), torch.ones(6), mask.view(shape))
    made = REJECTIONS["m2po"](compared, m2_cap=cap / 64)
    kept = [x for x, keep in zip(log_weights, made.flatten()[places].tolist(), strict=True) if keep]
    rejected = [x for x, keep in zip(log_weights, made.flatten()[places].tolist(), strict=True) if not keep]
    squares = [x * x / 16 for x in log_weights]
    assert len(kept) == m2po_by_trying(squares, cap / 64)
    assert not kept or sum(x * x / 16 for x in kept) / len(kept) <= cap / 64
    assert max((abs(x) for x in kept), default=0) <= min((abs(x) for x in rejected), default=math.inf)
    assert not made.flatten()[~mask].any()


AT_THE_BOUND = {  # where pi is mu: a weight of 1, nothing apart
    "geo": {"geo_low": 1.0, "geo_high": 1.0}, "k3": {"k3_cap": 0.0}, "max-token": {"token_k2_cap": 0.0},
    "outlier": {"outlier_low": 1.0, "outlier_high": 1.0}, "veto": {"veto_below": 1.0}, "opsm": {"opsm_delta": 0.0},
    "icepop": {"icepop_low": 1.0, "icepop_high": 1.0}, "kpop": {"kpop_cap": 0.0}, "m2po": {"m2_cap": 0.0},
}  # fmt: skip


@pytest.mark.parametrize("name", REJECTIONS)
@pytest.mark.parametrize("log_weight", [0.0, -1e-3, 1e-3])
def test_what_is_at_its_bound_is_kept_and_what_is_beyond_is_not(name, log_weight):
    logp = torch.full((1, 2), -1.0, dtype=torch.float64)
    batch = PolicyBatch(logp, logp - log_weight, -torch.ones(1), torch.ones(1, 2, dtype=torch.bool))
    one_sided = {"veto": log_weight > 0, "opsm": log_weight > 0}
    kept = REJECTIONS[name](batch, **AT_THE_BOUND[name])
    assert kept.unique().tolist() == [log_weight == 0 or one_sided.get(name, False)]


def test_m2po_looks_at_all_responses_together_and_the_others_at_their_own():
    """Whether a response is kept does not depend on what stands beside it, but under m2po."""
    compared, _ = random_comparison(5, 8, 6)
    parts = (compared.logp, compared.mu_logp, compared.advantages, compared.mask)
    row = lambda i: PolicyBatch(*(tensor[i : i + 1] for tensor in parts))
    for name, made in REJECTIONS.items():
        chosen = {"m2_cap": 0.5 * compared.log_weight.square().mean().item()} if name == "m2po" else {}
        apart = torch.cat([made(row(i), **chosen) for i in range(8)])
        together = made(compared, **chosen)
        assert torch.equal(together & compared.mask, apart & compared.mask) != made.needs_all, name
    nothing = PolicyBatch(torch.zeros(2, 3), torch.zeros(2, 3), torch.ones(2), torch.zeros(2, 3, dtype=torch.bool))
    assert not REJECTIONS["m2po"](nothing).any()


def test_what_leaves_or_looks_at_all_needs_pi_old():
    for made in REJECTIONS.values():
        assert made.needs_pi_old == (not made.stays_counted or made.needs_all)
    assert not REJECTIONS["opsm"].needs_pi_old and not REJECTIONS["icepop"].needs_pi_old
    assert REJECTIONS["m2po"].needs_pi_old and not REJECTIONS["m2po"].stays_counted
    assert [name for name, made in REJECTIONS.items() if made.sees_movement] == ["opsm"]


@pytest.mark.parametrize("name", REJECTIONS)
def test_single_precision_decides_as_double(name):
    """Log-probabilities come in FP32; near agreement w - 1 - log w and 1 - p would be lost to cancellation."""
    compared, _ = random_comparison(11, 64, 12)
    parts = (compared.logp, compared.mu_logp, compared.advantages)
    small = PolicyBatch(*(part.float() for part in parts), compared.mask)
    agree = REJECTIONS[name](compared) == REJECTIONS[name](small)
    agree = agree.expand_as(compared.mask) | ~compared.mask
    assert agree.double().mean() > 0.99
