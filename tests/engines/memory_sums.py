"""What DeepSpeed really holds beside what the plan says: `memory_sums.py MODEL CASE ...`, a case is dtype-stage[-lora].

Run as one process or under torchrun; the last line that the first process prints is JSON: case -> moment -> [bytes that
are held, bytes that were planned], at three moments of a learner's life: built, before the optimiser's step, after it.

Held are the storages of all tensors that python can reach, gradients of tensors included, each once; but for those that
were there before, and for DeepSpeed's bucket and the weights that ZeRO-3 has gathered, which are another line's.
"""

import gc
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

import train
from actors.launch import Launch
from learners.command_line import parse
from learners.memory.advice import setting_of
from learners.memory.plan import BACKWARD, BUCKET, SAMPLING, STARTS, Plan, make_plan
from learners.model.shape import shape_of
from learners.options.config import Config
from tests.engines.fixed_batch import fixed_batch, leave

LINES = ("weights", "FP32 master weights", "AdamW's moments", "gradients")


def storages() -> dict[int, torch.UntypedStorage]:
    gc.collect()
    tensors = [thing for thing in gc.get_objects() if isinstance(thing, torch.Tensor)]
    tensors += [t.grad for t in tensors if t.is_leaf and t.grad is not None]
    return {t.untyped_storage().data_ptr(): t.untyped_storage() for t in tensors if t.device.type == "cpu"}


def options(model: str, case: str) -> Config:
    dtype, stage, *lora = case.split("-")
    return parse(
        [f"--model={model}", f"--dtype={dtype}", f"--zero-stage={stage}", "--rollout-batch-size=8", "--max-steps=5",
         "--prompt-max-length=32", "--generate-max-length=24", "--train-batch-size=64", "--micro-batch-size=16",
         "--gradient-checkpointing=False", *(["--lora-rank=32"] if lora else [])]
    )  # fmt: skip


def planned(config: Config) -> Plan:
    config.memory.plan_memory = 80.0
    return make_plan(setting_of(config, Launch.from_environment()), shape_of(config))


def measure(config: Config, plan: Plan, batch) -> dict[str, list[int]]:
    from actors.processes import Processes
    from learners.options.oat_args import to_oat_args
    from learners.options.precision import Precision
    from learners.policy_learner import PolicyLearner
    from learners.record.run_log import NoLog
    from learners.rollouts.step import Step

    launch = Launch.from_environment()
    there = storages()
    task, prompts, _ = train.load_task(config)
    learner = PolicyLearner(
        config, to_oat_args(config), Precision.of(config.precision), prompts, [], NoLog(Path("unused")),
        Processes(launch.rank, launch.world_size),
    )  # fmt: skip
    found = {}

    def note(moment: str) -> None:
        cut = [p for p in learner.causal_lm.parameters() if not getattr(p, "ds_persist", True)]
        parts = {p.ds_tensor.untyped_storage().data_ptr() for p in cut}  # one process's part is the whole
        gathered = {p.untyped_storage().data_ptr() for p in cut} - parts
        new = [s.nbytes() for pointer, s in storages().items() if pointer not in there.keys() | gathered]
        held = sum(size for size in new if size not in (2 * BUCKET, 4 * BUCKET))
        found[moment] = [held, sum(plan.moments[moment].get(line, 0) for line in LINES)]

    note(STARTS)
    step = learner.strategy.optimizer_step

    def noted(*arguments, **options):
        note(BACKWARD)
        return step(*arguments, **options)

    learner.strategy.optimizer_step = noted
    for number in (1, 2):  # the moments are there from the first update on
        learner.learn(Step(number, batch, times={}))
    note(SAMPLING)
    learner.engine.destroy()
    task.close()
    return found


if __name__ == "__main__":
    train.prepare(parse([]))
    configs = {case: options(sys.argv[1], case) for case in sys.argv[2:]}
    plans = {case: planned(config) for case, config in configs.items()}  # before ZeRO-3 cuts up what is made
    responses = fixed_batch()
    sums = {case: measure(config, plans[case], responses) for case, config in configs.items()}
    if Launch.from_environment().rank == 0:
        print(json.dumps(sums), flush=True)
    leave()
