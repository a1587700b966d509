"""Responses with both engines' log-probabilities, kept of each step (``--log-rollouts``) for scripts/doctor.py.

A step is a parquet file of its own, a row a response, that appears whole or not at all; one that is done again after a
resume replaces its file. claims.json beside them says what the run believes, and <step's file>.claims.json what a run
believes that goes on with other options.
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
    """Write a step's file into the run's folder, and what the run claims of it.

    Args:
        batch: a `learners.rollouts.batch.RolloutBatch`, on the CPU, of the step's first responses.
        log_pi: (B, L - 1), of the trainer at the weights that sampled.
    """
    folder = folder / ROLLOUTS
    folder.mkdir(exist_ok=True)
    columns: dict[str, list] = {name: [] for name in SCHEMA.names}
    for i, mask in enumerate(batch.response_mask):
        length, first = int(batch.lengths[i]), int(batch.lengths[i] - mask.sum())
        columns["prompt_ids"].append(batch.input_ids[i, :first].numpy())
        columns["response_ids"].append(batch.input_ids[i, first:length].numpy())
        columns["log_mu"].append(batch.mu_logp[i][mask].numpy())
        columns["log_pi"].append(log_pi[i][mask].numpy())
        columns["group"].append((step - 1) * config.sampling.rollout_batch_size + i // config.sampling.num_samples)
        columns["step"].append(step)
    columns["reward"] = batch.rewards.tolist()
    file, partial = folder / f"step-{step:06d}.parquet", folder / f"_step-{step:06d}.parquet"
    parquet.write_table(pyarrow.table(columns, schema=SCHEMA), partial)
    os.replace(partial, file)
    of_all, own = folder / "claims.json", file.with_name(f"{file.name}.claims.json")
    said = f"{json.dumps(claims_of(config))}\n".encode()
    own.unlink(missing_ok=True)
    if not of_all.exists():
        write_whole(of_all, said)
    elif of_all.read_bytes() != said:
        write_whole(own, said)


def claims_of(config: Config) -> dict:
    """What a run believes of its two engines, by the names of `learners.diagnosis.dump.CLAIMS`."""
    precision, sampling = config.precision, config.sampling
    claims = {"sample_dtype": precision.sample_dtype, "train_dtype": precision.train_dtype, "top_p": 1.0}
    return claims | {"temperature": sampling.temperature, "lora": config.lora.lora_rank > 0}


def drop_later(folder: Path, step: int) -> None:
    """Remove the files of the steps after one, which a run that goes on from there will make again."""
    for file in (folder / ROLLOUTS).glob("step-*.parquet*"):
        if int(file.name[len("step-") :].partition(".")[0]) > step:
            file.unlink()
