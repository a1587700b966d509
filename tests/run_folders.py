"""Folders as runs write them, with made-up numbers."""

import json
import math
from pathlib import Path

from learners.command_line import parse


def write_run(
    place: Path,
    *options: str,
    rewards: list[float | None],
    status: str | None = "finished",
    mismatch: float = 5e-5,
    seconds: float = 2.0,
    accuracies: dict[int, float] | None = None,
    samples: list[dict] | None = None,
    also: dict[str, float] | None = None,
) -> Path:
    """A run's folder with one step for each reward; without a status it has not ended.

    Args:
        place: the folder to make.
        options: of train.py.
        seconds: of each step.
        accuracies: by step; that of step 0 goes where a run puts it, into the summary.
        samples: lines of samples.jsonl.
        also: further metrics of every step.
    """
    place.mkdir(parents=True)
    config = parse([*options, f"--output-dir={place}"])
    described = config.to_dict() | {"environment": {"device": "a machine", "versions": {}}}
    (place / "config.json").write_text(json.dumps(described))
    accuracies = accuracies or {}
    records = []
    for step, reward in enumerate(rewards, start=1):
        record = {
            "step": step,
            "train/reward": reward,
            "train/response_length": 10.0 + step,
            "mismatch/abs_prob_diff_mean": mismatch * (1 + 0.1 * math.sin(step)),
            "mismatch/kl_k3": mismatch**2 * 100,
            "precision/loss_scale": 65536.0 if config.precision.train_dtype == "fp16" else 1.0,
            "precision/grad_norm": 0.5,
            "precision/skipped_updates": 0,
            "time/step": seconds,
        }
        if step in accuracies:
            record |= {"eval/accuracy": accuracies[step], "time/evaluate": 1.0}
        records.append(record | (also or {}))
    (place / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    if samples is not None:
        (place / "samples.jsonl").write_text("".join(json.dumps(sample) + "\n" for sample in samples))
    if status is not None:
        summary = {"status": status, "initial_accuracy": accuracies.get(0), "steps": len(records), "final_reward": 0.5}
        (place / "summary.json").write_text(json.dumps(summary))
    return place
