"""Options that contradict each other, or would trip a later step: refused before anything heavy is imported."""

from actors.launch import Launch
from learners.objectives import OBJECTIVES, REJECTIONS, THRESHOLDS
from learners.options.config import Config
from learners.options.groups import LOSS_SCALING
from tasks.arithmetic.problems import LEVELS
from tasks.errors import flag, require, require_number
from tasks.registry import TASKS


def check(config: Config, asked_for: dict, launch: Launch) -> None:
    """Refuse what cannot work, whatever the model's files and the folders are.

    Args:
        config: resolved.
        asked_for: the options as they were given, None where they were left out.

    Raises:
        UsageError: with one sentence that says what to do.
    """
    _check_memory(config, asked_for)
    _check_numbers(config, asked_for["training"])
    _check_shares(config, asked_for["training"], launch)
    _check_lora(config, asked_for["lora"])
    _check_precision(config)
    _check_objective(config, asked_for["objective"])
    _check_task(config)


POSITIVE = (
    "rollout_batch_size", "num_samples", "generate_max_length", "prompt_max_length", "train_batch_size",
    "micro_batch_size", "keep", "num_ppo_epochs", "num_prompt_epoch", "max_steps", "max_sampling_rounds", "adam_eps",
    "train_problems", "eval_n", "max_eval", "temperature", "learning_rate", "max_norm",
)  # fmt: skip
NOT_NEGATIVE = (
    "eval_steps", "lr_warmup_steps", "overlong_buffer", "eval_temperature", "log_samples", "save_every", "weight_decay",
    "seed", "log_rollouts", "loss_scale",
)  # fmt: skip


def _check_numbers(config: Config, asked_for: dict) -> None:
    sampling, training, evaluation = config.sampling, config.training, config.evaluation
    for name in (*POSITIVE, *NOT_NEGATIVE):
        if (value := getattr(*config.option(name))) is not None:
            require_number(name, value, or_zero=name in NOT_NEGATIVE)
    require(0 < evaluation.eval_top_p <= 1, "--eval-top-p must lie above 0 and at most at 1.")
    require(
        1 <= evaluation.eval_k <= evaluation.eval_n,
        f"--eval-k is {evaluation.eval_k}; it must lie between 1 and --eval-n {evaluation.eval_n}.",
    )
    require(0 < sampling.vllm_gpu_ratio < 1, "--vllm-gpu-ratio is a share of the GPU's memory, between 0 and 1.")
    require(0 <= training.lr_warmup_ratio < 1, "--lr-warmup-ratio is a share of the updates, from 0 to below 1.")
    require(
        sampling.overlong_buffer <= sampling.generate_max_length,
        f"--overlong-buffer {sampling.overlong_buffer} is the end of --generate-max-length, which is "
        f"{sampling.generate_max_length}; make it shorter.",
    )
    require(training.seed < 2**32, "--seed must be below 2^32.")
    for name in ("adam_beta_1", "adam_beta_2"):
        require(0 <= getattr(training, name) < 1, f"{flag(name)} must lie in [0, 1).")
    require(
        sampling.dynamic_sampling or sampling.max_sampling_rounds is None,
        "--max-sampling-rounds belongs to dynamic sampling; add --dynamic-sampling True.",
    )
    require(
        asked_for["lr_warmup_steps"] is None or asked_for["lr_warmup_ratio"] is None,
        "--lr-warmup-steps and --lr-warmup-ratio say the same in two units; give one of the two.",
    )


def _check_shares(config: Config, asked_for: dict, launch: Launch) -> None:
    """What is divided: a step among updates, updates among processes and micro-batches, processes among engines."""
    total, update, processes = config.sequences_per_step, config.training.train_batch_size, launch.world_size
    require(
        total % update == 0,
        f"A step samples {config.sampling.rollout_batch_size} prompts x {config.sampling.num_samples} responses = "
        f"{total}, which --train-batch-size {update} does not divide; choose a divisor of {total}.",
    )
    for option, size in (("--rollout-batch-size", config.sampling.rollout_batch_size), ("--train-batch-size", update)):
        sentence = f"{option} {size} does not divide among {processes} processes; make it a multiple of them."
        require(size % processes == 0, sentence)
    micro, tokens = asked_for["micro_batch_size"], asked_for["micro_batch_tokens"]
    require(
        micro is None or tokens is None,
        "--micro-batch-size and --micro-batch-tokens are two ways to cut an update; give one of them.",
    )
    require(
        micro is None or update // processes % micro == 0,
        f"--train-batch-size {update} is not a multiple of --micro-batch-size {micro} x {processes} process(es); "
        "choose a micro-batch size that divides it.",
    )
    require(
        tokens is None or tokens >= config.max_model_len,
        f"--micro-batch-tokens {tokens} cannot hold one response with its prompt, of up to {config.max_model_len} "
        "tokens; raise it.",
    )
    group = config.sampling.tensor_parallel
    require(
        group >= 1 and launch.local_world_size % group == 0,
        f"--tensor-parallel {group} does not divide the {launch.local_world_size} process(es) on this machine; start "
        f"a multiple of it, such as: torchrun --nproc-per-node {max(group, 1)} train.py ...",
    )
    require(
        config.training.offload != "parameters" or config.training.zero_stage == 3,
        f"--offload parameters needs --zero-stage 3, which shards them; it is {config.training.zero_stage}.",
    )


def _check_memory(config: Config, asked_for: dict) -> None:
    memory = config.memory
    for name in ("plan_gpus", "plan_memory"):
        value = getattr(memory, name)
        require(value is None or memory.plan, f"{flag(name)} describes GPUs to plan for; add --plan True.")
        require(value is None or value > 0, f"{flag(name)} is {value}; it must be greater than 0.")
    require(
        (memory.plan_memory or 0) <= 1000,
        f"--plan-memory {memory.plan_memory} is no GPU's memory in GiB; nvidia-smi shows MiB, 1,024 of which are one.",
    )
    require(
        not (memory.plan and config.is_small),
        "--plan is for real models: the embedded one fits anywhere; name a --model or a --preset.",
    )
    require(
        config.lora.lora_sync == "merge" or asked_for["sampling"]["vllm_sleep_level"] != 2,
        "--vllm-sleep-level 2 drops the base model's weights, which --lora-sync adapter does not send again: responses "
        "would come from a model that is gone; use level 1, or --lora-sync merge.",
    )


def _check_lora(config: Config, asked_for: dict) -> None:
    lora = config.lora
    require(0 <= lora.lora_rank <= 512, f"--lora-rank is {lora.lora_rank}; it must lie between 0 (off) and 512.")
    if lora.lora_rank == 0:
        for name in ("lora_alpha", "lora_targets", "lora_sync"):
            require(
                asked_for[name] == getattr(type(lora)(), name),
                f"{flag(name)} is not used without --lora-rank; give a rank above 0.",
            )
    else:
        require_number("lora_alpha", lora.lora_alpha)


def _check_precision(config: Config) -> None:
    precision, default = config.precision, type(config.precision)()
    for name in LOSS_SCALING:
        untouched = getattr(precision, name) == getattr(default, name)
        require(
            untouched or precision.train_dtype == "fp16",
            f"{flag(name)} belongs to FP16's loss scaling and the learner trains in {precision.train_dtype}; leave it "
            "out or train in fp16.",
        )
        require(
            untouched or name == "loss_scale" or precision.loss_scale == 0,
            f"--loss-scale {precision.loss_scale:g} is fixed and {flag(name)} belongs to dynamic scaling; give one of "
            "the two.",
        )
    require(0 <= precision.initial_scale_power <= 60, "--initial-scale-power must lie between 0 and 60.")
    require(precision.loss_scale_window >= 1, "--loss-scale-window must be at least 1.")
    require(precision.hysteresis >= 1, "--hysteresis must be at least 1.")
    require(
        1 <= precision.min_loss_scale <= 2**precision.initial_scale_power,
        f"--min-loss-scale {precision.min_loss_scale} must be at least 1 and at most the initial scale, "
        f"2^{precision.initial_scale_power}.",
    )


def _check_objective(config: Config, asked_for: dict) -> None:
    options, name = config.objective, config.objective.objective
    require(len(set(options.reject)) == len(options.reject), "--reject names one twice; give each once.")
    used = OBJECTIVES[name].thresholds.keys() | {t for made in options.reject for t in REJECTIONS[made].thresholds}
    others = "".join(f" nor by --reject {made}" for made in options.reject)
    for threshold in THRESHOLDS:
        if threshold in used:
            may_be_off = threshold in ("dual_clip", "log_weight_clamp", "dppo_tau")
            require_number(threshold, getattr(options, threshold), or_zero=may_be_off)
        else:
            reading = [made.name for made in REJECTIONS.values() if threshold in made.thresholds]
            mend = f"add --reject {' or '.join(reading)}, or leave it out" if reading else "leave it out"
            unused = f"{flag(threshold)} is not used by --objective {name}{others}; {mend}."
            require(asked_for[threshold] is None, unused)
    if "clip_low" in used and name != "gmpo":  # which clips the ratio's logarithm
        require(options.clip_low <= 1, f"--clip-low is {options.clip_low:g}; a ratio is never below 0, so at most 1.")
    if options.dual_clip:
        require(options.dual_clip > 1, f"--dual-clip is {options.dual_clip:g}; it must be above 1, or 0 to be off.")
    for band in ("icepop", "geo", "outlier"):
        if f"{band}_low" in used:
            low, high = getattr(options, f"{band}_low"), getattr(options, f"{band}_high")
            require(low < high, f"--{band}-low must be below --{band}-high.")
    require(
        not options.is_batch_normalize or OBJECTIVES[name].weighs is not None,
        f"--is-batch-normalize is for objectives with an importance weight, and --objective {name} has none.",
    )
    require_number("beta", options.beta, or_zero=True)
    require(
        config.sampling.num_samples >= 2,
        "--num-samples 1 leaves no group to compare a response with, so every advantage is 0; use at least 2.",
    )


def _check_task(config: Config) -> None:
    task = config.task
    needs_data = TASKS[task.task].needs_data
    if needs_data is not None:
        require(bool(task.data), f"--task {task.task} needs --data: {needs_data}.")
    else:
        require(not task.data, f"--data is not used by --task {task.task}; add --task math to train on it.")
        require(task.eval_data is None, f"--eval-data is not used by --task {task.task}; leave it out.")
        require(
            not config.is_embedded or task.prompt_template == "no",
            "The embedded model knows bare sums only; leave --prompt-template out, or name another --model.",
        )
        unknown = set(task.arithmetic_levels) - set(LEVELS)
        require(
            bool(task.arithmetic_levels) and not unknown,
            f"--arithmetic-levels takes one or more of {', '.join(map(str, LEVELS))}.",
        )
    if task.data_weights:
        require(
            len(task.data_weights) == len(task.data),
            f"--data names {len(task.data)} sources and --data-weights {len(task.data_weights)}; give each a weight.",
        )
        require(all(weight > 0 for weight in task.data_weights), "--data-weights must all be greater than 0.")
    require(
        task.task == "sanity" or not config.evaluation.stop_when_passed,
        f"--stop-when-passed asks for the sanity test's verdict, and --task {task.task} has none; leave it out.",
    )
    require(
        config.evaluation.eval_temperature > 0 or config.evaluation.eval_n == 1,
        "--eval-n above 1 at --eval-temperature 0 would sample the same greedy response again; set a temperature.",
    )
