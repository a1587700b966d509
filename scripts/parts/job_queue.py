"""Runs that wait for their turn, a few at a time, each a process of its own, with a table of how they get on."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

WAITING, RUNNING, FINISHED, FAILED, STOPPED = "waiting", "running", "finished", "failed", "stopped"
# Where a run lies and who watches it: options that do not make it another run.
PLACE_AND_RECORD = {"output_dir", "name", "log_samples", "wandb", "wandb_project", "wandb_group", "wandb_tags"}
PATIENCE_S = 60.0  # for a run to write its summary after an interruption


@dataclass
class Job:
    """One run of a sweep."""

    folder: Path
    options: list[str]
    combination: dict[str, str]
    """what varies in the sweep, as text"""
    config: dict
    """its options, resolved, by group, as config.json will hold them"""
    status: str = WAITING
    summary: dict | None = None
    process: subprocess.Popen | None = field(default=None, repr=False)

    @property
    def log(self) -> Path:
        """What the run prints."""
        return self.folder.with_name(f"{self.folder.name}.log")

    @property
    def max_steps(self) -> int | None:
        return self.config["training"]["max_steps"]

    def take_up(self) -> str | None:
        """Count a finished run of an earlier sweep as done; move anything else that lies in its place aside.

        Returns:
            What was moved and why, or None.
        """
        if not self.folder.exists():
            return None
        summary, differing = _read_json(self.folder / "summary.json"), self.differing_options()
        if summary and summary.get("status") == FINISHED and not differing:
            self.status, self.summary = FINISHED, summary
            return None
        place = self.folder.with_name(f"{self.folder.name}.set-aside-{time.strftime('%Y%m%d-%H%M%S')}")
        self.folder.rename(place)
        reason = f"other options: {', '.join(differing)}" if differing else "not finished"
        return f"{self.folder.name} was there, {reason}; kept as {place.name}"

    def differing_options(self) -> list[str]:
        """Options in which the run that lies in the folder is another than this one; those that it did not know yet
        do not count."""
        before = _read_json(self.folder / "config.json") or {}
        return [
            name
            for group, options in self.config.items()
            for name, value in options.items()
            if name not in PLACE_AND_RECORD and before.get(group, {}).get(name, value) != value
        ]

    def steps_done(self) -> int:
        try:
            with (self.folder / "metrics.jsonl").open("rb") as file:
                return sum(line.endswith(b"\n") for line in file)
        except OSError:
            return 0

    def start(self, command: list[str], threads: int, directory: Path) -> None:
        environment = {"OMP_NUM_THREADS": str(threads)} | os.environ
        with self.log.open("w") as log:
            # A session of its own: a Ctrl-C at the terminal reaches the sweep, and the sweep stops its runs in turn.
            self.process = subprocess.Popen(
                [*command, f"--output-dir={self.folder}", *self.options],
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=environment, cwd=directory,
                start_new_session=True,
            )  # fmt: skip
        self.status = RUNNING

    def has_ended(self) -> bool:
        """Whether its process is over; then its status and summary are set."""
        if self.process is None or self.process.poll() is None:
            return False
        self.summary = _read_json(self.folder / "summary.json")
        succeeded = self.process.returncode == 0 and (self.summary or {}).get("status") == FINISHED
        self.status = FINISHED if succeeded else FAILED
        self.process = None
        return True


class Queue:
    """Runs jobs, so many at a time; a failure stops no other.

    Args:
        jobs: in order; those that were finished earlier are not run.
        width: jobs at a time.
        command: what the options are given to.
        threads: for each run.
        directory: to run in.
    """

    def __init__(self, jobs: list[Job], width: int, command: list[str], threads: int, directory: Path):
        self.jobs, self.width, self.command, self.threads, self.directory = jobs, width, command, threads, directory
        self.durations: list[float] = []
        self.started: dict[int, float] = {}

    def run(self, on_end: Callable[[], None], poll_s: float = 0.5) -> None:
        """Run until all have ended.

        Args:
            on_end: called after each.

        Raises:
            KeyboardInterrupt: after the runs that were under way have been told to stop, and have.
        """
        for job in self.jobs:
            if moved := job.take_up():
                print(moved)
        with _display(self) as show:
            try:
                while any(job.status in (WAITING, RUNNING) for job in self.jobs):
                    for job in self._ended():
                        on_end()
                        show.say(f"{job.folder.name}: {job.status}{_closing_words(job)}")
                    self._fill()
                    show.refresh()
                    time.sleep(poll_s)
            except KeyboardInterrupt:
                self._stop()
                raise

    def seconds_left(self) -> float | None:
        """By the runs that ended; None before the first has."""
        if not self.durations:
            return None
        typical = sum(self.durations) / len(self.durations)
        now = time.monotonic()
        left = sum(typical for job in self.jobs if job.status == WAITING)
        left += sum(max(0.0, typical - (now - self.started[id(job)])) for job in self.jobs if job.status == RUNNING)
        return left / self.width

    def _ended(self) -> list[Job]:
        ended = [job for job in self.jobs if job.status == RUNNING and job.has_ended()]
        self.durations += [time.monotonic() - self.started[id(job)] for job in ended if job.status == FINISHED]
        return ended

    def _fill(self) -> None:
        free = self.width - sum(job.status == RUNNING for job in self.jobs)
        for job in [job for job in self.jobs if job.status == WAITING][:free]:
            job.start(self.command, self.threads, self.directory)
            self.started[id(job)] = time.monotonic()

    def _stop(self) -> None:
        """As Ctrl-C would, so that every run writes its summary; and by force if one does not."""
        running = [job for job in self.jobs if job.status == RUNNING]
        for job in running:
            job.process.send_signal(signal.SIGINT)
        deadline = time.monotonic() + PATIENCE_S
        for job in running:
            try:
                job.process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                os.killpg(job.process.pid, signal.SIGKILL)  # the session that the run is the leader of
                job.process.wait()
            job.has_ended()
            job.status = STOPPED


def _closing_words(job: Job) -> str:
    if job.status == FAILED:
        return f", see {job.log.name}"
    reward = (job.summary or {}).get("final_reward")
    return "" if reward is None else f", final reward {reward:.3f}"


def _read_json(file: Path) -> dict | None:
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError):
        return None


# ------------------------------------------------------------------------------------------------ the display


def _display(queue: Queue):
    return LiveTable(queue) if sys.stdout.isatty() else Lines(queue)


class Lines:
    """Where there is no terminal: a line for each run that ended."""

    def __init__(self, queue: Queue):
        self.queue = queue

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def refresh(self) -> None:
        pass

    def say(self, line: str) -> None:
        ended = sum(job.status in (FINISHED, FAILED) for job in self.queue.jobs)
        print(f"[{ended}/{len(self.queue.jobs)}] {line}{time_left(self.queue)}", flush=True)


class LiveTable:
    """On a terminal: the runs under way, those that ended last, and how long it will take."""

    def __init__(self, queue: Queue):
        from rich.live import Live

        self.queue = queue
        self.live = Live(get_renderable=lambda: table(queue), refresh_per_second=2, transient=True)

    def __enter__(self):
        self.live.start()
        return self

    def __exit__(self, *_):
        self.live.stop()

    def refresh(self) -> None:
        pass  # by itself

    def say(self, line: str) -> None:
        self.live.console.print(line, highlight=False)


def time_left(queue: Queue) -> str:
    seconds = queue.seconds_left()
    if not seconds:
        return ""
    return f", about {seconds / 3600:.1f} h left" if seconds > 5400 else f", about {seconds / 60:.0f} min left"


def table(queue: Queue, ended_shown: int = 8):
    """The live table: a `rich` renderable."""
    from rich.table import Table

    jobs = queue.jobs
    ended = [job for job in jobs if job.status in (FINISHED, FAILED)]
    waiting = sum(job.status == WAITING for job in jobs)
    failed = sum(job.status == FAILED for job in jobs)
    made = Table(title=f"{len(ended)} of {len(jobs)} runs ended, {failed} failed, {waiting} waiting{time_left(queue)}")
    for heading in ("run", "status", "steps", "reward", "accuracy", "k3, first step"):
        made.add_column(heading, justify="left" if heading in ("run", "status") else "right")
    for job in [*ended[-ended_shown:], *(job for job in jobs if job.status == RUNNING)]:
        made.add_row(*cells(job))
    return made


def cells(job: Job) -> list[str]:
    """A job's row: from its summary, or while it runs from its last line of metrics."""
    summary = job.summary or {}
    reward, accuracy, k3 = (summary.get(key) for key in ("final_reward", "final_accuracy", "mismatch_kl_k3"))
    steps = summary.get("steps", 0)
    if job.status == RUNNING:
        steps = job.steps_done()
        last = last_record(job.folder / "metrics.jsonl")
        reward, accuracy = last.get("train/reward"), last.get("eval/accuracy")
    total = f"/{job.max_steps}" if job.max_steps else ""
    numbers = ["" if x is None else f"{x:.{digits}}" for x, digits in ((reward, "3f"), (accuracy, "3f"), (k3, "2e"))]
    return [job.folder.name, job.status, f"{steps}{total}", *numbers]


def last_record(file: Path) -> dict:
    """The last whole line of a metrics.jsonl; {} if there is none."""
    try:
        with file.open("rb") as stream:
            stream.seek(0, os.SEEK_END)
            stream.seek(max(0, stream.tell() - 16384))
            lines = stream.read().splitlines()
    except OSError:
        return {}
    for line in reversed(lines):
        try:
            return json.loads(line)
        except ValueError:
            continue
    return {}
