"""Run a W&B sweep file on this machine, without a server: `python scripts/sweep.py scripts/sweeps/objectives.yaml`.

Every combination of a grid becomes a run of train.py in a folder of its own. A run that is there already, with the same
options, is not run again, so the same command goes on after an interruption. A table shows how the runs get on; what
they ended with is written as results.csv (a row a run) and results.md (mean and deviation over seeds).
"""

import csv
import itertools
import json
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import tyro
import yaml

from scripts.parts.job_queue import FAILED, FINISHED, Job, Queue
from scripts.parts.program import run_program
from tasks.errors import UsageError, require


@dataclass
class Arguments:
    """Run every combination of a W&B sweep file (method: grid) on this machine."""

    file: Annotated[Path, tyro.conf.Positional]
    """a sweep file; W&B's agents run the same one"""
    output_dir: Path | None = None
    """folder of the runs and of results.csv (default: runs/<name of the file>)"""
    jobs: int = 1
    """runs at a time; the cores are divided among them"""
    extra: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """options of train.py for every run, in place of the file's: --extra=--max-steps=2; --extra=--reject= for none"""
    only: tuple[str, ...] = ()
    """of what varies these values alone, as the file writes them: --only dtype=fp16 seed=0,1"""


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
    """The options as W&B's agent would send them: a boolean as True or False."""
    return [f"--{name}={value}" for name, value in (fixed | combination).items()]


def run_name(combination: dict[str, str]) -> str:
    return "-".join(f"{name}={value}".replace("/", "_") for name, value in combination.items()) or "run"


def with_extra(options: list[str], extra: tuple[str, ...]) -> list[str]:
    """The options, those that ``extra`` names too left out, then ``extra``, but for what it gives no value (--reject=).

    And no W&B unless it is asked for.
    """
    named = {_name(option) for option in extra}
    made = [option for option in options if _name(option) not in named]
    made += [option for option in extra if not option.endswith("=")]
    return made if any(_name(option) == "wandb" for option in made) else [*made, "--wandb=disabled"]


def _name(option: str) -> str:
    return option.partition("=")[0].lstrip("-").replace("-", "_")


def chosen(combinations: list[dict[str, str]], only: tuple[str, ...]) -> list[dict[str, str]]:
    """The combinations that have the values of ``only``.

    Raises:
        UsageError: it names what does not vary, or a value that is not there.
    """
    for text in only:
        name, _, values = text.partition("=")
        there = list(dict.fromkeys(one.get(name) for one in combinations))
        require(there != [None], f"--only {text} names nothing that varies; {', '.join(combinations[0])} do.")
        for value in values.split(","):
            require(value in there, f"--only {text}: {name} has no value {value}; it has {', '.join(there)}.")
        combinations = [one for one in combinations if one[name] in values.split(",")]
    return combinations


def plan(arguments: Arguments, folder: Path) -> list[Job]:
    """A job for every combination, each checked by the training command's own parser before anything runs.

    Raises:
        UsageError: the file is no grid, or a combination is refused.
    """
    from learners.command_line import parse

    fixed, combinations = read_grid(arguments.file)
    combinations = chosen(combinations, arguments.only)
    for option in arguments.extra:
        is_option = option.startswith("--") and "=" in option
        require(is_option, f"--extra={option} is no option with a value; write it as --extra=--name=value.")
        varied = _name(option) in combinations[0]
        require(not varied, f"--extra={option} sets what {arguments.file} varies; change the file, or leave it out.")
    jobs = []
    for combination in combinations:
        options = with_extra(command_line(fixed, combination), arguments.extra)
        try:
            config = parse(options).to_dict()
        except UsageError as error:
            raise UsageError(f"{run_name(combination)}: {error}") from error
        jobs.append(Job(folder / run_name(combination), options, combination, json.loads(json.dumps(config))))
    return jobs


def results(job: Job) -> dict:
    """A run's row of results.csv: what varied, how it ended, and every number of its summary."""
    summary = {key: value for key, value in (job.summary or {}).items() if not isinstance(value, dict)}
    return {"run": job.folder.name} | job.combination | summary | {"status": job.status}


def write_results(folder: Path, jobs: list[Job]) -> None:
    """results.csv, with the runs so far, and results.md, where at least one has a step."""
    rows = [results(job) for job in jobs if job.summary or job.status == FAILED]
    names = list(dict.fromkeys(name for row in rows for name in row))
    with (folder / "results.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)
    groups = grouped(jobs)
    if groups:
        from scripts.parts.runs import markdown, table_of

        (folder / "results.md").write_text(markdown(table_of(groups)))


def grouped(jobs: list[Job]) -> list:
    """The finished runs, those that differ in their seed alone together."""
    from scripts.parts.runs import Run, group_runs, is_run

    return group_runs([Run.read(job.folder) for job in jobs if job.status == FINISHED and is_run(job.folder)])


def main(arguments: Arguments) -> int:
    """Run what is missing; returns 0 if every run finished, 1 if one failed, 130 if interrupted."""
    require(arguments.jobs >= 1, f"--jobs is {arguments.jobs}; it must be at least 1.")
    folder = (arguments.output_dir or Path("runs") / arguments.file.stem).absolute()
    jobs = plan(arguments, folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--output-dir {folder} cannot be written ({error.strerror}); name another.") from error
    threads = max(1, len(os.sched_getaffinity(0)) // arguments.jobs)
    queue = Queue(jobs, arguments.jobs, [sys.executable, str(ROOT / "train.py")], threads, ROOT)
    for number in (signal.SIGINT, signal.SIGTERM):  # SIGINT too: a shell's background jobs start with it ignored
        signal.signal(number, signal.default_int_handler)
    interrupted = False
    try:
        queue.run(on_end=lambda: write_results(folder, jobs))
    except KeyboardInterrupt:
        interrupted = True
    write_results(folder, jobs)
    groups = grouped(jobs)
    if groups:
        from scripts.parts.runs import print_table, table_of

        print_table(table_of(groups))
    counts = {status: sum(job.status == status for job in jobs) for status in dict.fromkeys(job.status for job in jobs)}
    print(", ".join(f"{count} {status}" for status, count in counts.items()) + f"; see {folder}/results.csv")
    for job in jobs:
        if job.status == FAILED:
            print(f"failed: {job.folder.name}, see {job.log}", file=sys.stderr)
    if interrupted:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    return 0 if set(counts) == {FINISHED} else 1


if __name__ == "__main__":
    run_program(lambda: main(tyro.cli(Arguments)))
