"""What --dtype decides: every word that DeepSpeed and Oat are told, and what the numbers of a run mean together."""

import itertools
import sys
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from actors.launch import Launch
from learners.command_line import parse
from learners.options.config import Config
from learners.options.groups import PrecisionOptions
from learners.options.precision import NAMES, TORCH_DTYPES, Precision
from tests.stand_ins import stand_ins

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
# The authors' DeepSpeed configuration: FP16's scale starts at 2^16, doubles after 1000 updates without an overflow, is
# halved by the second overflow, and ends at 1.
SCALING = {
    "loss_scale": 0.0, "initial_scale_power": 16, "loss_scale_window": 1000, "hysteresis": 2, "min_loss_scale": 1,
}  # fmt: skip


def test_the_dtypes_by_name():
    assert TORCH_DTYPES == DTYPES
    assert {dtype: name for name, dtype in DTYPES.items()} == NAMES


@pytest.mark.parametrize(("train", "sample"), itertools.product(DTYPES, repeat=2))
def test_deepspeed_is_told_the_learners_dtype_and_adds_up_in_fp32_in_every_arm(train, sample):
    precision = Precision.of(PrecisionOptions(train_dtype=train, sample_dtype=sample))
    assert (precision.train, precision.sample) == (DTYPES[train], DTYPES[sample])
    assert precision.deepspeed_sections() == {
        "bf16": {"enabled": train == "bf16"},
        "fp16": {"enabled": train == "fp16"} | SCALING,
        "data_types": {"grad_accum_dtype": "fp32"},
        "communication_data_type": "fp32",
    }


def test_every_constant_of_the_loss_scaler_reaches_deepspeed():
    chosen = {"loss_scale": 4.0, "initial_scale_power": 5, "loss_scale_window": 6, "hysteresis": 7, "min_loss_scale": 8}
    sections = Precision.of(PrecisionOptions(train_dtype="fp16", sample_dtype="fp16", **chosen)).deepspeed_sections()
    assert sections["fp16"] == {"enabled": True} | chosen
    assert {name: getattr(parse([]).precision, name) for name in SCALING} == SCALING


def test_each_sides_dtype_is_the_common_one_unless_it_is_given():
    sides = lambda *arguments: vars(parse(list(arguments)).precision)
    for dtype, other in itertools.permutations(DTYPES, 2):
        assert {sides(f"--dtype={dtype}")[side] for side in ("train_dtype", "sample_dtype")} == {dtype}
        made = sides(f"--dtype={dtype}", f"--train-dtype={other}")
        assert (made["train_dtype"], made["sample_dtype"]) == (other, dtype)
        made = sides(f"--dtype={dtype}", f"--sample-dtype={other}")
        assert (made["train_dtype"], made["sample_dtype"]) == (dtype, other)
    assert parse(["--train-dtype=bf16"]).output.export_dtype == "bf16", "the learner's"
    assert parse(["--sample-dtype=bf16"]).output.export_dtype == "fp16"
    assert parse(["--train-dtype=bf16", "--export-dtype=fp32"]).output.export_dtype == "fp32"
    assert parse(["--train-dtype=bf16"]).precision.label == "bf16-train-fp16-sample"
    assert parse([]).precision.label == "fp16"


@pytest.fixture(scope="module")
def oat_args():
    """What Oat's PPOArgs are made of; Oat itself is not imported."""
    with stand_ins("oat.algorithms.ppo"):
        sys.modules["oat.algorithms.ppo"].PPOArgs = SimpleNamespace
        from learners.options.oat_args import to_oat_args

    return lambda *arguments: to_oat_args(parse(list(arguments)))


@pytest.mark.parametrize(("train", "sample"), itertools.permutations(DTYPES, 2))
def test_oat_is_told_the_learners_dtype(oat_args, train, sample):
    made = oat_args(f"--train-dtype={train}", f"--sample-dtype={sample}")
    assert (made.fp16, made.bf16, made.grad_accum_dtype) == (train == "fp16", train == "bf16", "fp32")


OAT = {  # option: (what is given, under which names Oat has it)
    "generate-max-length": (40, ("generate_max_length", "eval_generate_max_length")),
    "num-samples": (4, ("num_samples",)), "temperature": (0.7, ("temperature",)),
    "ignore-no-eos": (True, ("ignore_no_eos",)), "seed": (9, ("seed",)), "max-norm": (0.3, ("max_norm",)),
    "train-batch-size": (16, ("train_batch_size",)), "micro-batch-size": (2, ("train_batch_size_per_device",)),
    "zero-stage": (2, ("zero_stage",)), "eval-n": (6, ("eval_n",)), "eval-temperature": (0.9, ("eval_temperature",)),
    "eval-top-p": (0.8, ("eval_top_p",)),
}  # fmt: skip


def test_oat_gets_the_options_as_they_were_given(oat_args):
    made = oat_args(*(f"--{option}={value}" for option, (value, _) in OAT.items()))
    for value, names in OAT.values():
        assert {name: getattr(made, name) for name in names} == dict.fromkeys(names, value)
    assert made.non_stop_fixed_reward == 0.0, "a truncated response earns nothing"
    assert made.vllm_sleep is False
    assert oat_args("--vllm-sleep-level=1").vllm_sleep is True
    assert oat_args("--micro-batch-tokens=5000").train_batch_size_per_device == 1


# ------------------------------------------------------------------------------------------------ counts of updates


@given(prompts=st.integers(1, 9), group=st.integers(2, 9), per_step=st.integers(1, 6), epochs=st.integers(1, 4),
       steps=st.integers(0, 50), updates=st.integers(0, 500), ratio=st.floats(0, 0.99))  # fmt: skip
def test_the_updates_of_a_step_are_its_batches_times_its_epochs(
    prompts, group, per_step, epochs, steps, updates, ratio
):
    """Counted one by one; a warm-up is a share of the updates, or steps of so many updates each."""
    config = Config()
    config.sampling.rollout_batch_size, config.sampling.num_samples = prompts * per_step, group
    config.training.train_batch_size, config.training.num_ppo_epochs = prompts * group, epochs
    config.training.lr_warmup_ratio = ratio
    assert config.sequences_per_step == sum(1 for _ in range(prompts * per_step) for _ in range(group))
    counted = sum(1 for _ in range(epochs) for _ in range(0, config.sequences_per_step, prompts * group))
    assert config.updates_per_step == counted
    assert abs(config.warmup_updates(updates) - updates * ratio) <= 0.5
    config.training.lr_warmup_steps = steps
    assert config.warmup_updates(updates) == sum(counted for _ in range(steps))


def test_the_numbers_of_a_run_through_the_command_line():
    config = parse(["--num-ppo-epochs=3", "--lr-warmup-steps=5"])
    assert (config.sequences_per_step, config.updates_per_step) == (64 * 8, 4 * 3)
    assert config.warmup_updates(720) == 5 * 12
    assert parse([]).warmup_updates(240) == 24, "a tenth, on the embedded model"
    assert parse(["--lr-warmup-steps=0"]).warmup_updates(240) == 0
    assert config.max_model_len == 32 + 24


# ------------------------------------------------------------------------------------------------ defaults

# (the embedded model, a real one): arXiv 2510.26788's sanity test (the authors' Oat scripts): 64 prompts x 8 responses,
# 128 to an update, 1024 and 8192 tokens, AdamW at a constant 1e-6 with betas 0.9 and 0.95, no warm-up, no weight decay,
# norm 1, temperature 1. LoRA at 4e-5, alpha twice the rank.
DEFAULTS = {
    "rollout_batch_size": (64, 64), "num_samples": (8, 8), "train_batch_size": (128, 128),
    "prompt_max_length": (32, 1024), "generate_max_length": (24, 8192), "learning_rate": (5e-5, 1e-6),
    "lr_scheduler": ("linear", "constant"), "lr_warmup_ratio": (0.1, 0.0), "lr_warmup_steps": (None, None),
    "adam_beta_1": (0.9, 0.9), "adam_beta_2": (0.95, 0.95), "adam_eps": (1e-8, 1e-8), "weight_decay": (0.0, 0.0),
    "max_norm": (1.0, 1.0), "temperature": (1.0, 1.0), "num_ppo_epochs": (1, 1), "num_prompt_epoch": (1, 1),
    "max_steps": (60, None), "eval_steps": (20, 20), "max_eval": (256, 512), "gradient_checkpointing": (False, True),
    "micro_batch_size": (64, None), "micro_batch_tokens": (None, 16384), "zero_stage": (1, 1), "beta": (0.0, 0.0),
    "lora_rank": (0, 0), "lora_alpha": (0.0, 0.0), "eval_temperature": (0.0, 0.0), "eval_top_p": (1.0, 1.0),
    "eval_n": (1, 1), "eval_k": (1, 1), "seed": (0, 0), "save_every": (20, 20), "keep": (2, 2), "log_samples": (4, 4),
    "log_rollouts": (0, 0), "overlong_buffer": (0, 0), "max_sampling_rounds": (None, None), "tensor_parallel": (1, 1),
    "vllm_gpu_ratio": (0.35, 0.35), "vllm_sleep_level": (0, 0), "train_problems": (2048, 2048),
    "dtype": ("fp16", "fp16"),
    "objective": ("pg-seq-is", "pg-seq-is"), "recipe": ("oat", "oat"), "advantage": ("group-mean", "group-mean"),
    "aggregation": ("token-sum-constant", "token-sum-constant"), "offload": ("none", "none"),
    "resume": ("auto", "auto"),
    "lora_sync": ("merge", "merge"), "task": ("arithmetic", "arithmetic"), "train_on_all": (False, False),
    "lm_head_fp32": (False, False), "router_fp32": (False, False), "dynamic_sampling": (False, False),
    "ignore_no_eos": (False, False), "is_batch_normalize": (False, False), "save_model": (True, True),
    "enforce_eager": (False, False), "enable_prefix_caching": (False, False), "trust_remote_code": (False, False),
    "stop_when_passed": (False, False), "plan": (False, False), "cpu_half": ("auto", "auto"),
    "attn_implementation": ("auto", "auto"), "wandb": ("auto", "auto"), "wandb_project": ("fp16-rl", "fp16-rl"),
    "input_key": ("problem", "problem"), "output_key": ("answer", "answer"),
}  # fmt: skip


def resolved(model: str, **given_options) -> Config:
    config = Config()
    config.model.model = model
    for name, value in given_options.items():
        setattr(*config.option(name), value)
    config.resolve()
    return config


def test_the_defaults_of_the_embedded_model_and_of_a_real_one():
    for side, model in enumerate(("embedded", "somebody/a-model")):
        config = resolved(model)
        assert {name: getattr(*config.option(name)) for name in DEFAULTS} == {n: v[side] for n, v in DEFAULTS.items()}


def test_no_option_has_a_default_that_is_not_held_here_or_with_the_objectives():
    config = resolved("somebody/a-model")
    names = {name for group in vars(config).values() for name in vars(group)}
    from learners.objectives import THRESHOLDS

    left_open = {name for name in names if getattr(*config.option(name)) in (None, (), "")}
    elsewhere = {"train_dtype", "sample_dtype", "export_dtype", "name", "model", "prompt_template", "arithmetic_levels"}
    assert names - left_open == (set(DEFAULTS) | elsewhere | set(SCALING) | {*THRESHOLDS} & names) - left_open


def test_adapters_have_an_alpha_of_twice_their_rank_and_a_rate_of_their_own():
    for rank in (1, 2, 32):
        assert resolved("embedded", lora_rank=rank).lora.lora_alpha == 2 * rank
        assert resolved("embedded", lora_rank=rank, lora_alpha=3.0).lora.lora_alpha == 3.0
    rates = [resolved(model, lora_rank=4).training.learning_rate for model in ("embedded", "somebody/a-model")]
    assert rates == [1e-3, 4e-5]
    assert resolved("embedded", lora_rank=4, learning_rate=0.5).training.learning_rate == 0.5


def test_what_else_is_filled_in():
    assert resolved("somebody/a-model", generate_max_length=30_000).training.micro_batch_tokens == 30_000 + 1024
    assert resolved("somebody/a-model", micro_batch_size=3).training.micro_batch_tokens is None
    assert resolved("embedded", micro_batch_tokens=300).training.micro_batch_size is None
    assert resolved("embedded", offload="parameters").training.zero_stage == 3
    assert resolved("embedded", offload="parameters", zero_stage=2).training.zero_stage == 2
    assert resolved("embedded", offload="optimizer").training.zero_stage == 1
    assert resolved("somebody/a-model", plan=True).training.zero_stage is None, "memory decides"
    assert resolved("somebody/a-model", plan=True).sampling.vllm_sleep_level == 2
    assert resolved("somebody/a-model", plan=True, lora_sync="adapter").sampling.vllm_sleep_level == 1
    assert resolved("somebody/a-model", plan=True, vllm_sleep_level=1).sampling.vllm_sleep_level == 1
    assert resolved("embedded", dynamic_sampling=True).sampling.max_sampling_rounds == 10
    assert resolved("embedded", dynamic_sampling=True, max_sampling_rounds=3).sampling.max_sampling_rounds == 3
    assert resolved("embedded", eval_n=8).evaluation.eval_k == 8
    assert resolved("embedded", eval_n=8, eval_k=2).evaluation.eval_k == 2
    assert resolved("embedded").output.name == "arithmetic-pg-seq-is-fp16"
    assert resolved("embedded", preset="tiny", objective="grpo", dtype="bf16").output.name == "tiny-grpo-bf16"
    assert resolved("embedded", name="mine").output.name == "mine"
    assert [resolved(m, task="math", data=("x",)).task.prompt_template for m in ("embedded", "a/b")] == ["no", "chat"]
    assert [resolved(m).task.prompt_template for m in ("embedded", "a/b")] == ["no", "no"]
    assert resolved("embedded").model_path.endswith("tasks/arithmetic/checkpoint")
    assert resolved("somebody/a-model").model_path == "somebody/a-model"
    assert resolved(resolved("embedded").model_path).training.max_steps == 60, "the embedded model by its path"


def test_the_processes_that_a_plan_asks_about():
    assert Config().planned_launch() is None
    for count, on_a_machine in ((1, 1), (8, 8), (9, 8), (16, 8)):
        config = Config()
        config.memory.plan_gpus = count
        assert config.planned_launch() == Launch(world_size=count, local_world_size=on_a_machine)
