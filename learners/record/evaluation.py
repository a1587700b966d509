"""Accuracy on held-out problems during training, shared among the engines of a run."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np

from actors.processes import Processes, gather
from learners.options.config import Config
from tasks.accuracy import Accuracy
from tasks.prompts import Prompt

if TYPE_CHECKING:
    from actors.math_actor import MathActor


def evaluate(config: Config, actor: MathActor, prompts: list[Prompt], processes: Processes) -> dict[str, float]:
    """Sample each prompt ``--eval-n`` times at the sampler's present weights, on its engine, and grade.

    Returns:
        Metrics by their names in metrics.jsonl, the same on every process; {} if there are no prompts.
    """
    if not prompts:
        return {}
    started = time.perf_counter()
    made = actor.evaluate(processes.prompts_of_engine(prompts), seed=config.training.seed)
    parts = [part for part in gather(made if processes.first_of_engine else None) if part is not None]
    rewards, lengths = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    accuracy = Accuracy.of(rewards == 1, config.evaluation.eval_k)
    metrics = {"eval/accuracy": accuracy.mean, "eval/response_length": float(lengths.mean())}
    if accuracy.stderr is not None:
        metrics["eval/accuracy_stderr"] = accuracy.stderr
    if rewards.shape[1] > 1:
        metrics["eval/pass_at_k"] = accuracy.pass_at_k
    return metrics | {"time/evaluate": time.perf_counter() - started}
