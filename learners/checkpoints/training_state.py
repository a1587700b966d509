"""What a checkpoint holds, and how a learner takes it up again.

Weights are kept as FP32 masters and AdamW's moments, whole and by parameter name, whatever ZeRO stage and number of
processes cut them up in memory; so a run may go on with another number or stage. They are gathered and written one
parameter at a time, each process writing every so-manieth, so that no process ever holds the whole. They are written
flat, so that each process reads no more of them than it will hold; what is computed with is cast from that.

A ``learner`` is learners/policy_learner.py's. Files: state.json (counters, loss scaler, scheduler, the log's own
state), weights-<rank>.safetensors, rng-<rank>.json, and, for a run that was stopped within a step, rollout.safetensors
with the responses it was learning from.
"""

import json
import random
from pathlib import Path

import numpy as np
import torch
from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_get_local_fp32_param,
    safe_set_local_fp32_param,
    safe_set_local_optimizer_state,
)
from safetensors.torch import load_file, save_file

from actors import runtime
from learners.model.weights import shard
from learners.rollouts.batch import RolloutBatch
from learners.rollouts.step import Step
from tasks.errors import UsageError, require

FORMAT = 2
STATE, ROLLOUT = "state.json", "rollout.safetensors"
MASTER, MOMENTS = "master", ("exp_avg", "exp_avg_sq")
SCALER_FIELDS = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")


# ---------------------------------------------------------------------------------------------------------- writing


def write(learner, folder: Path) -> list[Path]:
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


def own_tensors(learner) -> dict[str, torch.Tensor]:
    """The masters and moments that this process writes, as flat FP32 CPU tensors by ``<kind>/<parameter name>``."""
    processes, own = learner.processes, {}
    link_moments(learner)
    for i, (name, parameter) in enumerate(trained_parameters(learner)):
        for kind in kinds(adam_steps(learner)):
            if kind == MASTER:
                whole = safe_get_full_fp32_param(parameter)
            else:
                whole = safe_get_full_optimizer_state(parameter, kind)
            if i % processes.world_size == processes.rank:
                own[f"{kind}/{name}"] = whole.detach().to("cpu", torch.float32, copy=True).flatten()
    return own


def make_moments(learner) -> None:
    """Have AdamW make its moments, which it does at its first update only: an update that changes nothing."""
    ids = torch.ones(1, 2, dtype=torch.long, device=runtime.device())
    chosen = torch.ones(1, 1, dtype=torch.bool, device=runtime.device())
    for group in learner.optimizer.param_groups:
        group["lr"] = 0.0
    learner.engine.train()
    nothing = learner.engine(ids, ids.sum(1), chosen).sum() * 0.0
    learner.strategy.backward(nothing, learner.model, learner.optimizer)
    learner.strategy.optimizer_step(learner.optimizer, learner.model, learner.scheduler)


def link_moments(learner) -> None:
    """ZeRO 1 and 2 note where each parameter's moments are after the first group's first update, when those of the
    other groups do not exist yet; have them look again."""
    if hasattr(learner.optimizer, "_lazy_init_hp_params_optimizer_state") and adam_steps(learner) > 0:
        learner.optimizer._hp_optimizer_states_linked = False
        learner.optimizer._lazy_init_hp_params_optimizer_state()


def kinds(steps: int) -> tuple[str, ...]:
    """What there is of a parameter: AdamW has no moments before its first update."""
    return (MASTER, *MOMENTS) if steps > 0 else (MASTER,)


def trained_parameters(learner) -> list[tuple[str, torch.nn.Parameter]]:
    return [(name, p) for name, p in learner.causal_lm.named_parameters() if p.requires_grad]


def shapes(learner) -> dict[str, list[int]]:
    """Names and shapes of what is trained: a checkpoint fits a learner that has the same."""
    return {name: list(getattr(p, "ds_shape", p.shape)) for name, p in trained_parameters(learner)}


def describe(learner, tally: dict | None) -> dict:
    step = learner.in_progress
    scaler = getattr(learner.optimizer, "loss_scaler", None)
    return {
        "format": FORMAT,
        "steps_done": learner.steps_done,
        "in_progress": None if step is None else step.position() | {"tally": tally},
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


def read(learner, folder: Path) -> None:
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


def read_weights(learner, folder: Path, wanted: tuple[str, ...]) -> None:
    """Set this process's part of masters and moments, reading nothing else, and what all processes compute with."""
    where = {}
    for file in folder.glob("weights-*.safetensors"):
        where |= {name: (file, offset) for name, offset in offsets(file).items()}
    for name, parameter in trained_parameters(learner):
        part = held_part(parameter)
        for kind in wanted:
            if part.start < part.stop:
                file, offset = where[f"{kind}/{name}"]
                values = np.fromfile(file, np.float32, part.stop - part.start, offset=offset + 4 * part.start)
                set_part(parameter, kind, torch.from_numpy(values))
    compute_with_masters(learner)


def offsets(file: Path) -> dict[str, int]:
    """Where in a safetensors file each tensor's bytes begin.

    Slices are read with that, as safetensors' own map the file into memory, and the kernel then reads around them: half
    of each tensor cost the whole of a file.
    """
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        header = json.loads(opened.read(length))
    return {name: 8 + length + what["data_offsets"][0] for name, what in header.items() if name != "__metadata__"}


def held_part(parameter: torch.nn.Parameter) -> slice:
    """Which of the parameter's elements, counted through its flat form, this process holds master and moments of."""
    if hasattr(parameter, "ds_id"):
        return shard(parameter)
    if parameter._hp_mapping is None:  # ZeRO 1 and 2 cut up all parameters laid end to end; others hold this one
        return slice(0, 0)
    address = parameter._hp_mapping.lp_fragment_address
    return slice(address.start, address.start + address.numel)


def set_part(parameter: torch.nn.Parameter, kind: str, values: torch.Tensor) -> None:
    """Set the elements of a master weight or a moment that `held_part` names."""
    if not hasattr(parameter, "ds_id"):
        parameter._hp_mapping.get_hp_fragment(None if kind == MASTER else kind).data.copy_(values)
        return
    values = torch.nn.functional.pad(values, (0, parameter.ds_tensor.ds_numel - len(values)))
    if kind == MASTER:
        safe_set_local_fp32_param(parameter, values)
    else:
        safe_set_local_optimizer_state(parameter, values, kind)


def compute_with_masters(learner) -> None:
    """Cast the masters, each process those that it holds, to the weights of the forward pass, as an update does."""
    if hasattr(learner.optimizer, "update_lp_params"):  # ZeRO 1 and 2: every process gets all of them
        learner.optimizer.update_lp_params()
        return
    for _, parameter in trained_parameters(learner):
        parameter.ds_tensor.data.copy_(safe_get_local_fp32_param(parameter))
        if parameter.ds_status == ZeroParamStatus.AVAILABLE:  # whole and of the past: it is gathered again when used
            parameter.partition()


def set_random_state(state: dict) -> None:
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(torch.tensor(state["torch"], dtype=torch.uint8))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(torch.tensor(state["cuda"], dtype=torch.uint8))


# ------------------------------------------------------------------------------------------------- AdamW's own counter


def adam_counters(learner):
    """Where the optimiser under ZeRO counts its updates: with each tensor's state, or with each group."""
    inner = learner.optimizer.optimizer
    return [holder for holder in (*inner.state.values(), *inner.param_groups) if "step" in holder]


def adam_steps(learner) -> int:
    return max((int(holder["step"]) for holder in adam_counters(learner)), default=0)


def set_adam_steps(learner, steps: int) -> None:
    for holder in adam_counters(learner):
        if torch.is_tensor(holder["step"]):
            holder["step"].fill_(steps)
        else:
            holder["step"] = steps
