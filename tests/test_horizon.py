"""The length at which importance weights are lost: against plain loops, and on noise whose variance is known."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from learners.diagnosis import horizon
from learners.diagnosis.horizon import horizon_of
from scripts.parts.horizon import draw, markdown, tokens_text


def lay(log_ratios: list[np.ndarray], seed: int = 0):
    """log mu, log pi and starts of responses with these log ratios."""
    log_mu = -np.random.default_rng(seed).exponential(1, sum(map(len, log_ratios)))
    return log_mu, log_mu + np.concatenate(log_ratios), np.cumsum([0, *map(len, log_ratios)])[:-1]


def moving_average(rng, count: int, length: int, deviation: float, weight: float) -> list[np.ndarray]:
    """Normal log ratios e_t + weight e_(t-1), e of the given deviation: neighbours depend on each other."""
    noise = rng.normal(0, deviation, (count, length + 1))
    return list(noise[:, 1:] + weight * noise[:, :-1])


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=2, max_size=6), st.integers(0, 99), st.integers(1, 9))
def test_sums_shares_and_covariances_are_those_of_plain_loops(sizes, seed, length):
    rng = np.random.default_rng(seed)
    parts = [rng.normal(0, 0.3, size) for size in sizes]
    log_mu, log_pi, starts = lay(parts)
    log_ratio = log_pi - log_mu
    sums, longer = horizon.prefix_sums(log_ratio, starts, length)
    assert longer.tolist() == [size >= length for size in sizes]
    assert sums.tolist() == pytest.approx([sum(p[:length]) for p in parts if len(p) >= length])
    times = rng.integers(1, 4, (3, longer.sum())).astype(float)
    if longer.any():
        for row, share in zip(times, horizon.kish_share(sums, times), strict=True):
            weights = [math.exp(y) for y, n in zip(sums, row, strict=True) for _ in range(int(n))]
            assert share == pytest.approx(sum(weights) ** 2 / (len(weights) * sum(w * w for w in weights)))
    mean = np.mean(np.concatenate(parts))
    products, counts = horizon.lagged_products(log_ratio, starts, lags=10)
    for i, part in enumerate(parts):
        for k in range(11):
            pairs = [(part[t] - mean) * (part[t + k] - mean) for t in range(len(part) - k)]
            assert (products[i, k], counts[i, k]) == (pytest.approx(sum(pairs), abs=1e-12), len(pairs))


@settings(max_examples=15, deadline=None)
@given(st.floats(0.01, 0.06), st.floats(-0.4, 0.8), st.integers(0, 999))
def test_the_extrapolation_finds_a_known_variance_and_what_neighbours_have_in_common(deviation, weight, seed):
    """The variance of a sum of L is then deviation^2 (L (1 + w)^2 - 2 w), and the share left exp of minus that."""
    rng = np.random.default_rng(seed)
    made = horizon_of(*lay(moving_average(rng, 400, 100, deviation, weight)), lengths=(1, 50, 5000), replicates=200)
    slope = deviation**2 * (1 + weight) ** 2
    wanted = (math.log(2) + 2 * weight * deviation**2) / slope
    spread = made.half.high - made.half.low
    assert abs(made.half.estimate - wanted) < 1.5 * spread  # half of an interval is 2 standard errors: 6 of them
    assert spread < 0.6 * wanted
    assert made.variance.estimate == pytest.approx(deviation**2 * (1 + weight**2), rel=0.05)
    # A sum of 2 x 32 + 1 covariances, each known to 1 / sqrt(tokens): 5 standard errors.
    five = 5 * math.sqrt(2 * 65 / 40_000)
    assert made.dependence.estimate == pytest.approx((1 + weight) ** 2 / (1 + weight**2), rel=five)
    variance = -math.log(made.extrapolated[1].estimate)
    assert variance == pytest.approx(50 * slope - 2 * weight * deviation**2, rel=five)
    assert made.extrapolated_geometric[1].estimate == pytest.approx(math.exp(-variance / 2500), rel=1e-9)
    assert made.measured[2] is None and made.responses == [400, 400, 0]


def test_measured_and_extrapolated_shares_agree_where_weights_are_log_normal():
    made = horizon_of(*lay(moving_average(np.random.default_rng(0), 4000, 64, 0.08, 0.0)), lengths=(8, 64))
    for i, length in enumerate(made.lengths):
        exact = math.exp(-length * 0.08**2)
        for found in (made.measured[i], made.extrapolated[i]):
            assert found.low < exact < found.high
            assert found.high - found.low < 0.1


def test_the_interval_holds_the_truth_as_often_as_it_says():
    inside = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        sizes = rng.integers(5, 60, 80)
        made = horizon_of(*lay([rng.normal(0, 0.06, n) for n in sizes]), lengths=(8,), replicates=200)
        inside += made.half.low < math.log(2) / 0.06**2 < made.half.high
    assert inside >= 50  # of 60 at 95%


def test_no_mismatch_is_never_lost_and_what_is_missing_is_none_in_json():
    made = horizon_of(*lay([np.zeros(20)] * 10), lengths=(8, 64), replicates=100)
    assert made.extrapolated[1].estimate == made.measured[0].estimate == 1.0
    assert math.isinf(made.half.estimate)
    plain = json.loads(json.dumps(made.to_dict(), allow_nan=False))
    assert plain["half"]["estimate"] is None
    assert plain["rows"][1] == {"length": 64, "responses": 0, "measured": None, "measured_geometric": None} | {
        name: {"estimate": 1.0, "low": 1.0, "high": 1.0} for name in ("extrapolated", "extrapolated_geometric")
    }
    assert tokens_text(made.half) == "never [?, ?]"


def test_a_half_that_is_gone_within_the_first_tokens_is_found_there():
    covariances = np.array([[1.0, 0.0, 0.0], [0.2, -0.1, 0.0], [0.1, 0.05, 0.0]])
    assert horizon.half_length(covariances).tolist() == [1, math.inf, pytest.approx((math.log(2) + 0.1) / 0.2)]


def test_table_and_figure_show_every_dtype():
    rng = np.random.default_rng(0)
    made = {
        dtype: horizon_of(*lay(moving_average(rng, 40, 40, deviation, 0.0)), lengths=(8, 32, 1024), replicates=100)
        for dtype, deviation in (("fp16", 0.01), ("bf16", 0.08))
    }
    text = markdown(made)
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert {row.count(" | ") for row in rows if not row.startswith("|---")} == {4}
    assert "| 1,024 | - | " in text
    labels = [label.get_text() for label in draw(made, "a title").legends[0].get_texts()]
    assert sum("half is gone above" in label for label in labels) == 2
    assert f"BF16: half is gone above {tokens_text(made['bf16'].half)} tokens" in labels
