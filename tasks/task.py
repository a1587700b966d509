"""What a task is: problems, how a question becomes a prompt, and the reward of a response.

A task knows no engine. Adding one is a function that returns a `Task` and a line in `TASKS`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tasks.errors import UsageError
from tasks.templates import TEMPLATES, Template

if TYPE_CHECKING:
    from learners.config import Config


@dataclass(frozen=True)
class Example:
    """A question and the reference its answers are graded against, both text."""

    question: str
    answer: str


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


def arithmetic(config: Config) -> Task:
    """The embedded task (tasks/arithmetic)."""
    from tasks.arithmetic.problems import generate
    from tasks.boxed import last_boxed

    def grade(responses: list[str], references: list[str]) -> list[float]:
        return [float((last_boxed(r) or "").strip() == a) for r, a in zip(responses, references, strict=True)]

    options = config.task
    try:
        train = generate(options.train_problems, config.training.seed, "train", options.arithmetic_levels)
        # One test set for every seed, so that runs compare.
        test = generate(config.evaluation.max_eval, 0, "test", options.arithmetic_levels)
    except ValueError as error:
        raise UsageError(f"--train-problems and --max-eval ask for more than there is: {error}.") from error
    template = TEMPLATES[config.task.prompt_template]
    return Task(
        "arithmetic",
        [Example(p.question, p.answer) for p in train],
        [Example(p.question, p.answer) for p in test],
        template,
        grade,
    )


def math(config: Config) -> Task:
    """Any dataset with a question and an answer column, graded by mathematical equality."""
    from tasks.datasets import read_questions
    from tasks.math_reward import MathGrader

    options = config.task
    columns = (options.input_key, options.output_key)
    train = read_questions(options.data, *columns, split="train", flag="--data")
    test = []
    if config.evaluation.eval_steps > 0:
        if options.eval_data is not None:
            test = read_questions(options.eval_data, *columns, split="test", flag="--eval-data")
        else:
            test = read_questions(options.data, *columns, split="test", flag="--data", optional=True)
    grader = MathGrader(answer_in=TEMPLATES[options.prompt_template].answer_in)
    return Task(
        "math",
        train,
        test[: config.evaluation.max_eval],
        TEMPLATES[options.prompt_template],
        grader.grade,
        grader.close,
    )


TASKS: dict[str, Callable[[Config], Task]] = {"arithmetic": arithmetic, "math": math}
