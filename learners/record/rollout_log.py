"""Responses with both engines' log-probabilities, kept of each step (``--log-rollouts``) for scripts/doctor.py.

A step is a parquet file of its own, a row a response, that appears whole or not at all; a step that is done again after
a resume replaces its file. claims.json beside them says what the run believes.
"""

import json
import os
from pathlib import Path

import pyarrow
from pyarrow import parquet
from torch import Tensor

from learners.options.config import Config
from learners.record.json_lines import write_whole
from learners.record.run_files import ROLLOUTS

SCHEMA = pyarrow.schema(
    [(name, pyarrow.list_(pyarrow.int32())) for name in ("prompt_ids", "response_ids")]
    + [(name, pyarrow.list_(pyarrow.float32())) for name in ("log_mu", "log_pi")]
    + [("reward", pyarrow.float32()), ("group", pyarrow.int32()), ("step", pyarrow.int32())]
)


def write_rollouts(config: Config, folder: Path, step: int, batch, log_pi: Tensor) -> None:
    """Write a step's file, and at the first call claims.json.

    Args:
        config: resolved.
        folder: the run's.
        step: its number.
        batch: a `learners.rollouts.batch.RolloutBatch`, on the CPU, of the step's first responses.
        log_pi: (B, L - 1), of the trainer at the weights that sampled.
    """
    folder = folder / ROLLOUTS
    folder.mkdir(parents=True, exist_ok=True)
    columns: dict[str, list] = {name: [] for name in SCHEMA.names}
    for i, mask in enumerate(batch.response_mask):
        length, first = int(batch.lengths[i]), int(batch.lengths[i] - mask.sum())
        columns["prompt_ids"].append(batch.input_ids[i, :first].numpy())
        columns["response_ids"].append(batch.input_ids[i, first:length].numpy())
        columns["log_mu"].append(batch.mu_logp[i][mask].numpy())
        columns["log_pi"].append(log_pi[i][mask].numpy())
        columns["group"].append(i // config.sampling.num_samples)
        columns["step"].append(step)
    columns["reward"] = batch.rewards.tolist()
    file, partial = folder / f"step-{step:06d}.parquet", folder / f"_step-{step:06d}.parquet"
    parquet.write_table(pyarrow.table(columns, schema=SCHEMA), partial)
    os.replace(partial, file)
    if not (folder / "claims.json").exists():
        precision, sampling = config.precision, config.sampling
        claims = {"sample_dtype": precision.sample_dtype, "train_dtype": precision.train_dtype, "top_p": 1.0}
        claims |= {"temperature": sampling.temperature, "lora": config.lora.lora_rank > 0}
        write_whole(folder / "claims.json", f"{json.dumps(claims)}\n".encode())
