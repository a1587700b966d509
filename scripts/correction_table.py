"""What each correction for the mismatch costs, and where it stops working: `python scripts/correction_table.py`.

A correction is an objective, or a rejection before `reinforce`, at the defaults of every recipe. On a toy policy whose
sequences can be enumerated, beside a sampler with noise of the size that FP16 and BF16 have on a real model, out come
the exact bias and variance of its gradient and the sample it leaves, by length: exact to 8 tokens, from samples with
standard errors to 8,192. With `--responses FOLDER`, what it would have left of the responses that
scripts/analyze_mismatch.py sampled and scored. docs/corrections.md has the results.
"""

import json
import sys
import textwrap
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np
import tyro

from scripts.parts.program import run_program
from tasks.errors import UsageError, require

K3 = {"fp16": 3.21e-5, "bf16": 2.04e-3}  # KL(mu, pi) of a token, SmolLM2-135M, 2026-11-24
ENUMERATED = range(1, 9)
FEWEST = 32  # responses that a point of a curve takes, at least


@dataclass
class Arguments:
    """Bias, variance and remaining sample of every correction, on a toy policy or on real responses."""

    responses: Path | None = None
    """a folder that scripts/analyze_mismatch.py wrote: what each correction would have left of its responses, instead
    of the toy"""
    output_dir: Path | None = None
    """folder of corrections.json, .md, .png and .pdf (default: the table is printed and nothing written)"""
    samples: int = 2048
    """sequences that are sampled in each dtype, for lengths that cannot be enumerated"""
    max_length: int = 8192
    """longest of them, tokens"""
    seed: int = 0
    """of the toy policy and of sampling"""


# A result: label of a correction -> dtype -> points, each {"length": tokens, "left": ..., "bias": ..., ...}.
Results = dict[str, dict[str, list[dict]]]


def on_the_toy(arguments: Arguments) -> Results:
    """Every correction at every length in both dtypes."""
    from tqdm import tqdm

    from scripts.parts.corrections import Bench, catalogue
    from scripts.parts.toy_policy import ToyPolicy, calibrated

    corrections = catalogue()
    sampled = [2**i for i in range(4, 14) if 2**i <= arguments.max_length]
    exact = ToyPolicy(0.0, arguments.seed)
    plain = exact.sample(arguments.samples, arguments.max_length, arguments.seed + 1)
    results: Results = {c.label: {dtype: [] for dtype in K3} for c in corrections}
    with tqdm(total=len(K3) * (len(ENUMERATED) + len(sampled)) * len(corrections), unit="point") as bar:
        for dtype, k3 in K3.items():
            toy = calibrated(k3, seed=arguments.seed)
            sample = toy.sample(arguments.samples, arguments.max_length, arguments.seed + 1)
            for length in (*ENUMERATED, *sampled):
                bar.set_description(f"{dtype}, {length} tokens")
                whole = steps = Bench(toy, sample.prefixes(length), plain.prefixes(length))
                if length in ENUMERATED:
                    whole = Bench(toy, toy.enumerate(length), exact.enumerate(length))
                for correction in corrections:
                    point = (steps if correction.needs_all else whole).point(correction)
                    results[correction.label][dtype].append({"length": length} | point)
                    bar.update()
    return results


def read_responses(folder: Path) -> dict[str, list]:
    """The scored responses of an analysis, by dtype.

    Raises:
        UsageError: it is no such folder.
    """
    from scripts.parts.responses import Chunks

    found = sorted({file.name.rsplit("-", 1)[0] for file in (folder / "responses").glob("[!_]*-*.parquet")})
    require(bool(found), f"--responses {folder} holds no responses; name a folder that analyze_mismatch.py wrote.")
    try:
        settings = json.loads((folder / "settings.json").read_text())
        count = -(-settings["prompts"] // settings["chunk"])
        read = {d: [r for chunk in Chunks(folder / "responses", d, count).scored() for r in chunk] for d in found}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"--responses {folder} is no finished analysis ({error}); let it finish first.") from error
    return {dtype: read[dtype] for dtype in ("fp16", "bf16", "fp32") if dtype in read}


def on_responses(scored: dict[str, list]) -> Results:
    """Every correction on whole responses (length 0) and on their first tokens. No response has a reward here: each
    counts half with A = 1, half with A = -1."""
    from scripts.parts.corrections import STEP, PerResponse, catalogue, joined, what_is_left

    corrections = catalogue()
    results: Results = {c.label: {} for c in corrections}
    for dtype, responses in scored.items():
        longest = max(len(r.log_mu) for r in responses)
        for length in (0, *(2**i for i in range(15) if 2**i <= longest)):
            used = [r for r in responses if len(r.log_mu) >= length]
            if len(used) < FEWEST and length:
                continue
            print(f"{dtype}: {len(used)} responses, {f'{length} tokens' if length else 'whole'}", flush=True)
            batches = [padded(used[i : i + STEP], length or longest) for i in range(0, len(used), STEP)]
            tokens = np.concatenate([batch.mask[: len(batch.mask) // 2].sum(1).numpy() for batch in batches])
            for correction in corrections:
                made = [PerResponse.of(correction.effect(batch), batch.mask) for batch in batches]
                both = joined(joined([part], lambda c: c[0].reshape(2, -1).mean(0)) for part in made)
                point = {"length": length} | what_is_left(both, tokens / tokens.sum(), is_sample=True)
                results[correction.label].setdefault(dtype, []).append(point)
    return results


def padded(responses: list, length: int):
    """The first tokens of the responses as a batch, FP64: all with A = 1, then all again with A = -1."""
    import torch

    from learners.objectives import PolicyBatch

    rows = [torch.tensor([r.log_pi[:length], r.log_mu[:length]], dtype=torch.float64).T for r in responses]
    both = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).repeat(2, 1, 1)
    lengths = torch.tensor([len(row) for row in rows] * 2)
    mask = torch.arange(both.shape[1]) < lengths[:, None]
    advantages = torch.ones(len(both), dtype=torch.float64)
    advantages[len(rows) :] = -1
    return PolicyBatch(both[..., 0], both[..., 1], advantages, mask, both[..., 0])


# ------------------------------------------------------------------------------------------------ tables


@dataclass
class Row:
    """Corrections whose results are equal, those of one name as one."""

    corrections: list
    by_dtype: dict[str, list[dict]]

    @property
    def label(self) -> str:
        return "; ".join(correction.label for correction in self.corrections)


def merged(results: Results) -> list[Row]:
    """Equal results, to 1e-4, in one row."""
    from scripts.parts.corrections import catalogue, united

    groups: list[tuple[list, np.ndarray]] = []
    for correction in catalogue():
        points = (point for of_dtype in results[correction.label].values() for point in of_dtype)
        values = np.array([value for point in points for value in point.values()], dtype=float)
        for members, others in groups:
            if np.allclose(values, others, rtol=1e-4, atol=1e-4, equal_nan=True):
                members.append(correction)
                break
        else:
            groups.append(([correction], values))
    return [Row(united(members), results[members[0].label]) for members, _ in groups]


def half_gone(points: list[dict]) -> tuple[list[tuple[str, float]], str]:
    """Where the sample that is left crosses one half, ("above" or "below", tokens) each, and where it is at the end:
    "kept", "gone", or "about half". To and fro within two standard errors, or 0.03, of one half is no crossing.
    """
    found, place, before, state = [], 0.0, None, "about half"
    for point in points:
        length, left = point["length"], point["left"]
        if before and (before[1] < 0.5) != (left < 0.5):
            place = before[0] * (length / before[0]) ** ((before[1] - 0.5) / (before[1] - left))
        before = length, left
        if abs(left - 0.5) > max(0.03, 2 * point["left_error"]):
            now = "kept" if left > 0.5 else "gone"
            if state not in (now, "about half"):
                found.append(("above" if now == "gone" else "below", float(f"{place:.2g}")))
            state = now
    return found, state


def half_text(points: list[dict]) -> str:
    """Example: ``above 170``; "never" and "always" are of the lengths that were looked at."""
    crossings, state = half_gone([p for p in points if p["length"]])
    always = {"kept": "never", "gone": "always"}.get(state, state)
    return ", ".join(f"{side} {place:,g}" for side, place in crossings) or always


def number(point: dict, key: str, times: float = 100, unit: str = "%") -> str:
    """Example: ``12.3% ± 0.4``; "-" where it is not known."""
    if point[key] is None:
        return "-"
    value, error = (times * point.get(name, 0.0) for name in (key, f"{key}_error"))
    shown, spread = (f"{float(f'{x:.{digits}g}'):,g}" for x, digits in ((value, 3), (error, 2)))
    return (f"{shown}{unit}" if value > 1e-9 else "0") + (f" ± {spread}" if error else "")


def toy_rows(points: list[dict], lengths: list[int]) -> list[str]:
    at = [next(p for p in points if p["length"] == length) for length in lengths]
    return [
        half_text(points),
        *(number(p, "left") for p in at),
        *(number(p, "bias") for p in at),
        *(number(p, "angle", 1, "°") for p in at),
        *(number(p, "variance", 1, "") for p in at),
    ]


def response_rows(points: list[dict]) -> list[str]:
    whole = points[0]
    shares = (1 - whole["responses_kept"], 1 - whole["kept"], whole["limited"])
    return [*(f"{100 * share:.3g}%" for share in shares), number(whole, "left"), half_text(points)]


def tables(results: list[Row], of_toy: bool) -> dict[str, tuple[list[str], list[list[str]]]]:
    """By dtype: header and rows."""
    made = {}
    for dtype, first in results[0].by_dtype.items():
        if of_toy:
            known = [p["length"] for p in first]
            lengths = sorted({ENUMERATED[-1], *(n for n in (512,) if n in known), known[-1]})
            names = ("left", "bias", "angle", "variance")
            header = ["half is gone", *(f"{name}, {n} tokens" for name in names for n in lengths)]
        else:
            header = ["responses dropped", "tokens dropped", "limited", "left", "half is gone"]
        columns = [
            toy_rows(r.by_dtype[dtype], lengths) if of_toy else response_rows(r.by_dtype[dtype]) for r in results
        ]
        made[dtype] = ["correction", *header], [[r.label, *c] for r, c in zip(results, columns, strict=True)]
    return made


def markdown(made: dict) -> str:
    parts = []
    for dtype, (header, rows) in made.items():
        lines = [f"## {dtype.upper()}", "", f"| {' | '.join(header)} |", "|" + "---|" * len(header)]
        parts.append("\n".join(lines + [f"| {' | '.join(row)} |" for row in rows]))
    return "\n\n".join(parts) + "\n"


def show(made: dict, columns: int) -> None:
    from rich.console import Console
    from rich.table import Table

    for dtype, (header, rows) in made.items():
        table = Table(title=dtype.upper(), show_lines=True)
        for heading in header[:columns]:
            table.add_column(heading)
        for row in rows:
            table.add_row(*row[:columns])
        Console(width=120).print(table)


def draw(rows: list[Row], of_what: str):
    """The sample that is left against the length: a panel for each correction that ever loses more than a twentieth."""
    from scripts.parts import style
    from scripts.parts.style import pyplot

    curve = lambda row, dtype: [p for p in row.by_dtype[dtype] if p["length"]]
    loses = [row for row in rows if min(p["left"] for d in row.by_dtype for p in curve(row, d)) < 0.95]
    panels: dict[str, list[Row]] = {}
    for row in loses:
        panels.setdefault(row.corrections[0].title, []).append(row)
    height = -(-len(panels) // 4)
    made, axes = style.figure(height, 4, (12, 2.9 * height + 0.9), sharex=True, sharey=True)
    for axis, members in zip(axes.flat, panels.values(), strict=False):
        axis.axhline(0.5, color="#9a9a9a", linewidth=0.8)
        names = ", ".join(dict.fromkeys(c.title for row in members for c in row.corrections))
        heading = [(line, "black") for line in textwrap.wrap(names, 46, break_on_hyphens=False)]
        for i, (row, color) in enumerate(zip(members, style.PALETTE * 3, strict=False)):
            heading += [(x, color) for x in textwrap.wrap(row.corrections[0].variant, 50, break_on_hyphens=False)]
            for dtype in row.by_dtype:
                points = curve(row, dtype)
                x, y, error = (np.array([p[key] for p in points]) for key in ("length", "left", "left_error"))
                axis.plot(x, y, style.LINES[dtype], color=color)
                axis.fill_between(x, y - error, y + error, color=color, alpha=0.2, linewidth=0)
                for _, place in half_gone(points)[0]:
                    axis.plot(place, 0.5, "o", color=color, markersize=4)
                    at = {"xytext": (6, 3 + 9 * i), "textcoords": "offset points"}
                    axis.annotate(f"{place:,g}", (place, 0.5), **at, fontsize=7.5, color=color)
        axis.set(xscale="log", ylim=(0, 1.04), xticks=[8**i for i in range(5)])
        axis.set_xticklabels([f"{8**i:,}" for i in range(5)])
        axis.tick_params(labelbottom=True)
        axis.minorticks_off()
        for i, (line, color) in enumerate(reversed(heading)):
            axis.annotate(line, (0, 1), (0, 4 + 10 * i), "axes fraction", "offset points", fontsize=7.5, color=color)
    for axis in list(axes.flat)[len(panels) :]:
        axis.set_axis_off()
    keys = [pyplot.Line2D([], [], color="black", linestyle=style.LINES[d], label=d.upper()) for d in ("fp16", "bf16")]
    keys.append(pyplot.Line2D([], [], color="black", marker="o", linestyle="", markersize=4, label="half is gone"))
    made.legend(handles=keys, loc="outside upper right", ncols=3)
    title = f"The share of the sample that each correction leaves, by response length: {of_what}"
    made.suptitle(title, x=0.01, horizontalalignment="left")
    others = "never below 0.95: " + "; ".join(row.label for row in rows if row not in loses)
    lines = ["length of the responses (tokens)", *textwrap.wrap(others, 180, break_on_hyphens=False)]
    made.supxlabel("\n".join(lines), fontsize=8.5)
    made.supylabel("share of the sample that is left", fontsize=9)
    return made


def main(arguments: Arguments) -> int:
    """Compute, print, and write if told so; returns the exit code."""
    started = time.perf_counter()
    require(arguments.samples >= 64, f"--samples is {arguments.samples}; standard errors need at least 64.")
    require(arguments.max_length >= 16, f"--max-length is {arguments.max_length}; up to 8 all are enumerated; give 16.")
    require(arguments.seed >= 0, f"--seed is {arguments.seed}; give 0 or more.")
    of_toy = arguments.responses is None
    scored = {} if of_toy else read_responses(arguments.responses)
    if arguments.output_dir is not None:
        try:
            arguments.output_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"--output-dir {arguments.output_dir} is no folder that can be made ({error}).") from error
    every = on_the_toy(arguments) if of_toy else on_responses(scored)
    rows = merged(every)
    made = tables(rows, of_toy)
    show(made, 4 if of_toy else 6)
    if arguments.output_dir is not None:
        write(arguments.output_dir, every, made, draw(rows, "a toy policy" if of_toy else "real responses"))
    print(f"{time.perf_counter() - started:.0f} s")
    return 0


def write(folder: Path, every: Results, made: dict, figure) -> None:
    from scripts.parts import style

    (folder / "corrections.json").write_text(json.dumps(every, indent=1) + "\n")
    (folder / "corrections.md").write_text(markdown(made))
    style.save(figure, folder / "corrections")
    print(f"written to {folder}/: corrections.json, corrections.md, corrections.png, corrections.pdf")


if __name__ == "__main__":
    run_program(lambda: main(tyro.cli(Arguments)))
