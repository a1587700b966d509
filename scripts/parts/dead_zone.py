"""How late a run is behind its FP32 twin, against the rate in units of the distance between two of its dtype's numbers.

Adam moves a weight by about the rate. While that is small beside the distance to the weight's neighbours in the dtype
that computes, the rounded weight stays where it is for many updates: the dead zone. It ends: once the masters have
moved by that distance they lie anywhere between two numbers, and rounding goes either way. The delay is therefore that
of the first spacing / rate updates. `scripts/update_reach.py --dead-zone` is the command.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from scripts.parts import style
from scripts.parts.runs import Run, deviation
from tasks.errors import require

MANTISSA_BITS = {"fp16": 10, "bf16": 7, "fp32": 23}
SMALLEST_EXPONENT = {"fp16": -14, "bf16": -126, "fp32": -126}  # of normal numbers
DEGREE = 5  # of the polynomial that stands for FP32's curve
FEWEST = 3  # steps that a delay is fitted to, however soon the weights have moved


def spacing(weights: np.ndarray, dtype: str) -> np.ndarray:
    """The distance between a dtype's numbers at each weight: 2^-bits of the power of two below it."""
    exponent = np.frexp(np.abs(weights))[1] - 1  # of 0 it is -1, which no weight that matters is
    return 2.0 ** (np.maximum(exponent, SMALLEST_EXPONENT[dtype]) - MANTISSA_BITS[dtype])


def updates_to_move(size: float, rate: float, dtype: str) -> float:
    """Updates of full size until a weight that lies on a number of the dtype is nearer to the next."""
    return float(spacing(np.array([size]), dtype)[0] / 2 / rate)


def curve(run: Run) -> tuple[np.ndarray, np.ndarray]:
    """Updates that the weights had behind them when each step was sampled, and the step's reward."""
    updates, rewards = run.series("train/updates")[1], run.series("train/reward")[1]
    return np.concatenate([[0.0], updates[:-1]]), rewards


def delay(updates: np.ndarray, rewards: np.ndarray, twin: np.ndarray, smooth: np.ndarray, until: float) -> float:
    """By how many updates a curve comes after its FP32 twin at first: the shift of the smooth curve that fits best.

    What is fitted is the difference of the twins: they have the same prompts, whose luck is then in neither.

    Args:
        updates: (steps,).
        rewards: (steps,) of the run.
        twin: (steps,) of the FP32 run with the same seed.
        smooth: (steps,) FP32's curve over all seeds, without noise; before the first update it is as at the first.
        until: the updates that are looked at; of the first `FEWEST` steps after the very first at least.
    """
    seen = updates <= max(until, updates[FEWEST])
    rewards, twin = rewards[seen], twin[seen]
    last = updates[seen][-1]
    shifts = np.arange(-last / 2, last + 0.25, 0.25)
    moved = np.interp(updates[seen] - shifts[:, None], updates, smooth)
    errors = np.square((rewards - twin) - (moved - smooth[seen])).sum(1)
    return float(shifts[errors.argmin()])


@dataclass(frozen=True)
class Late:
    """Runs of one rate and pair of dtypes."""

    rate: float
    train_dtype: str
    sample_dtype: str
    coarsest: str
    """of the two dtypes, the one with the fewest mantissa bits"""
    rate_over_spacing: float
    """at the median weight, of the coarsest dtype"""
    updates: list[float]
    reward: list[float]
    """mean over seeds, at each of these updates"""
    delays: list[float]
    """of each seed, updates; over the first spacing / rate of them"""
    moved: float
    """updates x rate / spacing at the run's end: below 1 the run ended in the dead zone, its delay a lower bound"""

    @property
    def mean(self) -> float:
        return float(np.mean(self.delays))


def late(runs: Sequence[Run], median_weight: float) -> list[Late]:
    """The rows of a sweep over rates, dtypes and seeds, those of FP32 first; what has not finished is left out.

    Raises:
        UsageError: a run has no FP32 twin, same rate and seed, or another number of steps than that has.
    """
    groups: dict[tuple, dict[int, Run]] = {}
    for run in runs:
        if run.status == "finished":
            train, sample = (run.options[key] or run.options["dtype"] for key in ("train_dtype", "sample_dtype"))
            groups.setdefault((run.options["learning_rate"], train, sample), {})[run.options["seed"]] = run
    made = []
    for (rate, train, sample), by_seed in sorted(groups.items(), key=_order):
        twins = groups.get((rate, "fp32", "fp32"), {})
        missing = sorted(set(by_seed) - set(twins))
        require(not missing, f"A run at rate {rate:g} has no FP32 twin with seed {missing}; run that first.")
        exact = [curve(twin) for twin in twins.values()]
        updates, curves = exact[0][0], {seed: curve(run)[1] for seed, run in by_seed.items()}
        same = {len(rewards) for rewards in (*curves.values(), *(r for _, r in exact))} == {len(updates)}
        require(same, f"The runs at rate {rate:g} do not have the same number of steps; compare those that do.")
        smooth = np.polynomial.Polynomial.fit(updates, np.mean([r for _, r in exact], 0), DEGREE)(updates)
        coarsest = min(train, sample, key=MANTISSA_BITS.get)
        relative = rate / float(spacing(np.array([median_weight]), coarsest)[0])
        delays = [delay(updates, y, curve(twins[seed])[1], smooth, 1 / relative) for seed, y in sorted(curves.items())]
        reward = np.mean(list(curves.values()), 0).tolist()
        moved = float(updates[-1] * relative)
        made.append(Late(rate, train, sample, coarsest, relative, updates.tolist(), reward, delays, moved))
    return made


def _order(item: tuple) -> tuple:
    (rate, train, sample), _ = item
    return rate, train != sample, -MANTISSA_BITS[train], -MANTISSA_BITS[sample]


def delay_factor(rows: Sequence[Late]) -> float:
    """c of delay = c x spacing / rate, by least squares, over the runs whose sampler has the coarsest dtype."""
    kept = [row for row in rows if row.sample_dtype == row.coarsest != "fp32"]
    return sum(row.mean / row.rate_over_spacing for row in kept) / sum(row.rate_over_spacing**-2 for row in kept)


def markdown(rows: Sequence[Late]) -> str:
    lines = ["| rate | trainer | sampler | rate / spacing | delay, updates | seeds |", "|---|---|---|---|---|---|"]
    for row in rows:
        late_by = f"{'at least ' * (row.moved < 1)}{row.mean:.1f} ± {deviation(row.delays):.1f}"
        names = f"{row.rate:g} | {row.train_dtype} | {row.sample_dtype}"
        lines.append(f"| {names} | {row.rate_over_spacing:.3g} | {late_by} | {len(row.delays)} |")
    return "\n".join(lines) + "\n"


def to_dict(rows: Sequence[Late], median_weight: float) -> dict:
    return {
        "median_weight": median_weight,
        "delay_factor": delay_factor(rows),
        "rows": [asdict(row) | {"delay": row.mean} for row in rows],
    }


def draw(rows: Sequence[Late]):
    """Left the rewards of both sides in one dtype, at each rate; right the delays, all of them on one curve or not."""
    made, ((left, right),) = style.figure(1, 2, (9.6, 3.9), width_ratios=(1.15, 1))
    for row in rows:
        if row.train_dtype == row.sample_dtype:
            color, line = style.COLORS[row.train_dtype], style.LINES[row.train_dtype]
            left.plot(row.updates, row.reward, line, color=color, linewidth=1.3)
            if row.train_dtype == "fp32":
                left.annotate(f"{row.rate:g}", (row.updates[-1], row.reward[-1]), (4, 0), va="center", fontsize=8,
                              textcoords="offset points")  # fmt: skip
    for dtype in ("fp16", "bf16", "fp32"):
        left.plot([], [], style.LINES[dtype], color=style.COLORS[dtype], label=style.short(dtype))
    left.set(xlabel="updates", ylabel="training reward", title="Both sides in one dtype, at constant rates")
    left.legend(loc="lower right", title="rate: at the lines' ends")
    halves = [row for row in rows if row.coarsest != "fp32"]
    right.axhline(0, color=style.COLORS["fp32"], linestyle=style.LINES["fp32"], linewidth=1)
    for row in halves:
        sides = (row.train_dtype == row.coarsest) + 2 * (row.sample_dtype == row.coarsest)
        marker = {1: "v", 2: "^", 3: "o"}[sides]
        right.errorbar(row.rate_over_spacing, row.mean, deviation(row.delays), fmt=marker, markersize=5, capsize=2,
                       color=style.COLORS[row.coarsest], fillstyle="none" if sides == 1 else "full")  # fmt: skip
    relative = [row.rate_over_spacing for row in halves]
    xs, factor = np.geomspace(min(relative), max(relative), 99), delay_factor(rows)
    right.plot(xs, factor / xs, color="black", linewidth=0.9, label=f"{factor:.2f} x distance / rate")
    for marker, fill, text in (("o", "full", "both sides"), ("^", "full", "sampler alone, trainer FP32"),
                               ("v", "none", "trainer alone, sampler FP32")):  # fmt: skip
        right.plot([], [], marker, color="#555555", fillstyle=fill, label=text)
    right.set(xscale="log", xlabel="rate / distance of the dtype's numbers at the median weight",
              ylabel="updates behind FP32", title="How late: blue FP16, orange BF16")  # fmt: skip
    right.legend(loc="upper right")
    return made
