"""Whether a run fits into its GPUs, the smallest ZeRO stage at which it does, and what to change if it does not."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from actors.devices import gpus
from actors.launch import Launch
from learners.memory.plan import GIB, HEADROOM, Plan, Setting, make_plan
from learners.model.shape import ModelShape, shape_of
from tasks.errors import require

if TYPE_CHECKING:
    from learners.options.config import Config

STAGES = (1, 2, 3)
HOST_BYTES = 18  # of an offloaded parameter: master, gradient, two moments, a half copy
RATIOS = (0.6, 0.5, 0.4, 0.35, 0.3, 0.25, 0.2, 0.15, 0.1)


def setting_of(config: Config, launch: Launch, stage: int = 1) -> Setting:
    """What the sum depends on. The GPU is the smallest of this machine's, or the one that ``--plan-memory`` describes.

    Raises:
        UsageError: there is no GPU here, and none was described.
    """
    memory = config.memory.plan_memory
    require(
        memory is not None or bool(gpus()),
        "--plan needs a GPU to plan for, and there is none here; add --plan-memory 80, and --plan-gpus 8 for eight.",
    )
    training, sampling = config.training, config.sampling
    responses = training.train_batch_size // launch.world_size
    most = training.micro_batch_tokens or training.micro_batch_size * config.max_model_len
    return Setting(
        gpu=int(memory * GIB) if memory is not None else min(gpu.memory for gpu in gpus()),
        processes=launch.world_size,
        stage=training.zero_stage or stage,
        offload=training.offload,
        train=config.precision.train_dtype,
        sample=config.precision.sample_dtype,
        checkpointing=config.model.gradient_checkpointing,
        tokens=min(most, responses * config.max_model_len),
        length=config.max_model_len,
        ratio=sampling.vllm_gpu_ratio,
        sleep_level=sampling.vllm_sleep_level,
        tensor_parallel=sampling.tensor_parallel,
        reference=config.objective.beta > 0,
        merges_adapters=config.lora.lora_rank > 0 and config.lora.lora_sync == "merge",
        sends_adapters=config.lora.lora_rank > 0 and config.lora.lora_sync == "adapter",
        head_fp32=config.precision.lm_head_fp32,
        eager_attention=config.model.attn_implementation == "eager",
    )


def choose_stage(config: Config, launch: Launch) -> int:
    """The smallest ZeRO stage at which the run fits, 3 if it does at none: stage 1 communicates least.

    It is the same in FP16 and BF16, though DeepSpeed's stage 1 holds more in BF16, so that two runs that are compared
    do not differ in it.
    """
    setting, shape = setting_of(config, launch), shape_of(config)
    dtypes = ("fp32",) if setting.train == "fp32" else ("fp16", "bf16")
    fits = lambda stage: all(make_plan(replace(setting, stage=stage, train=dtype), shape).fits for dtype in dtypes)
    return next(filter(fits, STAGES), STAGES[-1])


def plan_for(config: Config, launch: Launch) -> tuple[Plan, str]:
    """The plan of a resolved configuration, and one sentence that says what to do if it does not fit (else "")."""
    setting, shape = setting_of(config, launch), shape_of(config)
    plan = make_plan(setting, shape)
    return plan, "" if plan.fits else refusal(plan, shape, min(launch.local_world_size, launch.world_size))


def refusal(plan: Plan, shape: ModelShape, local_processes: int) -> str:
    """What is too large in a plan that does not fit, and the first option, or pair of options, with which it fits.
    Tensor-parallel peers are of ``local_processes``, those on one machine."""
    if plan.peak > HEADROOM * plan.setting.gpu:
        what = (
            f"each process would hold {plan.peak / GIB:.1f} GiB ({plan.fullest}) on a GPU of "
            f"{plan.setting.gpu / GIB:.1f}, of which {1 - HEADROOM:.0%} are to be left"
        )
    else:
        what = (
            f"vLLM's share of {plan.sampler.share / GIB:.1f} GiB leaves no room for one "
            f"response beside its weights, {plan.sampler.weights / GIB:.1f} GiB"
        )
    single = list(candidates(plan.setting, local_processes))
    for some in [*itertools.combinations(single, 1), *itertools.combinations(single, 2)]:
        changes = {name: value for _, change in some for name, value in change.items()}
        if len(changes) == len(some) and make_plan(replace(plan.setting, **changes), shape).fits:
            options = " ".join(option for option, _ in some)
            price = f", {HOST_BYTES} bytes of host memory a trained parameter" if "--offload" in options else ""
            return f"This run does not fit: {what}; use {options}{price}."
    mends = "no memory option mends that, nor do two: use more or larger GPUs, or a smaller --generate-max-length"
    return f"This run does not fit: {what}; {mends}."


def candidates(setting: Setting, local_processes: int) -> Iterator[tuple[str, dict[str, object]]]:
    """(options, what they change), those that cost least time first."""
    if setting.sleep_level == 0:
        level = 1 if setting.sends_adapters else 2
        yield f"--vllm-sleep-level {level}", {"sleep_level": level}
    if not setting.checkpointing:
        yield "--gradient-checkpointing True", {"checkpointing": True}
    for stage in STAGES:
        if stage > setting.stage:
            yield f"--zero-stage {stage}", {"stage": stage}
    if setting.tokens > setting.length:
        yield f"--micro-batch-tokens {setting.length}", {"tokens": setting.length}
    for ratio in sorted(RATIOS, key=lambda ratio: abs(ratio - setting.ratio)):
        if ratio != setting.ratio:
            yield f"--vllm-gpu-ratio {ratio}", {"ratio": ratio}
    for peers in (2, 4, 8):
        if peers > setting.tensor_parallel and local_processes % peers == 0:
            yield f"--tensor-parallel {peers}", {"tensor_parallel": peers}
    if setting.offload == "none":
        yield "--offload optimizer", {"offload": "optimizer"}
        yield "--zero-stage 3 --offload parameters", {"offload": "parameters", "stage": 3}


def table(plan: Plan) -> str:
    """The plan as text for a terminal, in GiB."""
    setting, sampler = plan.setting, plan.sampler
    parallel = f", {setting.tensor_parallel} a vLLM engine" if setting.tensor_parallel > 1 else ""
    recomputed = "recomputed" if setting.checkpointing else "kept"
    lines = [
        f"{setting.processes} process(es), one a GPU of {setting.gpu / GIB:.1f} GiB{parallel}; ZeRO stage "
        f"{setting.stage}, {setting.train}; micro-batches of {setting.tokens:,} tokens, activations {recomputed}; "
        f"vLLM's sleep level {setting.sleep_level}",
        "",
        "GiB in the fullest process".ljust(34) + "".join(moment.rjust(13) for moment in plan.moments),
    ]
    for line in dict.fromkeys(name for moment in plan.moments.values() for name in moment):
        sizes = [moment.get(line, 0) for moment in plan.moments.values()]
        if any(sizes):
            lines.append(line.ljust(34) + "".join(_cell(size) for size in sizes))
    lines.append("in all".ljust(34) + "".join(_cell(plan.total(moment)) for moment in plan.moments))
    cache = f"a cache of {sampler.cache / GIB:.1f} for {int(sampler.sequences(setting.length))} sequences"
    lines += [
        "",
        f"vLLM's {sampler.share / GIB:.1f}: weights {sampler.weights / GIB:.1f}, "
        f"{cache if plan.sampler_has_room else 'no room for one sequence'} of {setting.length:,} tokens at once, and a "
        "workspace, an estimate",
        "By arithmetic (learners/memory/plan.py); nothing was measured on a GPU.",
    ]
    if plan.fits:
        lines.append(f"fits: at most {plan.peak / GIB:.1f} GiB, {plan.fullest}")
    return "\n".join(lines)


def _cell(size: int) -> str:
    return (f"{size / GIB:.1f}" if size else "-").rjust(13)
