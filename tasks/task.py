"""What a task is: problems, how a question becomes a prompt, and the reward of a response.

A task knows no engine. Adding one is one file, tasks/<name>_task.py, with one function marked by `register`
(docs/tasks.md shows one). tasks/registry.py finds them all. A task's file imports nothing heavy outside its functions,
as `train.py --help` imports them all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from tasks.templates import Template


@dataclass(frozen=True)
class Example:
    """A question and the reference its answers are graded against, both text."""

    question: str
    answer: str
    source: int = 0
    """which dataset of a mixture it is from"""
    weight: float | None = None
    """share of that dataset in an epoch, in proportion to the others'; None: all of it, once"""


@dataclass
class Task:
    """Example: ``Task("sums", [Example("1+1=", "2")], [], TEMPLATES["no"], grade=lambda r, a: [...])``."""

    name: str
    train: list[Example]
    test: list[Example]
    template: Template
    grade: Callable[[list[str], list[str]], list[float]]
    """(responses, references) -> rewards from 0 to 1, in the same order"""
    close: Callable[[], None] = lambda: None
    """ends the worker processes of the grader, if it has any"""
    timeouts: Callable[[], int] = lambda: 0
    """answers so far that were not graded in time, and earned 0"""


class TaskKind(NamedTuple):
    """An entry of the registry."""

    build: Callable[[Any], Task]
    """makes the task of a run's resolved options, of which it reads ``task``, ``evaluation`` and ``training.seed``;
    raises UsageError where its data will not do"""
    template: Callable[[tuple[str, ...]], str]
    """``--data`` -> the prompt template where none is asked for"""
    needs_data: str | None
    """what --data names, for messages; None if the task takes none"""


REGISTERED: dict[str, TaskKind] = {}


def register(name: str, template: str | Callable[[tuple[str, ...]], str] = "chat", needs_data: str | None = None):
    """Make a function ``build(config) -> Task`` a choice of ``--task``.

    Args:
        name: the choice.
        template: the default of ``--prompt-template``, or a function of ``--data`` that says it.
        needs_data: what ``--data`` names, if the task needs it.
    """

    def keep(build: Callable[[Any], Task]):
        REGISTERED[name] = TaskKind(build, template if callable(template) else lambda _: template, needs_data)
        return build

    return keep
