"""The exporter to VeRL. With verl at hand, in an environment named by VERL_PYTHON, an export is checked against it."""

import json
import os
import shutil
import subprocess
import sys

import pyarrow.parquet
import pytest

from learners.command_line import parse
from learners.model import config_file
from learners.objectives import OBJECTIVES
from scripts import export_verl
from scripts.parts.verl_overrides import EXPORTED, as_override, overrides
from tasks.arithmetic.model import CHECKPOINT
from tasks.errors import UsageError
from tests.conftest import ROOT

MODELS = json.loads((ROOT / "tests" / "data" / "model_configs.json").read_text())


@pytest.fixture
def model(tmp_path):
    """The embedded checkpoint in a folder of its own: a model like any other."""
    return shutil.copytree(CHECKPOINT, tmp_path / "model")


def export(model, out, *arguments):
    options = (
        "--task=arithmetic --prompt-max-length=32 --generate-max-length=24 --train-problems=64 --max-eval=8".split()
    )
    assert export_verl.main([*options, f"--model={model}", *arguments, str(out)]) == 0
    return out


def of(*arguments):
    base = ["--task=math", "--data=x", "--prompt-template=qwen_math", "--model=smollm2-135m",
            "--prompt-max-length=64", "--generate-max-length=64"]  # fmt: skip
    return overrides(parse([*base, *arguments]), 1, 8)


NEEDED = {"sapo": ["--aggregation=token-mean-sequence"], "gmpo": ["--micro-batch-size=16"]}


@pytest.fixture
def no_hub(monkeypatch):
    monkeypatch.setattr(config_file, "read_model_config", lambda config: MODELS[config.model.model])


def test_the_parquet_files_have_verls_schema(model, tmp_path):
    out = export(model, tmp_path / "out")
    for split, count in (("train", 64), ("test", 8)):
        rows = pyarrow.parquet.read_table(out / f"{split}.parquet").to_pylist()
        assert len(rows) == count
        for index, row in enumerate(rows):
            question = row["extra_info"]["question"]
            assert row == {
                "data_source": "fp16-rl/arithmetic",
                "prompt": [{"role": "user", "content": question}],
                "ability": "math",
                "reward_model": {"style": "rule", "ground_truth": str(sum(map(int, question[:-1].split("+"))))},
                "extra_info": {"split": split, "index": index, "question": question},
            }


def test_the_same_command_writes_the_same_bytes_and_no_path_of_the_repository(model, tmp_path):
    first, second = (export(model, tmp_path / name) for name in ("first", "second"))
    for file in ("train.parquet", "test.parquet", "reward.py", "run.sh"):
        assert (first / file).read_bytes() == (second / file).read_bytes()
    for file in ("reward.py", "run.sh"):
        assert str(ROOT) not in (first / file).read_text()
    assert subprocess.run(["bash", "-n", str(first / "run.sh")], check=False).returncode == 0


def test_reward_py_grades_as_the_task_does(model, tmp_path):
    """In a fresh interpreter, as verl imports it: by path, with nothing of this repository on the way."""
    out = export(model, tmp_path / "out")
    code = (
        f"import runpy\nscore = runpy.run_path({str(out / 'reward.py')!r})['compute_score']\n"
        "print([score('x', text, '42')['score'] for text in ('so \\\\boxed{42}', '\\\\boxed{41}', '42')])"
    )
    for environment, shown in (({"FP16_RL": str(ROOT)}, "[1.0, 0.0, 0.0]"), ({}, "Set FP16_RL")):
        run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=os.environ | environment,
                             capture_output=True, text=True, check=False)  # fmt: skip
        assert shown in run.stdout + run.stderr


@pytest.mark.parametrize(("dtype", "name"), [("fp16", "float16"), ("bf16", "bfloat16"), ("fp32", "float32")])
def test_both_sides_get_the_dtype(no_hub, dtype, name):
    made = of(f"--dtype={dtype}")
    assert made["actor_rollout_ref.rollout.dtype"] == name
    for part in ("actor", "ref"):
        assert made[f"+actor_rollout_ref.{part}.fsdp_config.mixed_precision.param_dtype"] == dtype
        assert made[f"actor_rollout_ref.{part}.fsdp_config.model_dtype"] == "fp32"
    mixed = of("--train-dtype=bf16", "--sample-dtype=fp32")
    assert mixed["actor_rollout_ref.rollout.dtype"] == "float32"
    assert mixed["+actor_rollout_ref.actor.fsdp_config.mixed_precision.param_dtype"] == "bf16"


def test_masking_is_a_band_and_truncation_a_number(no_hub):
    threshold = lambda *words: of(*words)["algorithm.rollout_correction.rollout_is_threshold"]
    assert threshold("--objective=grpo-token-tis") == 2.0
    assert threshold("--objective=grpo-seq-mis", "--recipe=verl") == "1e-09_3.0"
    assert threshold("--objective=icepop") == "0.5_5.0"
    assert threshold("--objective=pg-seq-is") > 4.9e8, "VeRL's own bound, e^20, comes first"


def test_adapters_are_told(no_hub):
    made = of("--lora-rank=8", "--lora-alpha=16")
    names = ("lora_rank", "lora_alpha", "target_modules")
    assert [made[f"actor_rollout_ref.model.{name}"] for name in names] == [8, 16, "all-linear"]
    assert "actor_rollout_ref.model.lora_rank" not in of()


def test_every_objective_has_a_place(no_hub):
    seen = set()
    for name in EXPORTED:
        made = of(f"--objective={name}", *NEEDED.get(name, []))
        bypass = made["algorithm.rollout_correction.bypass_mode"]
        assert bypass == (not OBJECTIVES[name].needs_pi_old)
        told_to_the_loss = "+actor_rollout_ref.actor.policy_loss.rollout_correction.rollout_is" in made
        assert told_to_the_loss == (made["actor_rollout_ref.actor.policy_loss.loss_mode"] == "bypass_mode")
        seen.add(json.dumps({key: made[key] for key in made if "experiment_name" not in key}, default=str))
    assert len(seen) == len(EXPORTED), "two objectives became the same"


@pytest.mark.parametrize("name", [name for name in OBJECTIVES if name not in EXPORTED])
def test_what_is_not_exported_is_not_left_out_in_silence(no_hub, name):
    with pytest.raises(UsageError, match="not exported"):
        of(f"--objective={name}")


def test_bands_of_rejections_are_on_the_reciprocal(no_hub):
    """VeRL's k1 is log mu - log pi."""
    told = lambda made, where: (made[f"{where}.rollout_rs"], made[f"{where}.rollout_rs_threshold"])
    trainer, loss = "algorithm.rollout_correction", "+actor_rollout_ref.actor.policy_loss.rollout_correction"
    rules = ["--reject", "geo", "k3", "icepop", "max-token", "--geo-low=0.8", "--geo-high=1.6"]
    names = "seq_mean_k1,seq_mean_k3,token_k1,seq_max_k2"
    for name in ("pg-seq-is", "reinforce", "grpo-bypass", "grpo-token-tis"):
        made = of(f"--objective={name}", *rules)
        assert told(made, trainer) == (names, "0.625_1.25,0.01,0.2_2.0,2.5")
        if not OBJECTIVES[name].needs_pi_old:
            assert told(made, loss) == told(made, trainer)
            assert made["actor_rollout_ref.actor.policy_loss.loss_mode"] == "bypass_mode"
    assert made["algorithm.rollout_correction.rollout_is_threshold"] == 2.0, "the rejection's band is not the weight's"
    assert told(of(), trainer) == (None, None)


def test_weights_are_divided_by_their_mean_where_verl_means_the_same_mean(no_hub):
    made = of("--objective=grpo-seq-tis", "--is-batch-normalize=True")
    assert made["algorithm.rollout_correction.rollout_is_batch_normalize"] is True


@pytest.mark.parametrize(
    ("value", "written"),
    [("0.5_5.0", "'0.5_5.0'"), ("fp16", "fp16"), (None, "null"), ("null", "'null'"), (True, "True"), (1e-6, "1e-06"),
     ("{{ messages[0].content }}", "'{{ messages[0].content }}'"), ([0.9, 0.95], "[0.9,0.95]"), ("it's", "'it\\'s'"),
     ({"eps": 1e-8}, "{eps:1e-08}"), (["console"], "[console]")],
)  # fmt: skip
def test_overrides_are_quoted_for_hydra(value, written):
    assert as_override("a.b", value) == f"a.b={written}"


def test_micro_batches_are_cut_as_here(no_hub):
    by_tokens, by_number = of("--micro-batch-tokens=4096"), of("--micro-batch-size=2")
    assert by_tokens["actor_rollout_ref.actor.use_dynamic_bsz"] is True
    assert by_tokens["actor_rollout_ref.actor.ppo_max_token_len_per_gpu"] == 4096
    assert not any("micro_batch_size" in name for name in by_tokens)
    assert {value for name, value in by_number.items() if "micro_batch_size" in name} == {2}
    assert "actor_rollout_ref.actor.use_dynamic_bsz" not in by_number


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--lr-scheduler=linear"], "VeRL has no linear decay"),
        (["--ignore-no-eos=True"], "--overlong-buffer punishes them"),
        (["--prompt-template=r1"], "VeRL has no stop strings"),
        (["--lora-rank=2", "--lora-alpha=1.5"], "round --lora-alpha"),
        (["--lm-head-fp32=True"], "leave --lm-head-fp32 out"),
        (["--loss-scale=8"], "leave out those of loss scaling"),
        (["--log-weight-clamp=5"], "--log-weight-clamp takes 20 or 0"),
        (["--objective=dppo-tv", "--dppo-tau=0.001"], "add --dppo-tau 0"),
        (["--objective=dppo-kl", "--recipe=prime-rl"], "add --dppo-tau 0"),
        (["--objective=sapo"], "add --aggregation token-mean-sequence"),
        (["--objective=gmpo", "--aggregation=token-mean-batch"], "add --aggregation token-mean-sequence"),
        (["--objective=gmpo"], "add --micro-batch-size 16"),
        (["--objective=gmpo", "--micro-batch-size=8"], "add --micro-batch-size 16"),
        (["--objective=pg-seq-tis", "--is-batch-normalize=True"], "leave --is-batch-normalize out"),
        (["--reject", "geo", "veto", "m2po"], "no --reject veto m2po; it takes geo, icepop, k3, max-token"),
        (["--reject", "outlier"], "no --reject outlier"),
        (["--reject", "opsm", "kpop"], "no --reject opsm kpop"),
        (["--objective=gspo-bypass", "--reject=geo"], "leave --reject out"),
        (["--objective=dppo-tv", "--reject=geo"], "leave --reject out"),
        (["--objective=grpo", "--reject=geo", "--beta=0.01"], "leave --beta out"),
        (["--objective=gspo", "--aggregation=token-mean-batch", "--reject=icepop"], "in their response's length"),
        (["--reject=icepop", "--aggregation=token-mean-sequence"], "in their response's length"),
        (["--num-samples=3", "--train-batch-size=64"], "a multiple of 3"),
        (["--rollout-batch-size=9", "--num-samples=4", "--train-batch-size=36"], "among 8 GPUs"),
    ],
)
def test_what_verl_cannot_do_is_refused_with_one_sentence(no_hub, arguments, part):
    with pytest.raises(UsageError) as refusal:
        of(*arguments)
    assert part in str(refusal.value) and str(refusal.value).endswith(".") and "\n" not in str(refusal.value)


def test_refused_before_anything_is_written(tmp_path, model):
    for words, part in (([str(tmp_path / "out")], "no embedded model"),
                        ([f"--model={model}", "--preset=nope", str(tmp_path / "out")], "--preset nope"),
                        ([f"--model={model}", "--task=arithmetic", str(model)], "holds files already")):  # fmt: skip
        run = subprocess.run([sys.executable, str(ROOT / "scripts" / "export_verl.py"), *words], cwd=tmp_path,
                             capture_output=True, text=True, check=False)  # fmt: skip
        assert run.returncode == 2 and part in run.stderr and "Traceback" not in run.stderr, run.stderr
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model"]


@pytest.mark.skipif("VERL_PYTHON" not in os.environ, reason="VERL_PYTHON names no python that has verl")
def test_verl_itself_takes_the_export(model, tmp_path):
    folders = [
        export(model, tmp_path / "plain", "--objective=grpo-seq-mis", "--dtype=fp16"),
        export(model, tmp_path / "dapo", "--objective=grpo", "--dtype=bf16", "--dynamic-sampling=True",
               "--reject", "geo", "icepop", "--overlong-buffer=8", "--dual-clip=10",
               "--lr-scheduler=constant_with_warmup"),
    ]  # fmt: skip
    run = subprocess.run([os.environ["VERL_PYTHON"], str(ROOT / "tests" / "verl_check.py"), *map(str, folders)],
                         cwd=tmp_path, env=os.environ | {"FP16_RL": str(ROOT)}, capture_output=True, text=True,
                         check=False)  # fmt: skip
    assert run.returncode == 0, run.stderr[-3000:]
    assert "plain: composed and validated; trains in torch.float16, samples in float16" in run.stdout
    assert "dapo: composed and validated; trains in torch.bfloat16, samples in bfloat16" in run.stdout
    assert run.stdout.strip().endswith("verl agrees")
