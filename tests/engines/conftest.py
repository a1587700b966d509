"""What the end-to-end tests share."""

import json
import subprocess
import sys
from contextlib import contextmanager

import pytest

import train
from learners.config import parse
from tests.conftest import ROOT


class Run:
    """A finished run of train.py."""

    def __init__(self, folder, *arguments: str):
        self.folder = folder
        command = [sys.executable, str(ROOT / "train.py"), f"--output-dir={folder}", *arguments]
        if not any(argument.startswith("--wandb") for argument in arguments):
            command.append("--wandb=disabled")
        done = subprocess.run(command, capture_output=True, text=True, timeout=900, cwd=folder.parent)
        assert done.returncode == 0, done.stderr[-3000:]
        self.output = done.stdout
        self.metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        self.summary = json.loads((folder / "summary.json").read_text())


def without_times(records: list[dict]) -> list[dict]:
    return [{k: v for k, v in r.items() if not k.startswith(("time/", "throughput/", "eval/"))} for r in records]


@pytest.fixture(scope="session")
def default_run(tmp_path_factory):
    return Run(tmp_path_factory.mktemp("default") / "run", "--dtype", "fp16")


@contextmanager
def built_learner(folder, *arguments: str):
    """A learner with its actor, both real engines in this process, on the embedded model; closed at the end."""
    config = parse([*arguments, f"--output-dir={folder}", "--wandb=disabled"])
    task, prompts, eval_prompts = train.load_task(config)
    train.prepare(config)
    from learners.run_log import RunLog, default_folder

    learner = train.build(config, task, prompts, eval_prompts, RunLog(config, default_folder(config)))
    yield learner
    learner.close()
    task.close()
