"""What the end-to-end tests share."""

import json
import subprocess
import sys
from contextlib import contextmanager

import pytest
from filelock import FileLock

import train
from learners.command_line import parse
from tests.conftest import ROOT


class Run:
    """A finished run of train.py; a folder that holds one already is read."""

    def __init__(self, folder, *arguments: str):
        self.folder, self.output = folder, folder.with_suffix(".out")
        if not self.output.exists():
            self._run(*arguments)
        self.output = self.output.read_text()
        self.metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        self.summary = json.loads((folder / "summary.json").read_text())

    def _run(self, *arguments: str) -> None:
        folder = self.folder
        command = [sys.executable, str(ROOT / "train.py"), f"--output-dir={folder}", *arguments]
        if not any(argument.startswith("--wandb") for argument in arguments):
            command.append("--wandb=disabled")
        done = subprocess.run(command, capture_output=True, text=True, timeout=900, cwd=folder.parent)
        assert done.returncode == 0, done.stderr[-3000:]
        self.output.write_text(done.stdout)


def without_times(records: list[dict]) -> list[dict]:
    return [{k: v for k, v in r.items() if not k.startswith(("time/", "throughput/", "eval/"))} for r in records]


@pytest.fixture(scope="session")
def default_run(tmp_path_factory, worker_id):
    """`train.py --dtype fp16`, once for all the processes that run tests."""
    folder = tmp_path_factory.getbasetemp()
    folder = folder if worker_id == "master" else folder.parent
    with FileLock(folder / "default.lock"):
        return Run(folder / "default", "--dtype", "fp16")


@contextmanager
def built_learner(folder, *arguments: str):
    """A learner with its actor, both real engines in this process, on the embedded model; closed at the end."""
    config = parse([*arguments, f"--output-dir={folder}", "--wandb=disabled"])
    task, prompts, eval_prompts = train.load_task(config)
    train.prepare(config)
    from learners.record.run_log import RunLog, default_folder

    learner = train.build(config, task, prompts, eval_prompts, RunLog(config, default_folder(config)))
    yield learner
    learner.close()
    task.close()
