"""The command line: what it understands and what it refuses, before anything heavy is imported."""

import dataclasses
import json
import subprocess
import sys

import pytest
import torch

from learners.command_line import parse
from learners.objectives import OBJECTIVES, REJECTIONS, THRESHOLDS, defaults
from learners.options.config import DEFAULTS_BY_MODEL, Config
from learners.options.groups import ObjectiveOptions
from tasks.arithmetic.model import CHECKPOINT
from tasks.errors import UsageError
from tests.conftest import ROOT


def test_hyphen_underscore_and_equals_mean_the_same():
    spellings = [
        ["--learning-rate", "1e-4", "--enforce-eager", "True"],
        ["--learning_rate=1e-4", "--enforce_eager=True"],
        ["--learning-rate=1e-4", "--enforce-eager=true".replace("true", "True")],
    ]
    assert len({json.dumps(parse(arguments).to_dict()) for arguments in spellings}) == 1
    assert parse(spellings[0]).training.learning_rate == 1e-4


def test_flags_take_the_values_that_sweeps_send():
    assert parse(["--save-model=False"]).output.save_model is False
    assert parse(["--save_model=True"]).output.save_model is True


def test_defaults_follow_the_model(tmp_path):
    model = a_model(tmp_path)
    small, large = (
        parse([]),
        parse(["--model", str(model), "--generate-max-length", "100", "--prompt-max-length", "50"]),
    )
    assert (small.training.learning_rate, large.training.learning_rate) == (5e-5, 1e-6)
    assert parse(["--lora-rank", "4"]).training.learning_rate == 1e-3
    assert small.training.lr_scheduler == DEFAULTS_BY_MODEL["training.lr_scheduler"][0]
    assert large.training.max_steps is None


def test_thresholds_follow_the_objective():
    assert parse(["--objective", "grpo"]).objective.clip_high == 0.2
    assert parse(["--objective", "grpo", "--clip-high", "0.28"]).objective.clip_high == 0.28
    assert parse([]).objective.clip_high is None


def test_every_option_says_what_it_means():
    from tyro._docstrings import get_field_docstring

    for group in dataclasses.fields(Config):
        for field in dataclasses.fields(group.default_factory):
            names = {"adam_beta_1", "adam_beta_2", "adam_eps", "wandb_project", "wandb_group", "wandb_tags"}
            assert field.name in names or get_field_docstring(group.default_factory, field.name, ()), field.name


def a_model(folder, **changes):
    """A folder that looks like a model as far as the command line looks."""
    model = folder / "model"
    model.mkdir()
    content = json.loads((CHECKPOINT / "config.json").read_text()) | changes
    (model / "config.json").write_text(json.dumps(content))
    (model / "model.safetensors").write_bytes(b"")
    return model


@pytest.mark.parametrize("recipe", ["oat", "verl"])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_resolved_thresholds_are_the_recipes_and_each_can_be_overridden(name, recipe):
    chosen = defaults(name, recipe)
    options = parse(["--objective", name, "--recipe", recipe]).objective
    for key, value in chosen.items():
        assert getattr(options, key) == value
    for key in set(THRESHOLDS) - set(chosen):
        assert getattr(options, key) is None, "what is not used is not in config.json"
    others = {key: 0.9 if key.endswith("_low") else 2.5 for key in set(THRESHOLDS) & set(chosen)}
    words = [f"--{key.replace('_', '-')}={value}" for key, value in others.items()]
    overridden = parse(["--objective", name, "--recipe", recipe, *words]).objective
    assert {key: getattr(overridden, key) for key in others} == others


def test_rejections_combine_and_bring_their_thresholds():
    names = list(REJECTIONS)
    options = parse(["--objective=grpo-token-tis", "--recipe=verl", "--reject", *names]).objective
    assert options.reject == tuple(names)
    for key, value in defaults("grpo-token-tis", "verl", names).items():
        assert getattr(options, key) == value
    for name, made in REJECTIONS.items():
        assert made.thresholds
        alone = parse(["--reject", name]).objective
        assert {key: getattr(alone, key) for key in made.thresholds} == made.thresholds
        others = {key: 0.9 if key.endswith("_low") else 2.5 for key in made.thresholds}
        words = [f"--{key.replace('_', '-')}={value}" for key, value in others.items()]
        overridden = parse(["--reject", name, *words]).objective
        assert {key: getattr(overridden, key) for key in others} == others
    assert parse([]).objective.reject == ()
    assert parse(["--objective=gmpo", "--clip-low=1.5"]).objective.clip_low == 1.5, "of the ratio's logarithm"


def test_every_threshold_is_an_option():
    assert set(THRESHOLDS) <= set(vars(ObjectiveOptions()))


def test_each_side_can_have_its_own_dtype():
    from learners.options.precision import Precision

    both = Precision.of(parse(["--dtype=bf16"]).precision)
    assert (both.train, both.sample) == (torch.bfloat16, torch.bfloat16)
    config = parse(["--dtype=bf16", "--sample-dtype=fp32"])
    mixed = Precision.of(config.precision)
    assert (mixed.train, mixed.sample) == (torch.bfloat16, torch.float32)
    assert config.precision.label == "bf16-train-fp32-sample"
    assert not mixed.deepspeed_sections()["fp16"]["enabled"]
    assert Precision.of(parse(["--dtype=bf16", "--train-dtype=fp16"]).precision).deepspeed_sections()["fp16"]["enabled"]


def a_run(folder, status: str | None, arguments: list[str]):
    """A folder as a run leaves it, as far as the command line looks."""
    (folder / "config.json").write_text(json.dumps(parse(arguments).to_dict()))
    if status is not None:
        (folder / "summary.json").write_text(json.dumps({"status": status}))
    return ["--output-dir", str(folder)]


@pytest.mark.parametrize("status", [None, "stopped", "interrupted", "failed"])
def test_an_unfinished_run_goes_on_with_the_same_options_only(tmp_path, status):
    here = a_run(tmp_path, status, ["--seed", "3"])
    assert parse([*here, "--seed", "3", "--zero-stage", "3", "--save-every", "7"]).training.seed == 3
    with pytest.raises(UsageError, match="holds an unfinished run with --seed 3, not 4"):
        parse([*here, "--seed", "4"])
    with pytest.raises(UsageError, match="already holds an unfinished run"):
        parse([*here, "--seed", "3", "--resume", "never"])


def test_a_finished_run_or_a_foreign_folder_is_left_alone(tmp_path):
    here = a_run(tmp_path, "finished", [])
    with pytest.raises(UsageError, match="already holds a finished run"):
        parse(here)
    (tmp_path / "summary.json").unlink()
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UsageError, match="is no run's"):
        parse(here)


def test_a_checkpoint_that_is_named_must_be_one_and_the_newest_of_its_run(tmp_path):
    with pytest.raises(UsageError, match="is no checkpoint"):
        parse(["--resume", str(tmp_path)])
    here = a_run(tmp_path, "stopped", [])
    for name in ("step-000005", "step-000010"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
        (tmp_path / "checkpoints" / name / "manifest.json").write_text("{}")
    assert parse([*here, "--resume", str(tmp_path / "checkpoints" / "step-000010")])
    with pytest.raises(UsageError, match="is not the newest checkpoint"):
        parse([*here, "--resume", str(tmp_path / "checkpoints" / "step-000005")])
    other = ["--output-dir", str(tmp_path / "other")]
    assert parse([*other, "--resume", str(tmp_path / "checkpoints" / "step-000005")])


@pytest.mark.parametrize(
    "arguments",
    [["--dtype", "fp17"], ["--objective", "ppo2"], ["--no-such-option", "1"], ["--train-batch-size", "100"]],
)
def test_the_program_exits_with_2_and_writes_nothing(arguments, tmp_path):
    run = subprocess.run(
        [sys.executable, ROOT / "train.py", *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert run.returncode == 2
    assert "Traceback" not in run.stderr
    assert arguments[0].lstrip("-") in (run.stderr + run.stdout)
    assert list(tmp_path.iterdir()) == []


def test_help_names_every_fixed_option_and_imports_nothing_heavy():
    code = (
        "import sys\ntry:\n import train; train.main(['--help'])\nexcept SystemExit as e: assert not e.code\n"
        "heavy = {'torch', 'vllm', 'deepspeed', 'oat', 'transformers'} & set(sys.modules)\nassert not heavy, heavy"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
    fixed = (
        "dtype model task data objective seed max-steps output-dir wandb num-samples rollout-batch-size "
        "train-batch-size micro-batch-size learning-rate generate-max-length temperature zero-stage loss-scale"
    )
    for name in fixed.split():
        assert f"--{name} " in run.stdout, name
