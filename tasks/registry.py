"""Every task, by the name that ``--task`` takes."""

from pathlib import Path

from tasks.task import find_tasks

TASKS = find_tasks(Path(__file__).parent)
