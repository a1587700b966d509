"""Run a W&B sweep file on this machine, without a server: `python scripts/sweep.py scripts/sweeps/objectives.yaml`.

Every combination of a grid becomes a run of train.py in a folder of its own. A run that is there already is not run
again, so the same command goes on after an interruption. What the runs ended with is shown in one table, and written as
results.csv and results.md.
"""

import csv
import itertools
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import tyro
import yaml
from tqdm import tqdm

from tasks.errors import UsageError

COLUMNS = """status steps initial_reward final_reward initial_accuracy final_accuracy mismatch_abs_prob_diff_mean
mismatch_kl_k3 skipped_updates seconds_per_step wall_seconds peak_memory_gb""".split()


@dataclass
class Arguments:
    """Run every combination of a W&B sweep file (method: grid) on this machine."""

    file: Annotated[Path, tyro.conf.Positional]
    """a sweep file; W&B's agents run the same one"""
    output_dir: Path | None = None
    """folder of the runs and of results.csv (default: runs/<name of the file>)"""
    jobs: int = 1
    """runs at a time; the cores are divided among them"""
    extra: tuple[str, ...] = ()
    """more options of train.py, for every run: --extra=--max-steps=2"""


def read_grid(file: Path) -> tuple[dict[str, str], list[dict[str, str]]]:
    """A sweep file's fixed parameters, and every combination of those that vary.

    Raises:
        UsageError: the file cannot be read, or is no grid.
    """
    try:
        content = yaml.safe_load(file.read_text())
        parameters = content["parameters"]
    except (OSError, yaml.YAMLError, TypeError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise UsageError(f"{file} is no sweep file that can be read ({reason}); see scripts/sweeps/.") from error
    if content.get("method") != "grid":
        raise UsageError(f"{file} asks for method {content.get('method')}; only a grid runs without W&B's server.")
    fixed, varied = {}, {}
    for name, choice in parameters.items():
        if "values" in choice:
            varied[name] = [str(value) for value in choice["values"]]
        elif "value" in choice:
            fixed[name] = str(choice["value"])
        else:
            raise UsageError(f"{file}: parameter {name} has neither value nor values; a grid needs one of them.")
    return fixed, [dict(zip(varied, values, strict=True)) for values in itertools.product(*varied.values())]


def command_line(fixed: dict[str, str], combination: dict[str, str]) -> list[str]:
    """The options as W&B's agent would send them."""
    return [f"--{name}={value}" for name, value in (fixed | combination).items()]


def run_name(combination: dict[str, str]) -> str:
    return "-".join(f"{name}={value}".replace("/", "_") for name, value in combination.items()) or "run"


def summary_of(folder: Path) -> dict | None:
    """What a finished run ended with; None if there is none."""
    try:
        summary = json.loads((folder / "summary.json").read_text())
    except (OSError, ValueError):
        return None
    return summary if summary.get("status") == "finished" else None


def run_one(folder: Path, options: list[str], threads: int) -> dict:
    """Run train.py into the folder unless it is there already; its output goes to <folder>.log."""
    if (done := summary_of(folder)) is not None:
        return done
    if folder.exists():  # begun and not finished: kept, out of the way
        folder.rename(folder.with_name(f"{folder.name}.unfinished-{time.time():.0f}"))
    with folder.with_suffix(".log").open("w") as log:
        environment = {"OMP_NUM_THREADS": str(threads)} | os.environ
        subprocess.run(
            [sys.executable, str(ROOT / "train.py"), f"--output-dir={folder}", *options],
            stdout=log, stderr=subprocess.STDOUT, env=environment, cwd=ROOT, check=False,
        )  # fmt: skip
    return summary_of(folder) or {"status": f"failed, see {folder.with_suffix('.log').name}"}


def show(value) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def write_results(folder: Path, rows: list[dict]) -> str:
    """results.csv and results.md; returns the table as Markdown."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    with (folder / "results.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    lines += ["| " + " | ".join(show(row.get(name)) for name in names) + " |" for row in rows]
    table = "\n".join(lines)
    (folder / "results.md").write_text(table + "\n")
    return table


def main(arguments: Arguments) -> int:
    fixed, combinations = read_grid(arguments.file)
    folder = (arguments.output_dir or Path("runs") / arguments.file.stem).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    threads = max(1, (os.cpu_count() or 1) // arguments.jobs)
    results: dict[int, dict] = {}

    def rows() -> list[dict]:
        made = [combinations[i] | {column: results[i].get(column) for column in COLUMNS} for i in sorted(results)]
        return made

    with ThreadPoolExecutor(arguments.jobs) as pool, tqdm(total=len(combinations), unit="run") as bar:
        futures = {}
        for index, combination in enumerate(combinations):
            options = [*command_line(fixed, combination), *arguments.extra]
            futures[pool.submit(run_one, folder / run_name(combination), options, threads)] = index
        for future in as_completed(futures):
            index = futures[future]
            results[index] = future.result()
            reward, status = results[index].get("final_reward"), results[index]["status"]
            bar.write(f"{run_name(combinations[index])}: {status}, final reward {show(reward)}")
            bar.update()
            write_results(folder, rows())
    print(write_results(folder, rows()))
    print(f"written to {folder}/results.csv and results.md")
    return 0 if all(result["status"] == "finished" for result in results.values()) else 1


if __name__ == "__main__":
    try:
        sys.exit(main(tyro.cli(Arguments)))
    except UsageError as error:
        print(f"sweep.py: {error}", file=sys.stderr)
        sys.exit(2)
