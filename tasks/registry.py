"""Every task, by the name that ``--task`` takes: whatever the files ``*_task.py`` beside this one register."""

import importlib
from pathlib import Path

from tasks.task import REGISTERED, TaskKind

for file in sorted(Path(__file__).parent.glob("*_task.py")):
    importlib.import_module(f"tasks.{file.stem}")

TASKS: dict[str, TaskKind] = dict(sorted(REGISTERED.items()))
