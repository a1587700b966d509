"""How often the doctor names the right cause: `python scripts/doctor_table.py`.

Both engines make dumps with one fault each (scripts/parts/faults.py), and draws of a few responses are diagnosed. The
embedded model by default, which answers additions; stale weights and adapters are those of real training steps, made
first. What the dtype's own rounding hides is healthy, and counted so (`HIDDEN`).
"""

import collections
import json
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
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
from learners.diagnosis.totals import add_up
from scripts.parts.program import run_program
from tasks.errors import require

HIDDEN = 2.0  # a fault whose dump has less than so many times the k3 of a healthy one is below rounding
SYSTEM = "<|im_start|>system\nYou are a helpful assistant who answers in one sentence.<|im_end|>\n"


@dataclass
class Arguments:
    """Make dumps with one fault each, and count what the doctor says."""

    dtype: Literal["fp16", "bf16", "fp32"] = "fp16"
    """of both engines"""
    model: str = "embedded"
    """a folder with a chat template; "embedded" is the model of this repository"""
    train: tuple[str, ...] = ()
    """more options of train.py for the steps behind stale weights, as preset=smollm2-135m"""
    max_tokens: int = 24
    """a response is cut here"""
    only: tuple[str, ...] = ()
    """faults by name (default: all)"""
    seed: int = 1
    """of prompts and sampling"""
    prompts: int = 128
    """additions"""
    n: int = 8
    """responses to each"""
    draw: tuple[int, ...] = (64,)
    """responses that are diagnosed together, one size or more"""
    draws: int = 20
    """of each dump"""
    dumps: Path | None = None
    """folder of the dumps; those that are there are not made again (default: none is kept)"""


def trained_weights(arguments: Arguments, folder: Path, rank: int, steps: tuple[int, ...]) -> dict:
    """The model after these training steps, in ascending order: number -> weights in FP32, adapters merged; kept beside
    the dumps."""
    import torch

    import train
    from learners.command_line import parse

    kept = folder / f"weights-{rank}.pt"
    if kept.exists():
        return torch.load(kept)
    with tempfile.TemporaryDirectory() as passing:
        rate = ["--learning-rate=1e-3", f"--lora-rank={rank}"] if rank else []
        rate = [f"--model={arguments.model}", *(f"--{option}" for option in arguments.train), *rate]
        usual = ["--eval-steps=0", "--save-every=0", "--wandb=disabled", f"--output-dir={passing}/run"]
        told = [f"--dtype={arguments.dtype}", f"--seed={arguments.seed}", f"--max-steps={steps[-1]}"]
        config = parse([*told, *rate, *usual])
        task, prompts, held_out = train.load_task(config)
        train.prepare(config)
        from learners.model.weights import whole_weights
        from learners.record.run_log import RunLog, default_folder

        learner = train.build(config, task, prompts, held_out, RunLog(config, default_folder(config)))
        made = {}
        for number in range(1, steps[-1] + 1):
            learner.learn(learner.collect(number))
            learner.sync_params_to_actors()
            tensors = whole_weights(learner.causal_lm, torch.float32, learner.precision.train)
            if number in steps:
                made[number] = {name: tensor.detach().clone() for name, tensor in tensors}
        learner.close()
        task.close()
    torch.save(made, folder / f"_{kept.name}")
    os.replace(folder / f"_{kept.name}", kept)
    return made


def other_prompt(model: str) -> Callable[[list[int]], list[int]]:
    """Ids of a prompt -> ids of one that asks the same: the embedded model's sum the other way round, or, for another
    model, after another system prompt."""
    from tasks.arithmetic.model import CHECKPOINT
    from tasks.prompts import load_tokenizer

    tokenizer = load_tokenizer(str(CHECKPOINT) if model == "embedded" else model)
    encode = lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]
    if model == "embedded":
        change = lambda text: re.sub(r"(\d+)\+(\d+)", r"\2+\1", text)
    else:
        change = lambda text: re.sub(r"(?s)^(<\|im_start\|>system\n.*?<\|im_end\|>\n)?", SYSTEM, text, count=1)
    return lambda ids: encode(change(tokenizer.decode(ids)))


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
        steps, adapters = (trained_weights(arguments, folder, *what) for what in ((0, (1, 4)), (4, (6,))))
        weights = {"step 1": steps[1], "step 4": steps[4], "adapter": adapters[6]}
    import torch

    from actors import runtime
    from learners.options.precision import TORCH_DTYPES
    from scripts.analyze_mismatch import Arguments as Analysis
    from scripts.analyze_mismatch import load_prompts
    from scripts.parts.faults import SAMPLINGS, Laboratory, dump_of

    template = None if arguments.model == "embedded" else "chat"
    config, prompts, _ = load_prompts(
        Analysis(arguments.model, prompts=arguments.prompts, seed=arguments.seed, prompt_template=template,
                 max_tokens=arguments.max_tokens)
    )  # fmt: skip
    dtype = TORCH_DTYPES[arguments.dtype]
    runtime.prepare({dtype, torch.bfloat16})
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
    for size in arguments.draw:
        require(size >= arguments.n, f"--draw is {size}; draw at least the {arguments.n} of one prompt.")
    from scripts.parts.dump_reading import read
    from scripts.parts.faults import faults

    wanted = faults(other_prompt(arguments.model), "top-k 3" if arguments.model == "embedded" else "top-k 20")
    unknown = set(arguments.only) - set(wanted)
    require(not unknown, f"--only {', '.join(sorted(unknown))}: no such fault; they are {', '.join(wanted)}.")
    wanted = {name: fault for name, fault in wanted.items() if name in arguments.only or not arguments.only}
    right, healthy = [0] * len(arguments.draw), None
    with tempfile.TemporaryDirectory() as passing:
        folder = arguments.dumps or Path(passing)
        folder.mkdir(parents=True, exist_ok=True)
        there = [name for name in wanted if (folder / name).exists()]
        missing = {name: fault for name, fault in wanted.items() if name not in there}
        print(f"| fault | {' | '.join(f'{size} responses' for size in arguments.draw)} |")
        print("|---" * (1 + len(arguments.draw)) + "|")
        for name in chain(there, make(arguments, folder, missing) if missing else ()):
            dump, causes, cells = read([folder / name], {}), wanted[name].causes, []
            k3 = add_up(dump.starts, dump.log_mu, dump.log_pi).k3
            healthy = k3 if name == "healthy" else healthy
            by_size = not {"healthy", "precision", "raw-log-probs"} & {*causes}  # those are told by what is claimed
            hidden = by_size and healthy is not None and k3 < HIDDEN * healthy
            for i, size in enumerate(arguments.draw):
                found = diagnoses(dump, size, arguments.draws, arguments.seed)
                hits = sum(found[cause] for cause in {*causes, *(["healthy"] if hidden else [])})
                right[i] += hits > 0.5 * arguments.draws
                cells.append(", ".join(f"{cause} {count}" for cause, count in found.most_common()))
            print(f"| {name}{' (below rounding)' if hidden else ''} | {' | '.join(cells)} |", flush=True)
    for size, count in zip(arguments.draw, right, strict=True):
        print(f"\nright in most draws of {size}: {count} of {len(wanted)} kinds")
    return 0


if __name__ == "__main__":
    run_program(lambda: main(tyro.cli(Arguments)))
