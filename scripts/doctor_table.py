"""How often the doctor names the right cause: `python scripts/doctor_table.py`.

Both engines make dumps with one fault each (scripts/parts/faults.py), and draws of a few responses are diagnosed. The
embedded model by default; stale weights and adapters are those of real training steps of it, made first.
"""

import collections
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Literal

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np
import pyarrow
import tyro
from pyarrow import parquet

from learners.diagnosis.dump import Dump
from scripts.parts.program import run_program
from tasks.errors import require


@dataclass
class Arguments:
    """Make dumps with one fault each, and count what the doctor says."""

    dtype: Literal["fp16", "bf16", "fp32"] = "fp16"
    """of both engines"""
    seed: int = 1
    """of prompts and sampling"""
    prompts: int = 128
    """additions"""
    n: int = 8
    """responses to each"""
    draw: int = 64
    """responses that are diagnosed together"""
    draws: int = 20
    """of each dump"""
    dumps: Path | None = None
    """folder of the dumps; those that are there are not made again (default: none is kept)"""


def trained_weights(arguments: Arguments, rank: int, steps: int) -> dict:
    """The embedded model after each of a few training steps: number -> weights in FP32, adapters merged."""
    import train
    from learners.command_line import parse

    with tempfile.TemporaryDirectory() as folder:
        rate = ["--learning-rate=1e-3", f"--lora-rank={rank}"] if rank else []
        usual = ["--eval-steps=0", "--save-every=0", "--wandb=disabled", f"--output-dir={folder}/run"]
        told = [f"--dtype={arguments.dtype}", f"--seed={arguments.seed}", f"--max-steps={steps}"]
        config = parse([*told, *rate, *usual])
        task, prompts, held_out = train.load_task(config)
        train.prepare(config)
        import torch

        from learners.model.weights import whole_weights
        from learners.record.run_log import RunLog, default_folder

        learner = train.build(config, task, prompts, held_out, RunLog(config, default_folder(config)))
        made = {}
        for number in range(1, steps + 1):
            learner.learn(learner.collect(number))
            learner.sync_params_to_actors()
            tensors = whole_weights(learner.causal_lm, torch.float32, learner.precision.train)
            made[number] = {name: tensor.detach().clone() for name, tensor in tensors}
        learner.close()
        task.close()
    return made


def select(dump, rows: np.ndarray):
    """Some of a dump's responses."""
    lengths = np.diff(dump.starts)[rows]
    tokens = np.concatenate([np.arange(dump.starts[i], dump.starts[i + 1]) for i in rows])
    flat = {name: getattr(dump, name) for name in ("response_ids", "log_mu", "log_pi", "log_pi_again")}
    own = {name: getattr(dump, name) for name in ("reward", "group", "step", "finished")}
    return replace(
        dump, starts=np.concatenate([[0], np.cumsum(lengths)]), prompt_ids=[dump.prompt_ids[i] for i in rows],
        **{name: None if values is None else values[tokens] for name, values in flat.items()},
        **{name: None if values is None else values[rows] for name, values in own.items()},
    )  # fmt: skip


def diagnoses(dump, size: int, draws: int, seed: int) -> collections.Counter:
    """Names of what is found first in draws of whole groups of responses."""
    from learners.diagnosis.diagnose import diagnose

    rng, groups = np.random.default_rng(seed), np.unique(dump.group)
    count = min(len(groups), max(1, size * len(groups) // len(dump)))
    found = collections.Counter()
    for _ in range(draws):
        rows = np.flatnonzero(np.isin(dump.group, rng.choice(groups, count, replace=False)))
        found[diagnose(select(dump, rows)).name] += 1
    return found


def make(arguments: Arguments, folder: Path, wanted: dict) -> Iterator[str]:
    """Make the dumps of some faults; the name of each as soon as its file is there."""
    weights = {}
    if any(fault.scoring.weights != "base" for fault in wanted.values()):
        steps, adapters = trained_weights(arguments, 0, 4), trained_weights(arguments, 4, 6)
        weights = {"step 1": steps[1], "step 4": steps[4], "adapter": adapters[6]}
    from actors import runtime
    from learners.options.precision import TORCH_DTYPES
    from scripts.analyze_mismatch import Arguments as Analysis
    from scripts.analyze_mismatch import load_prompts
    from scripts.parts.faults import SAMPLINGS, Laboratory, dump_of

    config, prompts, _ = load_prompts(Analysis(prompts=arguments.prompts, seed=arguments.seed))
    runtime.prepare({dtype := TORCH_DTYPES[arguments.dtype]})
    laboratory = Laboratory(config.model_path, dtype, config.max_model_len, 128, weights)
    ids, sampled = [prompt.token_ids for prompt in prompts], {}
    for name, fault in wanted.items():
        if fault.sampling not in sampled:
            how, longest = SAMPLINGS[fault.sampling], config.sampling.generate_max_length
            sampled[fault.sampling] = laboratory.sample(ids, arguments.n, longest, how, arguments.seed)
        responses, more = sampled[fault.sampling], {}
        if fault.again is not None:
            more["log_pi_again"] = np.concatenate(laboratory.score(responses, fault.again)).astype(np.float32)
        claims = {"sample_dtype": arguments.dtype, "train_dtype": arguments.dtype} | fault.claims
        keep(folder, name, dump_of(responses, laboratory.score(responses, fault.scoring), claims=claims, **more))
        yield name
    laboratory.close()


def keep(folder: Path, name: str, dump: Dump) -> None:
    """Write a dump in the plain form, and what is claimed of it."""
    tokens = {name: getattr(dump, name) for name in ("response_ids", "log_mu", "log_pi", "log_pi_again")}
    columns = {name: np.split(flat, dump.starts[1:-1]) for name, flat in tokens.items() if flat is not None}
    columns |= {"prompt_ids": list(dump.prompt_ids), "group": dump.group, "finished": dump.finished}
    (folder / f"{name}.claims.json").write_text(json.dumps(dump.claims))
    parquet.write_table(pyarrow.table(columns), folder / f"_{name}")
    os.replace(folder / f"_{name}", folder / name)


def main(arguments: Arguments) -> int:
    """Make the table; returns the exit code."""
    require(
        arguments.draw >= arguments.n, f"--draw is {arguments.draw}; draw at least the {arguments.n} of one prompt."
    )
    from scripts.parts.dump_reading import read
    from scripts.parts.faults import faults

    wanted = faults(lambda prompt: [prompt[0], *prompt], 0, "top-k 3")
    right = 0
    with tempfile.TemporaryDirectory() as passing:
        folder = arguments.dumps or Path(passing)
        folder.mkdir(parents=True, exist_ok=True)
        there = [name for name in wanted if (folder / name).exists()]
        missing = {name: fault for name, fault in wanted.items() if name not in there}
        print("| fault | what is found first |\n|---|---|")
        for name in chain(there, make(arguments, folder, missing) if missing else ()):
            found = diagnoses(read([folder / name], {}), arguments.draw, arguments.draws, arguments.seed)
            right += sum(found[cause] for cause in wanted[name].causes) > 0.5 * arguments.draws
            told = ", ".join(f"{cause} {count}" for cause, count in found.most_common())
            print(f"| {name} | {told} |", flush=True)
    print(f"\nright in most draws: {right} of {len(wanted)} kinds")
    return 0


if __name__ == "__main__":
    run_program(lambda: main(tyro.cli(Arguments)))
