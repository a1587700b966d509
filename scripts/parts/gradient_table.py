"""From single responses' gradients to every estimator's error: rows, table, figure."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from learners.diagnosis.bootstrap import resamples
from learners.objectives import PolicyBatch
from scripts.parts import style
from scripts.parts.corrections import Correction, catalogue, united
from scripts.parts.gradients import EXACT, FORWARD, PLAIN, GradientStore, key_of
from scripts.parts.responses import Response

PANEL = 5  # estimators that one panel can tell apart


@dataclass
class Slopes:
    """What every estimator multiplies grad log pi of a response's tokens by, at every length."""

    responses: Sequence[Response]
    lengths: list[int]
    tokens: np.ndarray
    """(lengths, N), of each response at each length"""
    kappas: list[dict[int, dict[str, np.ndarray]]]
    """for each response, by its number of tokens, by key: those that are not constant"""
    places: dict[tuple[str, int], list[tuple[str, float]]] = field(default_factory=dict)
    """by estimator and length: each response's key and multiple"""
    kept: dict[tuple[str, int], float] = field(default_factory=dict)
    """by estimator and length: share of the tokens whose kappa is not 0"""


def policy_batch(responses: Sequence[Response], advantages: np.ndarray, length: int) -> PolicyBatch:
    """The first ``length`` tokens of every response, of a policy that has not moved: pi_old = pi."""
    sizes = [min(len(r.response_ids), length) for r in responses]
    mask = torch.arange(max(sizes)) < torch.tensor(sizes)[:, None]
    fill = lambda name: torch.zeros(mask.shape).masked_scatter(
        mask, torch.tensor([x for r, n in zip(responses, sizes, strict=True) for x in getattr(r, name)[:n]])
    )
    log_pi = fill("log_pi")
    return PolicyBatch(log_pi, fill("log_mu"), torch.from_numpy(advantages).float(), mask, log_pi)


def slopes_by_length(
    corrections: Sequence[Correction], responses: Sequence[Response], advantages: np.ndarray, lengths: list[int]
) -> Slopes:
    """Every estimator's kappa of every response; the penalty of one whose advantage is 0 is left out."""
    taught = np.where(advantages == 0, 1.0, advantages)
    tokens = np.array([[min(len(r.response_ids), length) for r in responses] for length in lengths])
    made = Slopes(responses, lengths, tokens, [{n: {} for n in set(column.tolist())} for column in tokens.T])
    for length, sizes in zip(lengths, tokens, strict=True):
        batch = policy_batch(responses, taught, length)
        for correction in corrections:
            effect = correction.effect(batch)
            kappa = (effect.slopes / batch.advantages[:, None]).double()
            kept = float((effect.kappa != 0)[batch.mask].double().mean())
            if correction.leaves_denominators and kept:
                kappa = kappa / kept
            places = []
            for i, (row, n) in enumerate(zip(kappa.numpy(), sizes, strict=True)):
                key, multiple = key_of(row[:n])
                places.append((key, multiple))
                if key != PLAIN:
                    made.kappas[i][int(n)][key] = row[:n]
            made.places[correction.label, length], made.kept[correction.label, length] = places, kept
    return made


def rows_of(
    name: str, store: GradientStore, slopes: Slopes, advantages: np.ndarray, draws: int, confidence: float, seed: int
) -> list[dict]:
    """One row for each estimator and length.

    ``relative_error`` is ``|estimate - exact| / |exact|`` of the summed gradients and ``cosine`` that between them;
    ``forward``, ``backward`` and ``weights`` are the norms of the parts that add up to the difference, over the same
    ``|exact|``; ``sampling_noise`` is the standard error of the exact gradient's mean over as many responses, over its
    norm. Ends of percentile bootstrap intervals over responses: ``_low``, ``_high``.
    """
    times = np.array([np.ones(len(advantages)), *resamples(len(advantages), draws, seed)])
    outside = (1 - confidence) / 2
    rows = []
    for length, sizes in zip(slopes.lengths, slopes.tokens, strict=True):
        vectors = Vectors([store.read(r, int(n)) for r, n in zip(slopes.responses, sizes, strict=True)], advantages)
        constant = lambda key: vectors.combination([(key, 1.0)] * len(advantages))  # noqa: B023
        exact, forward, plain = constant(EXACT), constant(FORWARD), constant(PLAIN)
        square = vectors.products(times, exact, exact)
        mean = np.broadcast_to(exact.mean(0), exact.shape)
        apart = vectors.products(np.eye(len(exact)), exact - mean, exact - mean).sum() / (1 - 1 / len(exact))
        for (label, at), places in slopes.places.items():
            if at != length:
                continue
            estimate = vectors.combination(places)
            with np.errstate(invalid="ignore", divide="ignore"):  # nothing is kept: no direction
                error = (vectors.products(times, estimate - exact, estimate - exact).clip(0) / square) ** 0.5
                along = vectors.products(times, estimate, estimate).clip(0) * square
                cosine = vectors.products(times, estimate, exact) / along**0.5
            row = {"dtype": name, "estimator": label, "length": length, "responses": len(exact)}
            row |= {"mean_tokens": float(sizes.mean()), "kept": slopes.kept[label, length]}
            for key, values in (("relative_error", error), ("cosine", cosine)):
                known = values[1:][np.isfinite(values[1:])]
                low, high = np.quantile(known, [outside, 1 - outside]) if len(known) else (np.nan, np.nan)
                row |= {key: values[0], f"{key}_low": low, f"{key}_high": high}
            parts = {"forward": forward - exact, "backward": plain - forward, "weights": estimate - plain}
            squares = {part: max(vectors.products(times[:1], v, v)[0], 0.0) for part, v in parts.items()}
            row |= {part: (value / square[0]) ** 0.5 for part, value in squares.items()}
            row["sampling_noise"] = (apart / square[0]) ** 0.5
            rows.append({k: None if isinstance(v, float) and not np.isfinite(v) else v for k, v in row.items()})
    return rows


class Vectors:
    """All that is stored of the responses at one length, by their products alone: what is compared are combinations.

    Args:
        stored: of each response, (size,) vectors by key.
        advantages: (N,), which every combination is multiplied by.
    """

    def __init__(self, stored: list[dict[str, np.ndarray]], advantages: np.ndarray):
        self.advantages = advantages
        self.place = {key: i for i, key in enumerate((i, key) for i, s in enumerate(stored) for key in s)}
        rows = np.array([vector for s in stored for vector in s.values()], dtype=np.float64)
        self.gram = rows @ rows.T

    def combination(self, places: list[tuple[str, float]]) -> np.ndarray:
        """(N, vectors): each response's multiple of one of its vectors."""
        made = np.zeros((len(places), len(self.gram)))
        for i, (key, multiple) in enumerate(places):
            made[i, self.place[i, key]] = self.advantages[i] * multiple
        return made

    def products(self, times: np.ndarray, one: np.ndarray, other: np.ndarray) -> np.ndarray:
        """(draws,): <sum_i n_i one_i, sum_i n_i other_i> for each draw's counts n, (draws, N)."""
        return ((times @ (one @ self.gram @ other.T)) * times).sum(1)


def crossings(rows: Sequence[dict]) -> dict[str, dict[str, float | None]]:
    """By dtype and estimator: the length at which the error reaches the sampling noise, between measured lengths on
    straight lines in logarithms; None if it does at none of them."""
    found: dict[str, dict[str, float | None]] = {}
    for dtype, label in dict.fromkeys((row["dtype"], row["estimator"]) for row in rows):
        curve = [r for r in rows if (r["dtype"], r["estimator"]) == (dtype, label)]
        excess = [np.log(max(r["relative_error"], 1e-300) / r["sampling_noise"]) for r in curve]
        place = float(curve[0]["length"]) if excess[0] >= 0 else None
        for before, after, low, high in zip(curve, curve[1:], excess, excess[1:], strict=False):
            if place is None and high >= 0:
                place = before["length"] * (after["length"] / before["length"]) ** (low / (low - high))
        found.setdefault(dtype, {})[label] = place
    return found


def merged(rows: Sequence[dict]) -> list[tuple[dict, str]]:
    """Rows of one dtype and length, with all estimators whose numbers are the same to four digits in one."""
    known = {correction.label: correction for correction in catalogue()}
    groups: dict[tuple, tuple[dict, list[Correction]]] = {}
    for row in rows:
        numbers = tuple(
            f"{row[key]:.3e}" if row[key] is not None else "" for key in ("relative_error", "cosine", "kept")
        )
        groups.setdefault((row["dtype"], row["length"], *numbers), (row, []))[1].append(known[row["estimator"]])
    return [(row, "; ".join(c.label for c in united(same))) for row, same in groups.values()]


COLUMNS = ("relative error", "cosine", "forward", "backward", "weights", "kept", "sampling noise")


def cells(row: dict) -> list[str]:
    def shown(key: str) -> str:
        if row[key] is None:
            return "-"
        if f"{key}_low" not in row:
            return f"{row[key]:.3g}"
        return f"{row[key]:.3g} [{row[f'{key}_low'] or 0:.3g}, {row[f'{key}_high'] or 0:.3g}]"

    return [shown(name.replace(" ", "_")) for name in COLUMNS]


LEGEND = (
    "kept: share of the tokens that the estimator keeps, those without an advantage too. sampling noise: the error of "
    "another batch of as many responses, in FP32. forward, backward, weights: the parts that add up to the error. "
    "Below some 64 responses intervals are rough."
)


def markdown(rows: Sequence[dict]) -> str:
    parts = []
    for dtype, length in dict.fromkeys((row["dtype"], row["length"]) for row in rows):
        at = [row for row in rows if (row["dtype"], row["length"]) == (dtype, length)]
        size = f"{at[0]['responses']} responses, {at[0]['mean_tokens']:.0f} on average"
        title = f"## {dtype.upper()}, up to {length} tokens ({size})"
        lines = [title, "", f"| estimator | {' | '.join(COLUMNS)} |", "|---" * (len(COLUMNS) + 1) + "|"]
        lines += [f"| {label} | {' | '.join(cells(row))} |" for row, label in merged(at)]
        parts.append("\n".join(lines))
    return "\n\n".join([*parts, LEGEND]) + "\n"


def show(rows: Sequence[dict]) -> None:
    from rich.console import Console
    from rich.table import Table

    for dtype in dict.fromkeys(row["dtype"] for row in rows):
        table = Table(title=f"{dtype.upper()}, up to {rows[0]['length']} tokens", show_lines=True)
        for heading in ("estimator", *COLUMNS):
            table.add_column(heading)
        for row, label in merged([row for row in rows if row["dtype"] == dtype]):
            table.add_row(label, *cells(row))
        Console(width=150).print(table)


def draw(rows: Sequence[dict], names: Sequence[str], model: str):
    """Relative error against length, a line for each estimator and dtype, in panels of five; sampling noise dotted.

    Args:
        names: of estimators, without thresholds; each is drawn at the first recipe's.
    """
    labels = {}
    for correction in catalogue():
        if correction.title in names and any(row["estimator"] == correction.label for row in rows):
            labels.setdefault(correction.title, correction.label)
    names = [name for name in names if name in labels]
    panels = [names[i : i + PANEL] for i in range(0, len(names), PANEL)]
    made, axes = style.figure(1, len(panels), (6.4 * len(panels), 4.6), sharey=True)
    crossed = crossings(rows)
    for axis, members in zip(axes.flat, panels, strict=True):
        for dtype in dict.fromkeys(row["dtype"] for row in rows):
            for i, name in enumerate(members):
                curve = [r for r in rows if (r["dtype"], r["estimator"]) == (dtype, labels[name])]
                value = lambda key: np.array([r[key] for r in curve], dtype=float)  # noqa: B023
                x, color = value("length"), style.PALETTE[i]
                axis.plot(x, value("relative_error"), style.LINES[dtype], color=color, marker=style.MARKERS[i],
                          markersize=4, markerfacecolor=color if dtype == "fp16" else "white")  # fmt: skip
                low, high = value("relative_error_low"), value("relative_error_high")
                axis.fill_between(x, low, high, color=color, alpha=0.12, linewidth=0)
                place = crossed[dtype][labels[name]]
                if place is not None:
                    noise = np.interp(np.log(place), np.log(x), value("sampling_noise"))
                    axis.plot(place, noise, "x", color=color, markersize=8, markeredgewidth=2)
                    axis.annotate(f"{place:.0f}", (place, noise), (4, 6), textcoords="offset points", fontsize=8)
        noises = [r for r in rows if r["estimator"] == labels[members[0]]]
        noises = {n: np.mean([r["sampling_noise"] for r in noises if r["length"] == n]) for n in x}
        axis.plot(noises.keys(), noises.values(), ":", color="black", linewidth=1, zorder=0)
        axis.annotate(
            "sampling noise of the batch", (x[0], noises[x[0]]), (0, 6), textcoords="offset points", fontsize=8
        )
        axis.set(xscale="log", yscale="log", xlabel="first tokens of each response, up to")
        axis.set_xticks(x, [f"{n:,.0f}" for n in x])
        axis.minorticks_off()
        lines = [
            style.pyplot.Line2D([], [], color=style.PALETTE[i], marker=style.MARKERS[i], markersize=4, label=name)
            for i, name in enumerate(members)
        ]
        axis.legend(handles=lines, loc="upper left", bbox_to_anchor=(0, -0.13), ncols=3)
    dtypes = dict.fromkeys(row["dtype"] for row in rows)
    keys = [style.pyplot.Line2D([], [], color="black", linestyle=style.LINES[d], label=d.upper()) for d in dtypes]
    if any(crossed[dtype][labels[name]] is not None for dtype in dtypes for name in names):
        keys.append(
            style.pyplot.Line2D([], [], color="black", marker="x", linestyle="", label="reaches the noise (tokens)")
        )
    made.legend(handles=keys, loc="outside lower right", ncols=4)
    axes[0, 0].set_ylabel("|gradient - exact gradient| / |exact gradient|")
    made.suptitle(f"Each estimator's gradient beside the one without mismatch: {model}")
    return made
