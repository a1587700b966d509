"""The options of a task, a group of `--help`; and how an option says that something else decides."""

from dataclasses import dataclass
from typing import Annotated, Literal, TypeVar

import tyro

from tasks.arithmetic.problems import EMBEDDED_LEVELS
from tasks.registry import TASKS
from tasks.templates import TEMPLATES

UNSAID = tyro.conf.arg(help_behavior_hint="")  # that a default is None is no news; the help text says what it means
T = TypeVar("T")
Chosen = Annotated[T | None, UNSAID]


@dataclass
class TaskOptions:
    """What is learned: prompts, references and the reward."""

    task: Literal[tuple(TASKS)] = "arithmetic"
    """arithmetic is embedded; math any dataset; sanity a set of partly solved problems; others: docs/tasks.md"""
    data: Annotated[tuple[str, ...], UNSAID] = ()
    """not arithmetic: one or more of hub name (NAME or NAME:CONFIGURATION), folder, .jsonl, .json, .parquet, .csv file;
    reasoning-gym: a generator"""
    data_weights: Annotated[tuple[float, ...], UNSAID] = ()
    """shares of several --data in an epoch, as 2 1; as much as the scarcest allows (default: all of each, once)"""
    eval_data: Chosen[str] = None
    """math, sanity: where evaluation problems come from (default for math: the test split of --data, if it has one)"""
    input_key: str = "problem"
    """math, sanity: column of the question; "outer.inner" is a field within one"""
    output_key: str = "answer"
    """math, sanity: column of the reference answer, likewise"""
    prompt_template: Chosen[Literal[tuple(TEMPLATES)]] = None
    """how a question becomes a prompt (default: arithmetic no, math chat, sanity its card's, reasoning-gym r1)"""
    prompt_max_length: Chosen[int] = None
    """longer prompts are dropped, and counted; tokens (embedded model: 32, else 1024)"""
    train_problems: int = 2048
    """arithmetic, reasoning-gym: number of training problems"""
    arithmetic_levels: tuple[int, ...] = EMBEDDED_LEVELS
    """arithmetic only: which additions; 0: one digit each, 1: two, 2: three and two, 3: three"""
