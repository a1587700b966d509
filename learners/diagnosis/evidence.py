"""Statistics of the gap g = log pi - log mu, by name, each made so that rounding alone has a known value of it."""

import numpy as np

from learners.diagnosis import contexts, stored
from learners.diagnosis.sample import FAINT, Sample, log_odds
from learners.diagnosis.totals import Totals

EDGES = (0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)  # of bins of places
FEW = 8  # tokens, below which a statistic is left out
FEWEST_ON_LINE = 6  # of a line's two parameters


def gather(dump, totals: Totals, sample: Sample) -> dict[str, float]:
    """All statistics of a dump; what cannot be computed of it is absent."""
    numbers = {"responses": float(len(dump.starts) - 1), "tokens": float(dump.starts[-1]), "k1": totals.k1,
               "k3": totals.k3}  # fmt: skip
    if not len(sample):
        return numbers
    for part in (size, who_sampled, signs, lags, ends, by_id, places, rows):
        numbers |= part(sample)
    numbers |= again(sample) | stored.look(sample) | contexts.compare(dump, sample)
    return numbers | outside(dump, totals)


def size(sample: Sample) -> dict[str, float]:
    """How large the gap is: in nats, and in log odds where neither engine was certain."""
    kept = sample.open & sample.new
    if kept.sum() < FEW:
        kept = sample.new
    d = np.abs(sample.d[kept])
    numbers = {f"d_{int(100 * q)}": float(np.quantile(d, q)) for q in (0.5, 0.9)}
    return numbers | {
        "open": float(kept.sum()),
        "g_rms": float(np.sqrt(np.mean(sample.g**2))),
        "g_largest": float(sample.g.max()),
        "g_smallest": float(sample.g.min()),
        "g_95": float(np.quantile(sample.g[kept], 0.95)),
        "g_05": float(np.quantile(sample.g[kept], 0.05)),
        "correlation": correlation(sample.x, sample.y),
        "vocabulary": float(sample.ids.max() + 1),
    }


def who_sampled(sample: Sample) -> dict[str, float]:
    """Which of two normalised distributions the tokens come from.

    With t = tanh(g / 2), the mean of t is minus that of t^2 if they were drawn from mu, plus that of t^2 if from pi, to
    second order exactly, whatever the distributions are. ``sampled_from`` is the ratio: -1 for mu, +1 for pi; what is
    neither is no pair of normalised distributions, or was drawn from a third.
    """
    t = np.tanh(sample.g / 2)
    second = float(np.mean(t**2))
    if second == 0:
        return {}
    both = t + t**2
    spread = np.sqrt(np.sum(np.bincount(sample.row, weights=both - both.mean()) ** 2))
    fresh = t[sample.new]
    return {
        "sampled_from": float(np.mean(t)) / second,
        "sampled_from_error": float(spread / len(t) / second),
        "shift": float(np.mean(fresh)),
        "shift_z": float(np.mean(fresh) / max(np.std(fresh) / np.sqrt(len(fresh)), 1e-12)),
    }


def signs(sample: Sample) -> dict[str, float]:
    """The sign of the gap where it tells: of tokens likely by one engine, and of unlikely ones.

    Any temperature moves the most probable token, hence every one above 1/2, one way, and tokens of probability near 0
    the other. A filter moves both down. Noise moves either both ways.
    """
    likely = (np.maximum(sample.x, sample.y) > np.log(0.5)) & sample.open & sample.new
    unlikely = (np.maximum(sample.x, sample.y) < -3.5) & sample.new
    numbers = {"likely": float(likely.sum()), "unlikely": float(unlikely.sum())}
    for name, flags in (("likely", likely), ("unlikely", unlikely)):
        if flags.sum() >= FEW:
            g = sample.g[flags]
            moved = g[g != 0]
            numbers[f"{name}_up"] = float(np.mean(moved > 0)) if len(moved) >= FEW else 0.5
            numbers[f"{name}_up_z"] = (numbers[f"{name}_up"] - 0.5) * 2 * float(np.sqrt(len(moved)))
            numbers[f"{name}_up_squared"] = float((g[g > 0] ** 2).sum() / max((g**2).sum(), 1e-30))
    high, low = np.maximum(sample.x, sample.y), np.minimum(sample.x, sample.y)
    kept = (high > np.log(0.5)) & (low > np.log(0.3)) & (high < -FAINT) & sample.new
    numbers["line"] = float(kept.sum())
    if kept.sum() >= FEWEST_ON_LINE:
        odds, d = sample.x_odds[kept], sample.d[kept]
        design = np.stack([odds, np.ones_like(odds)], 1)
        (slope, intercept), *_ = np.linalg.lstsq(design, d, rcond=None)
        residual = d - design @ (slope, intercept)
        numbers |= {
            "odds_slope": float(slope),
            "line_up": float(np.mean(d > 0)),
            "odds_slope_error": float(residual.std() / max(odds.std() * np.sqrt(len(odds)), 1e-12)),
            "odds_explained": float(1 - np.mean(residual**2) / max(np.mean(d**2), 1e-30)),
        }
    forced = (sample.x > -1e-6) & (sample.y < -5e-3)
    fresh = sample.g[sample.new]
    numbers["down_squared"] = float((fresh[fresh < 0] ** 2).sum() / max((fresh**2).sum(), 1e-30))
    numbers["far_tokens"] = float((np.abs(fresh) > 0.2 * np.abs(fresh).max(initial=0)).sum())
    numbers["exact_one_mu"], numbers["exact_one_pi"] = (float(np.mean(v > -1e-6)) for v in (sample.x, sample.y))
    numbers["forced_mu"] = float(forced.sum())
    numbers["forced_pi"] = float(((sample.y > -1e-6) & (sample.x < -5e-3)).sum())
    inside = sample.back > 0
    numbers["forced_mu_inside"] = float((forced & inside).sum())
    numbers["forced_pi_inside"] = float(((sample.y > -1e-6) & (sample.x < -5e-3) & inside).sum())
    sure = sample.x > -0.1
    if sure.sum() >= FEW:
        numbers["sure_median"] = float(np.median(sample.g[sure]))
    certain = (sample.x > -1e-4) & sample.new
    if certain.sum() >= FEW:
        numbers["offset_certain"] = float(np.median(sample.g[certain]))
    return numbers


def lags(sample: Sample) -> dict[str, float]:
    """log pi some tokens later against log mu: correlation and median distance, best of the lags beside 0."""
    numbers = {}
    best = None
    for lag in (-2, -1, 1, 2):
        a, b = (sample.x[: len(sample) - abs(lag)], sample.y[abs(lag) :])
        same = sample.row[: len(sample) - abs(lag)] == sample.row[abs(lag) :]
        same &= sample.place[abs(lag) :] - sample.place[: len(sample) - abs(lag)] == abs(lag)
        if lag < 0:
            a, b = sample.x[abs(lag) :], sample.y[: len(sample) - abs(lag)]
        a, b = a[same], b[same]
        varied = np.minimum(a, b) < -0.01
        if varied.sum() < FEW:
            continue
        distance = float(np.mean(np.minimum(np.abs(a - b), 2.0)))
        if best is None or distance < best[1]:
            best = lag, distance, correlation(a, b)
    here = float(np.mean(np.minimum(np.abs(sample.g), 2.0)))
    if best is not None:
        numbers |= {"lag_best": float(best[0]), "lag_best_distance": best[1], "lag_best_correlation": best[2],
                    "lag_0_distance": here}  # fmt: skip
    return numbers


def ends(sample: Sample) -> dict[str, float]:
    """The gap of a response's first and last token against that of the others."""
    numbers = {}
    for name, at in (("first", sample.place == 0), ("last", sample.back == 0)):
        others = ~((sample.place == 0) | (sample.back == 0))
        if at.sum() >= 4 and others.sum() >= FEW:
            inside = np.abs(sample.g[others])
            numbers |= {
                f"{name}_correlation": correlation(sample.x[at], sample.y[at]),
                f"{name}_median": float(np.median(np.abs(sample.g[at]))),
                f"{name}_far": float(np.mean(np.abs(sample.g[at]) > 1.0)),
                f"others_far_{name}": float(np.mean(inside > 1.0)),
                f"{name}_share": float((sample.g[at] ** 2).sum() / max((sample.g**2).sum(), 1e-30)),
                f"{name}_zero_pi": float(np.mean(sample.y[at] == 0)),
                f"{name}_zero_mu": float(np.mean(sample.x[at] == 0)),
                f"{name}_rms": float(np.sqrt(np.mean(sample.g[at] ** 2))),
                f"others_rms_{name}": float(np.sqrt(np.mean(sample.g[others] ** 2))),
            }
    return numbers


def by_id(sample: Sample) -> dict[str, float]:
    """The token id that makes up most of the squared gap."""
    ids, inverse, counts = np.unique(sample.ids, return_inverse=True, return_counts=True)
    squares = np.bincount(inverse, weights=np.minimum(sample.g**2, 25.0))
    if len(ids) < 2 or not squares.sum():
        return {}
    most = int(np.argmax(squares))
    rest = (squares.sum() - squares[most]) / max(counts.sum() - counts[most], 1)
    return {
        "id": float(ids[most]),
        "id_share": float(squares[most] / squares.sum()),
        "id_count": float(counts[most]),
        "id_rms": float(np.sqrt(squares[most] / counts[most])),
        "id_typical": float(np.median(np.abs(sample.g[inverse == most]))),
        "id_others_rms": float(np.sqrt(rest)),
    }


def places(sample: Sample) -> dict[str, float]:
    """How the size of the gap in log odds goes with a token's place in its response: medians of bins, and a rank
    correlation."""
    kept = sample.open
    numbers = {}
    d, place = np.abs(sample.d[kept]), sample.place[kept]
    if len(d) < 4 * FEW:
        return numbers
    for low, high in zip(EDGES, (*EDGES[1:], np.inf), strict=True):
        inside = (place >= low) & (place < high)
        if inside.sum() >= FEW:
            numbers[f"place_{low}"] = float(np.median(d[inside]))
    early, late = d[(place >= 1) & (place < 8)], d[place >= max(16, int(np.quantile(place, 0.6)))]
    if len(early) >= 3 * FEW and len(late) >= 3 * FEW:
        numbers["early"], numbers["late"] = float(np.median(early)), float(np.median(late))
    numbers["place_rank"] = correlation(ranks(d), ranks(place))
    return numbers


def rows(sample: Sample) -> dict[str, float]:
    """How unequal the responses are: the size of the gap in each."""
    kept = sample.open
    counts = np.bincount(sample.row[kept], minlength=sample.row.max() + 1)
    sums = np.bincount(sample.row[kept], weights=np.log(np.abs(sample.d[kept]) + 1e-7), minlength=len(counts))
    enough = counts >= 3
    if enough.sum() < FEW:
        return {}
    typical = np.exp(sums[enough] / counts[enough])
    squares = np.bincount(sample.row, weights=sample.g**2)
    order = np.sort(squares)[::-1]
    few = max(1, len(order) // 10)
    middle = np.median(typical)
    far = typical > 8 * middle
    return {
        "row_median": float(middle),
        "row_largest": float(typical.max() / max(middle, 1e-12)),
        "row_far": float(far.mean()),
        "row_few_share": float(order[:few].sum() / max(order.sum(), 1e-30)),
        "row_10": float(np.quantile(typical, 0.1)),
        "row_90": float(np.quantile(typical, 0.9)),
        "row_spread": float(np.std(np.log(typical))),
    }


def again(sample: Sample) -> dict[str, float]:
    """The trainer's second pass against its first."""
    if sample.again is None:
        return {}
    good = np.isfinite(sample.again)
    moved = log_odds(sample.again[good]) - sample.y_odds[good]
    kept = (sample.open & sample.new)[good]
    if kept.sum() < FEW:
        return {}
    return {
        "again_90": float(np.quantile(np.abs(moved[kept]), 0.9)),
    }


def outside(dump, totals: Totals) -> dict[str, float]:
    """How responses' gaps go with what else is known of them: length, step, reward; and of all responses."""
    numbers = {}
    counted = totals.tokens > 0
    if dump.reward is not None and counted.sum() >= 16:
        reward = np.asarray(dump.reward, float)[counted]
        good = np.isfinite(reward)
        if good.any() and reward[good].std() > 0:
            numbers["reward_z"] = _reward(reward[good], totals.gap[counted][good])
    if dump.step is not None:
        step = np.asarray(dump.step)[counted]
        present = np.unique(step[step >= 0])
        if len(present):
            order = np.argsort(step, kind="stable")
            firsts = np.searchsorted(step[order], present)
            sums = (np.add.reduceat(v[counted][order], firsts) for v in (totals.gap_squared, totals.tokens))
            squares, tokens = sums
            numbers |= {f"step_{s}": float(np.sqrt(v)) for s, v in zip(present[:32], squares / tokens, strict=False)}
    return numbers


def _reward(reward: np.ndarray, gap: np.ndarray) -> float:
    """How a response's log ratio goes with its reward: a correlation of ranks, in standard errors."""
    return correlation(ranks(reward), ranks(gap)) * np.sqrt(len(gap) - 1)


def ranks(values: np.ndarray) -> np.ndarray:
    """(T,) mid-ranks."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return ((last - counts + last - 1) / 2.0)[inverse]


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson's; 0 where one does not vary."""
    a, b = a - a.mean(), b - b.mean()
    size = np.sqrt((a @ a) * (b @ b))
    return float(a @ b / size) if size > 0 else 0.0
