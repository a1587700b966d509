"""Every preset composes: real options, batches that divide, lengths that fit the model, and what overrules it."""

import dataclasses
import json
import re
import subprocess
import sys

import pytest

from actors.launch import Launch
from learners.command_line import complete, parse
from learners.model import config_file
from learners.objectives import OBJECTIVES
from learners.options.config import Config
from learners.options.presets import BELONGS_TO, PRESETS, fill_in
from tasks.errors import UsageError
from tests.conftest import ROOT

# What the models' config.json say, as far as it is read here.
MODELS = json.loads((ROOT / "tests" / "data" / "model_configs.json").read_text())
NEEDED = {"smollm2-135m": ["--model=smollm2-135m"], "dense-qwen3-14b": ["--data=x.jsonl"],
          "moe-qwen3-30b-a3b": ["--data=x.jsonl"]}  # fmt: skip


@pytest.fixture(autouse=True)
def no_hub(monkeypatch):
    """The models' facts come from the file above, everything else is real."""
    real = config_file.read_model_config
    monkeypatch.setattr(
        config_file,
        "read_model_config",
        lambda config: real(config) if config.is_embedded else MODELS[config.model.model],
    )


def compose(name, *arguments):
    """As on the hardware that the preset is for."""
    return parse_on(PRESETS[name].processes, f"--preset={name}", *NEEDED.get(name, []), *arguments)


def parse_on(processes, *arguments):
    return parse(list(arguments), Launch(world_size=processes, local_world_size=min(processes, 8)))


def values(config):
    return {option: value for group in dataclasses.asdict(config).values() for option, value in group.items()}


def as_arguments(options):
    for option, value in options.items():
        yield from (f"--{option}", *map(str, value)) if isinstance(value, tuple) else [f"--{option}={value}"]


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_the_same_as_its_options_on_the_command_line(name):
    """So that every value has passed the command line's own types."""
    by_name = compose(name).to_dict()
    by_hand = parse_on(PRESETS[name].processes, *as_arguments(PRESETS[name].options), *NEEDED.get(name, [])).to_dict()
    assert by_name.pop("origin") == {"preset": name}
    assert by_hand.pop("origin") == {"preset": None}
    assert by_name["output"].pop("name").startswith(name)
    by_hand["output"].pop("name")
    assert by_name == by_hand


@pytest.mark.parametrize("name", PRESETS)
def test_its_batches_divide_and_its_lengths_fit(name):
    config, processes = compose(name), PRESETS[name].processes
    update = config.training.train_batch_size
    assert config.sequences_per_step == config.sampling.rollout_batch_size * config.sampling.num_samples
    assert config.updates_per_step * update == config.sequences_per_step
    assert update % (processes * (config.training.micro_batch_size or 1)) == 0
    assert config.sampling.rollout_batch_size % processes == 0
    if not config.is_embedded:
        assert config.max_model_len <= MODELS[config.model.model]["max_position_embeddings"]


@pytest.mark.parametrize(("name", "updates"), [("sanity-r1d-1.5b", 4), ("octothinker-3b", 8),
                                               ("lora-qwen2.5-math-1.5b", 4), ("dense-qwen3-14b", 16)])  # fmt: skip
def test_updates_of_a_step_are_the_papers(name, updates):
    assert compose(name).updates_per_step == updates


AUTHORS = {"enable_prefix_caching": True, "num_prompt_epoch": 2000, "eval_temperature": 0.6}
MATH = {"prompt_max_length": 1024, "generate_max_length": 3000, "eval_steps": 50, "task": "math",
        "data": ("rasbt/math_full_minus_math500",), "eval_data": "HuggingFaceH4/MATH-500"}  # fmt: skip
LORA = AUTHORS | MATH | {
    "model": "Qwen/Qwen2.5-Math-1.5B", "prompt_template": "qwen_math", "objective": "grpo-token-tis", "tis_cap": 2.0,
    "learning_rate": 4e-5, "vllm_gpu_ratio": 0.5,
}  # fmt: skip
LARGE = {
    "rollout_batch_size": 512, "num_samples": 16, "train_batch_size": 512, "prompt_max_length": 2048,
    "generate_max_length": 20480, "learning_rate": 1e-6, "clip_low": 0.2, "clip_high": 0.28, "task": "math",
    "prompt_template": "qwen_math", "vllm_gpu_ratio": 0.6,
}  # fmt: skip
# (processes, what it needs, its options) as read in the authors' scripts (sail-sg/Precision-RL), the paper's figures,
# transcriptions of it, and DAPO (arXiv 2503.14476); what is ours is memory, data, the small models.
READ = {
    "tiny": (1, (), {"model": "embedded", "task": "arithmetic"}),
    "smollm2-135m": (1, ("model",), {
        "task": "arithmetic", "arithmetic_levels": (0,), "train_problems": 64, "prompt_template": "worked_sums",
        "prompt_max_length": 96, "generate_max_length": 16, "rollout_batch_size": 8, "num_samples": 8,
        "train_batch_size": 32, "micro_batch_size": 8, "gradient_checkpointing": False, "learning_rate": 1e-5,
        "max_steps": 3, "max_eval": 8,
    }),
    "sanity-r1d-1.5b": (8, (), AUTHORS | {
        "model": "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B", "task": "sanity", "data": ("sail/Sanity-Test-R1D-1.5B",),
        "prompt_template": "r1_distill_qwen", "vllm_gpu_ratio": 0.6, "eval_steps": 16, "eval_n": 32,
        "eval_data": "HuggingFaceH4/aime_2024",
    }),
    "octothinker-3b": (8, (), AUTHORS | MATH | {
        "model": "OctoThinker/OctoThinker-3B-Hybrid-Base", "prompt_template": "r1", "objective": "grpo",
        "rollout_batch_size": 128, "vllm_gpu_ratio": 0.45,
    }),
    "lora-qwen2.5-math-1.5b": (8, (), LORA | {"lora_rank": 1, "lora_alpha": 2}),
    "lora-r32-qwen2.5-math-1.5b": (8, (), LORA | {"lora_rank": 32, "lora_alpha": 64}),
    "dense-qwen3-14b": (16, ("data",), LARGE | {
        "model": "Qwen/Qwen3-14B-Base", "objective": "grpo", "dual_clip": 10.0, "aggregation": "token-mean-batch",
        "lr_scheduler": "constant_with_warmup", "lr_warmup_steps": 10, "weight_decay": 0.1, "adam_beta_2": 0.999,
        "advantage": "group-std", "dynamic_sampling": True, "overlong_buffer": 4096, "tensor_parallel": 2,
    }),
    "moe-qwen3-30b-a3b": (32, ("data",), LARGE | {
        "model": "Qwen/Qwen3-30B-A3B-Base", "objective": "grpo-seq-mis", "adam_eps": 1e-15, "router_fp32": True,
        "tensor_parallel": 4,
    }),
}  # fmt: skip


def test_the_presets_are_what_was_read():
    made = {name: (preset.processes, tuple(preset.needs), preset.options) for name, preset in PRESETS.items()}
    assert made == READ


def completed(processes: int, *words: str, **options):
    """As `parse_on`, without the seconds that tyro takes for so many of them: options as it leaves them."""
    config = Config()
    for name, value in options.items():
        setattr(*config.option(name), value)
    return complete(config, list(words), Launch(world_size=processes, local_world_size=min(processes, 8)))


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_takes_every_objective(name, objective):
    """A threshold that the objective does not use is refused, so none may be left over from a preset."""
    needed = {"model": {"model": "smollm2-135m"}, "data": {"data": ("x.jsonl",)}}
    options = {"preset": name, "objective": objective}
    for what in PRESETS[name].needs:
        options |= needed[what]
    other = completed(PRESETS[name].processes, *(f"--{option}" for option in options), **options)
    assert other.objective.objective == objective
    if objective != PRESETS[name].options.get("objective"):
        plain = completed(1, objective=objective)
        assert other.objective == plain.objective, "another objective comes with its own constants"


def test_what_is_given_wins_even_where_it_equals_the_default():
    assert compose("dense-qwen3-14b").training.adam_beta_2 == 0.999
    assert compose("dense-qwen3-14b", "--adam-beta-2", "0.95").training.adam_beta_2 == 0.95
    assert compose("dense-qwen3-14b", "--adam_beta_2=0.95").training.adam_beta_2 == 0.95
    assert compose("dense-qwen3-14b", "--dynamic-sampling", "False").sampling.max_sampling_rounds is None
    assert compose("dense-qwen3-14b", "--objective", "grpo").objective.dual_clip == 10


def test_another_task_leaves_the_presets_data_behind():
    config = compose("octothinker-3b", "--task=arithmetic", "--model=embedded", "--prompt-max-length=32",
                     "--generate-max-length=24")  # fmt: skip
    assert config.task.data == () and config.task.eval_data is None
    assert config.task.prompt_template == "no"


@pytest.mark.parametrize(("arguments", "part"), [(["--preset=nope"], "choose from tiny"),
                                                 (["--preset=smollm2-135m"], "needs --model"),
                                                 (["--preset=dense-qwen3-14b"], "needs --data")])  # fmt: skip
def test_refused_with_one_sentence(arguments, part):
    with pytest.raises(UsageError, match=part) as refusal:
        parse(arguments)
    assert "\n" not in str(refusal.value) and str(refusal.value).endswith(".")


def test_tiny_is_what_no_option_is():
    tiny, nothing = parse(["--preset=tiny"]).to_dict(), parse([]).to_dict()
    assert (tiny.pop("origin"), nothing.pop("origin")) == ({"preset": "tiny"}, {"preset": None})
    assert tiny["output"].pop("name").startswith("tiny-") and nothing["output"].pop("name")
    assert tiny == nothing


def test_what_belongs_to_a_choice_are_options_of_presets():
    known = values(parse([]))
    for choice, dependents in BELONGS_TO.items():
        assert choice in known
        assert set(dependents) <= set(known)
    kept = fill_in("octothinker-3b", {"objective": "gspo"})
    assert "objective" not in kept and kept["rollout_batch_size"] == 128


def test_every_value_has_a_source():
    for preset in PRESETS.values():
        for source, options in preset.blocks:
            assert options
            assert re.match(r"the authors' Oat code|the figures|second-hand|DAPO|our choice", source)


def test_list_presets_is_a_table_of_all():
    code = (
        "import sys, train\ncode = train.main(['--list-presets'])\n"
        "heavy = {'torch', 'vllm', 'deepspeed', 'oat', 'transformers'} & set(sys.modules)\nassert not heavy, heavy\n"
        "sys.exit(code)"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
    header, *rows = run.stdout.split("\n\n")[0].splitlines()
    assert header.split() == ["preset", "model", "task", "objective", "hardware"]
    assert [row.split()[0] for row in rows] == list(PRESETS)
    for row, preset in zip(rows, PRESETS.values(), strict=True):
        assert preset.options.get("model", "--model DIR") in row
        assert preset.hardware in row
