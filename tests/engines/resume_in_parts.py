"""A checkpoint is written, read and gone on from: `resume_in_parts.py OUT CASE,CASE,... [train.py's options]`.

A case is a dtype, a ZeRO stage and perhaps "lora": fp16-2, bf16-1-lora. Where OUT/<case> holds no checkpoint yet, a
learner makes updates, writes one, and makes more, whose weights go to OUT/<case>/after.safetensors. A new learner then
reads it; what each process read and found goes to OUT/<case>/<processes>-<rank>.json.
"""

import json
import math
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from safetensors.torch import load_file, save_file

from tests.engines.fixed_batch import fixed_batch, learner_alone, leave

LORA = ("--lora-rank=3", "--lora-sync=merge", "--learning-rate=1e-2")


def read_so_far() -> int:
    """Bytes that this process has asked the kernel for."""
    counts = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(counts["rchar"])


def two_updates(learner, number: int) -> None:
    from learners.rollouts.step import Step

    learner.learn(Step(number, fixed_batch().select(torch.arange(16) + 16 * number), times={}))
    learner.learn(Step(number, fixed_batch().select(torch.arange(16) + 16 * number + 16), times={}))
    learner.steps_done = number + 1


def state(learner) -> dict[str, torch.Tensor]:
    """Masters and moments, whole and flat, and the weights that are computed with; on every process."""
    import deepspeed

    from learners.checkpoints import training_state as ts
    from learners.model.weights import master

    made = {}
    for name, parameter in ts.trained_parameters(learner):
        made[f"master/{name}"] = master(parameter).flatten()
        for kind in ts.MOMENTS:
            made[f"{kind}/{name}"] = ts.safe_get_full_optimizer_state(parameter, kind).flatten()
        with deepspeed.zero.GatheredParameters([parameter], enabled=hasattr(parameter, "ds_id")):
            made[f"weight/{name}"] = parameter.data.flatten().clone()
    return {name: tensor.detach().clone() for name, tensor in made.items()}


def run_case(out: Path, case: str, rest: list[str]) -> None:
    from learners.checkpoints import training_state as ts
    from learners.checkpoints.folders import find_checkpoint

    dtype, stage, *lora = case.split("-")
    options = [f"--dtype={dtype}", f"--zero-stage={stage}", *rest, *(LORA if lora else ())]
    if not (out / "checkpoints").exists():
        with learner_alone(out, *options) as learner:
            two_updates(learner, 0)
            written = learner.save_checkpoint()
            two_updates(learner, 2)
            after = state(learner)
            if learner.processes.rank == 0:
                save_file(after, out / "after.safetensors")
        assert written is not None
    with learner_alone(out, *options) as learner:
        before = read_so_far()
        checkpoint, complaints = find_checkpoint(out, "auto")
        verified = read_so_far() - before
        assert complaints == []
        stored = {}
        for file in checkpoint.glob("weights-*"):
            stored |= load_file(file)
        rank, processes = learner.processes.rank, learner.processes.world_size
        read_weights, read = ts.read_weights, []

        def measured(*arguments) -> None:
            before = read_so_far()
            read_weights(*arguments)
            read.append(read_so_far() - before)

        ts.read_weights = measured
        ts.read(learner, checkpoint)
        ts.read_weights = read_weights
        found = state(learner)
        two_updates(learner, 2)
        gone_on = state(learner)
    after = load_file(out / "after.safetensors")
    apart = max((gone_on[name].double() - after[name].double()).abs().max().item() for name in after)
    report = {
        "verified": verified,
        "bytes": sum(file.stat().st_size for file in checkpoint.iterdir()),
        "read": read[0],
        "stored": sum(tensor.nbytes for tensor in stored.values()),
        "as_stored": all(torch.equal(found[name], tensor) for name, tensor in stored.items()),
        "cast": all(
            torch.equal(tensor, stored[name.replace("weight/", "master/", 1)].to(tensor.dtype))
            for name, tensor in found.items()
            if name.startswith("weight/")
        ),
        "apart": apart if math.isfinite(apart) else None,
        "moved": max((after[name] - stored[name]).abs().max().item() for name in stored if name.startswith("master/")),
    }
    (out / f"{processes}-{rank}.json").write_text(json.dumps(report))


if __name__ == "__main__":
    where, cases, *rest = sys.argv[1:]
    for each in cases.split(","):
        run_case(Path(where) / each, each, rest)
    leave()
