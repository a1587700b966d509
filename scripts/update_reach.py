"""How much of what was learned reaches the weights that compute? `python scripts/update_reach.py RUN...`

The optimiser moves FP32 master weights; both engines compute with their casts to the run's dtype. A weight whose master
moved by less than half the distance between two neighbours in that dtype has not moved at all. For each checkpoint of a
run this prints which share of the weights have moved from the model the run started from, and the reach: the movement
of the casts, projected on that of the masters (1: all of it arrives, 0: none).

`--dead-zone runs/dead_zone` looks at the other end: how many updates the runs of scripts/sweeps/dead_zone.yaml are
behind their FP32 twins in reward.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import tyro

from scripts.parts.program import run_program
from tasks.errors import require


@dataclass
class Arguments:
    """Compare the master weights in a run's checkpoints, and their casts, with the model the run started from."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional] = ()
    """folders of runs; give train.py --save-every 1 --keep 100 to have every step's checkpoint"""
    dead_zone: Path | None = None
    """instead: a folder of runs over rates, dtypes and seeds; dead-zone.json, .md, .png and .pdf are written into it"""


def reach(start, master, dtype) -> tuple[int, float, float]:
    """One tensor's part of the two numbers.

    Args:
        start: the model's weight, any floating dtype.
        master: the same weight later, FP32.
        dtype: that the run computes in.

    Returns:
        How many of the casts have moved; the inner product of the casts' movement with the masters'; the squared length
        of the masters'. The reach of a model is the sum of the second over the sum of the third.
    """
    before, after = start.float().to(dtype), master.to(dtype)
    moved, wanted = after.double() - before.double(), master.double() - start.double()
    return int((after != before).sum()), (moved * wanted).sum().item(), wanted.square().sum().item()


def masters(checkpoint: Path):
    """(name, flat FP32 tensor) of every master weight in a checkpoint."""
    from safetensors import safe_open

    for file in sorted(checkpoint.glob("weights-*.safetensors")):
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (it is no mapping)
                if name.startswith("master/"):
                    yield name.removeprefix("master/"), tensors.get_tensor(name)


def weights(model: str):
    """(name, FP32 tensor) of every weight of a model."""
    import torch
    from transformers import AutoModelForCausalLM

    for name, weight in AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).named_parameters():
        yield name, weight.detach()


def table_of(run: Path):
    """A row for each checkpoint: run, dtype, step, share of casts that moved, reach.

    Raises:
        UsageError: the folder has no checkpoints, or they are of adapters.
    """
    from learners.command_line import parse
    from learners.options.precision import TORCH_DTYPES
    from learners.record.run_files import CHECKPOINTS

    checkpoints = sorted(path for path in (run / CHECKPOINTS).glob("step-*") if path.name[5:].isdigit())
    require(run.is_dir(), f"{run} is no folder; name a run's.")
    require(bool(checkpoints), f"{run} has no checkpoints of whole steps; train with --save-every 1 --keep 100.")
    config = json.loads((run / "config.json").read_text())
    dtype, model = config["precision"]["train_dtype"], config["model"]["model"]
    path = parse([f"--model={model}", "--wandb=disabled"]).model_path
    start = dict(weights(path))
    for checkpoint in checkpoints:
        moved, along, length, size = 0, 0.0, 0.0, 0
        for name, master in masters(checkpoint):
            require(name in start, f"{checkpoint} holds {name}, which is no weight of {model}; adapters will not do.")
            parts = reach(start[name].flatten(), master, TORCH_DTYPES[dtype])
            moved, along, length, size = moved + parts[0], along + parts[1], length + parts[2], size + master.numel()
        yield (
            run.name,
            dtype,
            str(int(checkpoint.name[5:])),
            f"{moved / size:.1%}",
            f"{along / max(length, 1e-300):.3f}",
        )


def show_delays(folder: Path) -> int:
    """Compare a sweep's runs with their FP32 twins, and write what comes out beside them.

    Raises:
        UsageError: see `find_runs` and `late`; or the runs are of several models.
    """
    import numpy as np

    from learners.command_line import parse
    from scripts.parts import dead_zone, style
    from scripts.parts.runs import find_runs

    runs = find_runs([folder])
    models = {run.options["model"] for run in runs}
    require(len(models) == 1, f"{folder} holds runs of several models, {', '.join(sorted(models))}; compare one's.")
    model = parse([f"--model={models.pop()}", "--wandb=disabled"]).model_path
    median = float(np.median(np.concatenate([np.abs(w.numpy().ravel()) for _, w in weights(model)])))
    rows = dead_zone.late(runs, median)
    require(any(row.coarsest != "fp32" for row in rows), f"{folder} has no finished run in FP16 or BF16 yet.")
    (folder / "dead-zone.json").write_text(json.dumps(dead_zone.to_dict(rows, median), indent=2) + "\n")
    (folder / "dead-zone.md").write_text(dead_zone.markdown(rows))
    style.save(dead_zone.draw(rows), folder / "dead-zone")
    print(f"median weight {median:.4g}\n\n{dead_zone.markdown(rows)}")
    print(f"written to {folder}/: dead-zone.json, .md, .png, .pdf")
    return 0


def main(arguments: Arguments) -> int:
    if arguments.dead_zone is not None:
        return show_delays(arguments.dead_zone)
    require(bool(arguments.runs), "Name at least one folder of a run.")
    import transformers.utils.logging
    from rich.console import Console
    from rich.table import Table

    transformers.utils.logging.disable_progress_bar()
    table = Table("run", "dtype", "step", "weights that moved", "reach")
    for run in arguments.runs:
        for row in table_of(run):
            table.add_row(*row)
    Console(width=100).print(table)
    print("a run has only the checkpoints that it kept; --save-every 1 --keep 100 keeps those of its first steps too")
    return 0


if __name__ == "__main__":
    run_program(lambda: main(tyro.cli(Arguments)))
