"""What a checkpoint holds, and how a learner takes it up again.

Weights are kept as FP32 masters and AdamW's moments, whole and by parameter name, whatever ZeRO stage and number of
processes cut them up in memory; so a run may go on with another number or stage. They are gathered and written one
parameter at a time, each process writing every so-manieth, so that no process ever holds the whole.

Files: state.json (counters, loss scaler, scheduler, the log's own state), weights-<rank>.safetensors, rng-<rank>.json,
and, for a run that was stopped within a step, rollout.safetensors with the responses it was learning from.
"""

from __future__ import annotations

import json
import random
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import deepspeed
import numpy as np
import torch
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
    safe_set_local_fp32_param,
    safe_set_local_optimizer_state,
)
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from actors import runtime
from learners.rollout import RolloutBatch
from learners.step import Step
from tasks.errors import UsageError, require

if TYPE_CHECKING:
    from learners.policy_learner import PolicyLearner

FORMAT = 1
STATE, ROLLOUT = "state.json", "rollout.safetensors"
MASTER, MOMENTS = "master", ("exp_avg", "exp_avg_sq")
SCALER_FIELDS = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")


# ---------------------------------------------------------------------------------------------------------- writing


def write(learner: PolicyLearner, folder: Path) -> list[Path]:
    """Write this process's part of the learner's state. Returns the files."""
    rank = learner.processes.rank
    weights, rng = folder / f"weights-{rank:04d}.safetensors", folder / f"rng-{rank:04d}.json"
    own = own_tensors(learner)
    tally = learner.in_progress.tally.whole() if learner.in_progress is not None else None
    save_file(own, weights)
    rng.write_text(json.dumps(random_state()))
    if rank != 0:
        return [weights, rng]
    (folder / STATE).write_text(json.dumps(describe(learner, tally), indent=1) + "\n")
    made = [weights, rng, folder / STATE]
    if learner.in_progress is not None:
        save_file(learner.in_progress.batch.tensors(), folder / ROLLOUT)
        made.append(folder / ROLLOUT)
    return made


def own_tensors(learner: PolicyLearner) -> dict[str, torch.Tensor]:
    """The masters and moments that this process writes, as FP32 CPU tensors by ``<kind>/<parameter name>``."""
    processes, own = learner.processes, {}
    link_moments(learner)
    for i, (name, parameter) in enumerate(trained_parameters(learner)):
        for kind in kinds(adam_steps(learner)):
            if kind == MASTER:
                whole = safe_get_full_fp32_param(parameter)
            else:
                whole = safe_get_full_optimizer_state(parameter, kind)
            if i % processes.world_size == processes.rank:
                own[f"{kind}/{name}"] = whole.detach().to("cpu", torch.float32, copy=True).contiguous()
    return own


def make_moments(learner: PolicyLearner) -> None:
    """Have AdamW make its moments, which it does at its first update only: an update that changes nothing."""
    ids = torch.ones(1, 2, dtype=torch.long, device=runtime.device())
    chosen = torch.ones(1, 1, dtype=torch.bool, device=runtime.device())
    for group in learner.optimizer.param_groups:
        group["lr"] = 0.0
    learner.engine.train()
    nothing = learner.engine(ids, ids.sum(1), chosen).sum() * 0.0
    learner.strategy.backward(nothing, learner.model, learner.optimizer)
    learner.strategy.optimizer_step(learner.optimizer, learner.model, learner.scheduler)


def link_moments(learner: PolicyLearner) -> None:
    """ZeRO 1 and 2 note where each parameter's moments are after the first group's first update, when those of the
    other groups do not exist yet; have them look again."""
    if hasattr(learner.optimizer, "_lazy_init_hp_params_optimizer_state") and adam_steps(learner) > 0:
        learner.optimizer._hp_optimizer_states_linked = False
        learner.optimizer._lazy_init_hp_params_optimizer_state()


def kinds(steps: int) -> tuple[str, ...]:
    """What there is of a parameter: AdamW has no moments before its first update."""
    return (MASTER, *MOMENTS) if steps > 0 else (MASTER,)


def trained_parameters(learner: PolicyLearner) -> list[tuple[str, torch.nn.Parameter]]:
    return [(name, p) for name, p in learner.causal_lm.named_parameters() if p.requires_grad]


def shapes(learner: PolicyLearner) -> dict[str, list[int]]:
    """Names and shapes of what is trained: a checkpoint fits a learner that has the same."""
    return {name: list(getattr(p, "ds_shape", p.shape)) for name, p in trained_parameters(learner)}


def describe(learner: PolicyLearner, tally: dict | None) -> dict:
    step = learner.in_progress
    scaler = getattr(learner.optimizer, "loss_scaler", None)
    return {
        "format": FORMAT,
        "steps_done": learner.steps_done,
        "in_progress": None if step is None else asdict(step.position()) | {"tally": tally},
        "counters": learner.counters(),
        "loss_scaler": {name: getattr(scaler, name) for name in SCALER_FIELDS if hasattr(scaler, name)},
        "scheduler": learner.scheduler.state_dict(),
        "adam_steps": adam_steps(learner),
        "log": learner.log.state(),
        "world_size": learner.processes.world_size,
        "zero_stage": learner.args.zero_stage,
        "trained": shapes(learner),
    }


def random_state() -> dict:
    """Of python, numpy and torch, in this process, as JSON can hold it."""
    kind, keys, *rest = np.random.get_state()
    state = {"python": random.getstate(), "numpy": [kind, keys.tolist(), *rest]}
    state["torch"] = torch.get_rng_state().tolist()
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state().tolist()
    return state


# ---------------------------------------------------------------------------------------------------------- reading


def read(learner: PolicyLearner, folder: Path) -> None:
    """Put a learner that was just built into the state of a checkpoint.

    Raises:
        UsageError: the checkpoint is of another model, or of another version of this program.
    """
    state = json.loads((folder / STATE).read_text())
    require(
        state["format"] == FORMAT,
        f"Checkpoint {folder} has format {state['format']}, this program reads {FORMAT}; use its version.",
    )
    refuse_another_model(state["trained"], shapes(learner), folder)
    if state["adam_steps"] > 0:
        make_moments(learner)
        link_moments(learner)
    read_weights(learner, folder, kinds(state["adam_steps"]))
    set_adam_steps(learner, state["adam_steps"])
    scaler = getattr(learner.optimizer, "loss_scaler", None)  # ZeRO-1 in BF16 has none, and there is nothing to scale
    for name, value in state["loss_scaler"].items() if scaler is not None else ():
        setattr(scaler, name, value)
    learner.scheduler.load_state_dict(state["scheduler"])
    for group, rate in zip(learner.optimizer.param_groups, learner.scheduler.get_last_lr(), strict=True):
        group["lr"] = rate
    learner.steps_done = state["steps_done"]
    learner.set_counters(state["counters"])
    if state["in_progress"] is not None:
        batch = RolloutBatch(**load_file(folder / ROLLOUT))
        learner.in_progress = Step.at(state["in_progress"], batch, first=learner.processes.rank == 0)
    own = folder / f"rng-{learner.processes.rank:04d}.json"
    if own.exists():  # with more processes than before, the new ones keep the state that the seed gave them
        set_random_state(json.loads(own.read_text()))


def log_state(folder: Path) -> dict:
    """What the run's log had written when a checkpoint was made; see `RunLog.state`."""
    return json.loads((folder / STATE).read_text())["log"]


def refuse_another_model(written: dict, present: dict, folder: Path) -> None:
    if written == present:
        return
    differing = next(name for name in [*present, *written] if written.get(name) != present.get(name))
    raise UsageError(
        f"Checkpoint {folder} is of another model: {differing} has shape {written.get(differing)} there and "
        f"{present.get(differing)} in this run; give the same --model and --lora options."
    )


def read_weights(learner: PolicyLearner, folder: Path, wanted: tuple[str, ...]) -> None:
    """Set masters, moments and the weights that are computed with, one parameter at a time."""
    where = {}
    for file in sorted(folder.glob("weights-*.safetensors")):
        opened = safe_open(file, "pt")
        where |= dict.fromkeys(opened.keys(), opened)
    for name, parameter in trained_parameters(learner):
        for kind in wanted:
            set_whole(parameter, kind, where[f"{kind}/{name}"].get_tensor(f"{kind}/{name}"))
        master = where[f"{MASTER}/{name}"].get_tensor(f"{MASTER}/{name}")
        with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0, enabled=hasattr(parameter, "ds_id")):
            parameter.data.copy_(master)


def set_whole(parameter: torch.nn.Parameter, kind: str, value: torch.Tensor) -> None:
    """Set this process's part of a master weight or a moment, from the whole of it."""
    sharded = hasattr(parameter, "ds_id")
    if sharded:  # DeepSpeed's own cut of a whole tensor runs past its end where the number of processes does not divide
        size, rank = parameter.ds_tensor.ds_numel, torch.distributed.get_rank()
        flat = value.flatten()
        padded = torch.nn.functional.pad(flat, (0, size * torch.distributed.get_world_size() - len(flat)))
        value = padded[rank * size : (rank + 1) * size]
    if kind == MASTER:
        (safe_set_local_fp32_param if sharded else safe_set_full_fp32_param)(parameter, value)
    else:
        (safe_set_local_optimizer_state if sharded else safe_set_full_optimizer_state)(parameter, value, kind)


def set_random_state(state: dict) -> None:
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(torch.tensor(state["torch"], dtype=torch.uint8))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(torch.tensor(state["cuda"], dtype=torch.uint8))


# ------------------------------------------------------------------------------------------------- AdamW's own counter


def adam_counters(learner: PolicyLearner):
    """Where the optimiser under ZeRO counts its updates: with each tensor's state, or with each group."""
    inner = learner.optimizer.optimizer
    return [holder for holder in (*inner.state.values(), *inner.param_groups) if "step" in holder]


def adam_steps(learner: PolicyLearner) -> int:
    return max((int(holder["step"]) for holder in adam_counters(learner)), default=0)


def set_adam_steps(learner: PolicyLearner, steps: int) -> None:
    for holder in adam_counters(learner):
        if torch.is_tensor(holder["step"]):
            holder["step"].fill_(steps)
        else:
            holder["step"] = steps
