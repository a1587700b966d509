"""Reading what runs wrote (docs/metrics.md), and grouping them: what differs is the label, seeds are averaged."""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from learners.objectives import OBJECTIVES
from tasks.errors import UsageError, require

# Options that say nothing about what a run measures.
UNLABELLED = set("seed output_dir name log_samples save_model save_every dtype train_dtype sample_dtype".split())
OBJECTIVE_ORDER = list(OBJECTIVES)
LAST = 5  # steps that a final value is the mean of


@dataclass
class Run:
    """One run's folder, finished or not."""

    folder: Path
    options: dict
    """every option by its name on the command line, with underscores"""
    described: dict
    """config.json as it is, with versions and device"""
    records: list[dict]
    """of metrics.jsonl; a value is None where it was not finite"""
    summary: dict | None
    """of summary.json; None while the run goes on, or if it was killed"""

    @classmethod
    def read(cls, folder: Path) -> "Run":
        """Read a folder that `is_run`.

        Raises:
            UsageError: its config.json or a line of its metrics.jsonl is not JSON.
        """
        try:
            described = json.loads((folder / "config.json").read_text())
            lines = _lines(folder / "metrics.jsonl")
            records = [json.loads(line) for line in lines[:-1]]
            records += _last_line(lines)
        except (OSError, ValueError) as error:
            raise UsageError(f"{folder} cannot be read ({error}); leave it out.") from error
        options = {}
        for name, value in described.items():
            if isinstance(value, dict) and name != "environment":
                options |= value
        known = {"objective", "dtype"} <= set(options)
        require(known, f"{folder}/config.json names no objective and dtype; leave that folder out.")
        try:
            summary = json.loads((folder / "summary.json").read_text())
        except (OSError, ValueError):
            summary = None
        return cls(folder, options, described, records, summary)

    @property
    def dtype(self) -> str:
        """fp16, or bf16-train-fp32-sample where the two sides differ."""
        train, sample = (self.options.get(key) or self.options["dtype"] for key in ("train_dtype", "sample_dtype"))
        return train if train == sample else f"{train}-train-{sample}-sample"

    @property
    def objective(self) -> str:
        return self.options["objective"]

    @property
    def status(self) -> str:
        return self.summary["status"] if self.summary else "unfinished"

    def series(self, key: str) -> tuple[np.ndarray, np.ndarray]:
        """Steps and values of a metric, where it was recorded; NaN where it was not finite."""
        points = [(r["step"], _number(r[key])) for r in self.records if key in r]
        if key == "eval/accuracy" and self.summary and self.summary.get("initial_accuracy") is not None:
            first = (0, self.summary["initial_accuracy"])
            points = [first, *points] if not points or points[0][0] > 0 else points
        steps, values = zip(*points, strict=True) if points else ((), ())
        return np.array(steps, float), np.array(values, float)

    def durations(self) -> dict[float, float]:
        """Seconds of sampling, learning and evaluating of each step; the start-up is left out."""
        return {
            float(record["step"]): (record.get("time/step") or 0.0) + (record.get("time/evaluate") or 0.0)
            for record in self.records
        }

    def first(self, key: str) -> float:
        """The first finite value; NaN if there is none."""
        values = self.series(key)[1]
        finite = values[np.isfinite(values)]
        return float(finite[0]) if len(finite) else math.nan

    def last(self, key: str, count: int = 1) -> float:
        """The mean of the last ``count`` values that are finite; NaN if there is none."""
        values = self.series(key)[1]
        finite = values[np.isfinite(values)][-count:]
        return float(finite.mean()) if len(finite) else math.nan

    def median(self, key: str) -> float:
        """The median of the finite values; NaN if there is none."""
        values = self.series(key)[1]
        finite = values[np.isfinite(values)]
        return float(np.median(finite)) if len(finite) else math.nan


def _lines(file: Path) -> list[str]:
    return [line for line in file.read_text().splitlines() if line.strip()] if file.exists() else []


def _last_line(lines: list[str]) -> list[dict]:
    """The last record, unless the run is just writing it, or was killed then."""
    try:
        return [json.loads(lines[-1])] if lines else []
    except ValueError:
        return []


def _number(value) -> float:
    return math.nan if value is None else float(value)


def is_run(folder: Path) -> bool:
    return (folder / "config.json").is_file() and ((folder / "metrics.jsonl").is_file())


def find_runs(places: Iterable[Path]) -> list[Run]:
    """The runs in the given folders: each is a run, or holds some (a sweep's set-aside ones are passed over).

    Raises:
        UsageError: a place is no folder, or holds no run, or no run has a step to show.
    """
    runs = []
    for place in places:
        require(place.is_dir(), f"{place} is no folder; name runs, or folders of runs.")
        inside = [place] if is_run(place) else sorted(f for f in place.iterdir() if f.is_dir() and is_run(f))
        inside = [folder for folder in inside if folder == place or ".set-aside-" not in folder.name]
        require(bool(inside), f"{place} holds no run (no config.json beside a metrics.jsonl); name another folder.")
        runs += [Run.read(folder) for folder in inside]
    runs = list({run.folder.resolve(): run for run in runs}.values())
    require(any(run.records for run in runs), "None of the runs has completed a step; there is nothing to show yet.")
    return runs


@dataclass
class Group:
    """Runs that differ in their seed at most."""

    dtype: str
    label: str
    """what they have in common that other groups do not, the dtype apart; "" if there is nothing else"""
    runs: list[Run]

    @property
    def name(self) -> str:
        return ", ".join(part for part in (self.label, self.dtype.upper()) if part)


MOST_DIFFERENCES = 3  # options in a label


def group_runs(runs: Sequence[Run]) -> list[Group]:
    """Group by what differs: objective, dtype, and any other option that differs between runs that agree in the two.

    (An objective brings its thresholds with it; they are not named beside it.) Where more than a few options differ,
    the runs are told apart by the names of their folders.
    """
    several = len({run.objective for run in runs}) > 1
    keys = sorted(_differing_options(runs))
    groups: dict[tuple, Group] = {}
    for run in runs:
        parts = [run.objective] if several else []
        parts += [f"{key} {_text(run.options[key])}" for key in keys if run.options.get(key) is not None]
        label = ", ".join(parts) if len(keys) <= MOST_DIFFERENCES else run.folder.name
        group = groups.setdefault((label, run.dtype), Group(run.dtype, label, []))
        group.runs.append(run)
    labels = list(dict.fromkeys(group.label for group in groups.values()))

    def place(group: Group) -> tuple:
        return OBJECTIVE_ORDER.index(group.runs[0].objective), labels.index(group.label), dtype_order(group.dtype)

    return sorted(groups.values(), key=place)


def dtype_order(dtype: str) -> tuple:
    """FP16, BF16, FP32, and then what is mixed."""
    names = ("fp16", "bf16", "fp32")
    return (names.index(dtype), dtype) if dtype in names else (len(names), dtype)


def _differing_options(runs: Sequence[Run]) -> set[str]:
    """Options with several values among runs of the same objective and dtype.

    What only some of these have, such as a rejection's thresholds, came with another one and is left out, unless
    nothing else differs.
    """
    families: dict[tuple, list[Run]] = {}
    for run in runs:
        families.setdefault((run.objective, run.dtype), []).append(run)
    differing, common = set(), set()
    for family in families.values():
        unlabelled = UNLABELLED | ({"max_steps"} if all(map(_at_constant_rate, family)) else set())
        for key in set().union(*(run.options for run in family)) - unlabelled:
            values = [run.options.get(key) for run in family]
            if not key.startswith("wandb") and len({_text(value) for value in values}) > 1:
                differing.add(key)
                common |= set() if None in values else {key}
    return common or differing


def _at_constant_rate(run: Run) -> bool:
    """Whether a step is the same however many are to follow."""
    warm_up = run.options.get("lr_warmup_ratio") or run.options.get("lr_warmup_steps")
    return run.options.get("lr_scheduler") == "constant" and not warm_up


def _text(value) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value)) or "nothing"
    return f"{value:g}" if isinstance(value, float) else str(value)


# ------------------------------------------------------------------------------------------------ averages


@dataclass
class Band:
    """A mean over runs with its standard deviation: (points,) each."""

    x: np.ndarray
    mean: np.ndarray
    deviation: np.ndarray
    """0 where there is one run"""


def band_over_steps(runs: Sequence[Run], key: str) -> Band:
    """At each step, over the runs that have a finite value there; a run that ended early is left out from there on."""
    values: dict[float, list[float]] = {}
    for run in runs:
        for step, value in zip(*run.series(key), strict=True):
            if np.isfinite(value):
                values.setdefault(step, []).append(value)
    steps = sorted(values)
    return Band(
        np.array(steps), np.array([np.mean(values[s]) for s in steps]), np.array([deviation(values[s]) for s in steps])
    )


def band_over_time(runs: Sequence[Run], key: str) -> Band:
    """The same, each step at the mean time at which the runs had done it: the sum of the mean durations so far."""
    durations: dict[float, list[float]] = {}
    for run in runs:
        for step, seconds in run.durations().items():
            durations.setdefault(step, []).append(seconds)
    ends, total = {0.0: 0.0}, 0.0
    for step in sorted(durations):
        total += float(np.mean(durations[step]))
        ends[step] = total
    band = band_over_steps(runs, key)
    return Band(np.array([ends[step] for step in band.x]), band.mean, band.deviation)


def deviation(values: Sequence[float]) -> float:
    """The sample's standard deviation (n - 1); 0 for one value."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


# ------------------------------------------------------------------------------------------------ final values

FINAL_VALUES = {
    "reward": lambda run: run.last("train/reward", LAST),
    "accuracy": lambda run: run.last("eval/accuracy"),
    "first |pi - mu|": lambda run: run.first("mismatch/abs_prob_diff_mean"),
    "last |pi - mu|": lambda run: run.last("mismatch/abs_prob_diff_mean", LAST),
    "last k3": lambda run: run.last("mismatch/kl_k3", LAST),
    "gradient norm": lambda run: run.last("precision/grad_norm", LAST),
    "loss scale": lambda run: run.last("precision/loss_scale"),
    "skipped": lambda run: run.last("precision/skipped_updates"),
    "length": lambda run: run.last("train/response_length", LAST),
    "s/step": lambda run: run.median("time/step"),
}


def final_values(group: Group) -> dict[str, tuple[float, float]]:
    """Mean and standard deviation over a group's runs of each of `FINAL_VALUES`; NaN where no run has one."""
    made = {}
    for name, value_of in FINAL_VALUES.items():
        values = [value for value in map(value_of, group.runs) if np.isfinite(value)]
        made[name] = (float(np.mean(values)), deviation(values)) if values else (math.nan, math.nan)
    return made


def table_of(groups: Sequence[Group]) -> list[list[str]]:
    """The table of final values as text, its header first."""
    rows = [["run", "dtype", "runs", "steps", *FINAL_VALUES]]
    for group in groups:
        steps = sorted({len(run.records) for run in group.runs})
        unfinished = sum(run.status != "finished" for run in group.runs)
        count = f"{len(group.runs)}" + (f" ({unfinished} unfinished)" if unfinished else "")
        span = f"{steps[0]}" if len(steps) == 1 else f"{steps[0]}-{steps[-1]}"
        cells = [mean_and_deviation(*value, len(group.runs)) for value in final_values(group).values()]
        rows.append([group.label or "all", group.dtype, count, span, *cells])
    return rows


def mean_and_deviation(mean: float, spread: float, count: int) -> str:
    """Example: ``mean_and_deviation(0.9734, 0.0042, 3) == "0.973 ± 0.004"``; without a spread, the mean alone."""
    if not np.isfinite(mean):
        return "-"
    if mean == round(mean) or abs(mean) >= 1000:
        decimals = 0 if spread == 0 or abs(mean) >= 1000 else 1
    else:
        decimals = max(0, 2 - math.floor(math.log10(abs(mean))))
    if decimals > 4:
        exponent = math.floor(math.log10(abs(mean)))
        digits = f"{mean / 10**exponent:.1f}" + (f" ± {spread / 10**exponent:.1f}" if count > 1 and spread else "")
        return f"({digits})e{exponent}" if "±" in digits else f"{digits}e{exponent}"
    return f"{mean:,.{decimals}f}" + (f" ± {spread:,.{decimals}f}" if count > 1 and spread else "")


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells, the header first, as a Markdown table."""
    escaped = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    lines = ["| " + " | ".join(row) + " |" for row in escaped]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]]) + "\n"


def print_table(rows: Sequence[Sequence[str]], common: int = 4, most_columns: int = 8) -> None:
    """Rows of cells, the header first, to the terminal; a wide table in parts that share its first columns."""
    from rich.console import Console
    from rich.table import Table

    width = most_columns - common
    spread = any("±" in cell for row in rows[1:] for cell in row)
    caption = f"reward, |pi - mu|, k3, gradient norm, length: mean of the last {LAST} steps" + (
        "; mean ± standard deviation over runs" if spread else ""
    )
    for start in range(common, len(rows[0]), width):
        parts = [[*row[:common], *row[start : start + width]] for row in rows]
        table = Table(caption=None if start + width < len(rows[0]) else caption)
        for index, heading in enumerate(parts[0]):
            table.add_column(heading, justify="left" if index < 2 else "right", no_wrap=True)
        for row in parts[1:]:
            table.add_row(*row)
        console = Console()
        Console(width=max(console.width, 130)).print(table)
