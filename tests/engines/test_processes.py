"""Several processes on this machine: what is learned does not depend on how many there are, nor on the ZeRO stage."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors import safe_open
from safetensors.torch import load_file

from tests.conftest import ROOT

pytestmark = pytest.mark.engines

ONE_THREAD = os.environ | {"OMP_NUM_THREADS": "1"}


def free_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return held.getsockname()[1]


def two_processes(*command: str) -> list[str]:
    return [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-addr=127.0.0.1",
        f"--master-port={free_port()}", *command,
    ]  # fmt: skip


def lines(out: Path, texts: list[str]) -> list[str]:
    """The words of several command lines, each of which begins with a name in a folder, for one program."""
    return " + ".join(f"{out}/{text}" for text in texts).split()


def run_lines(*command: str) -> None:
    done = subprocess.run(command, env=ONE_THREAD, capture_output=True, text=True, timeout=600)  # or it hangs
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module")
def masters(tmp_path_factory):
    """FP32 masters after five updates on one fixed batch, by how they were trained."""
    out = tmp_path_factory.mktemp("fixed")
    script = str(ROOT / "tests" / "engines" / "fixed_batch.py")
    half = {dtype: f"--dtype={dtype} --micro-batch-size=4" for dtype in ("fp16", "bf16")}
    tokens = "--micro-batch-tokens=90"
    one = ["one 2", f"tokens 1 {tokens}", *(f"{dtype} 1,2 {options}" for dtype, options in half.items())]
    two = ["two 1,2", f"two-tokens 2 {tokens}", f"two-bf16 1 {half['bf16']}"]
    # ZeRO-3 is last: what is built after it in the same process is cut up as well
    one += [f"tokens 3 {tokens}", *(f"{dtype} 3 {options}" for dtype, options in half.items())]
    two += ["two 3", "two-gathered 3 --gathered", "two-checkpointing 3 --gathered --gradient-checkpointing=True"]
    run_lines(sys.executable, script, *lines(out, one))
    run_lines(*two_processes(script, *lines(out, two)))
    return {path.stem: load_file(path) for path in out.glob("*.safetensors")}


def apart(one: dict, other: dict) -> float:
    return max((one[name] - other[name]).abs().max().item() for name in one)


@pytest.mark.parametrize(
    "name",
    ["tokens-1", "tokens-3", "two-1", "two-2", "two-3", "two-tokens-2", "two-gathered-3", "two-checkpointing-3"],
)
def test_parameters_are_those_of_one_process_with_zero_2(masters, name):
    from transformers import AutoModelForCausalLM

    from tasks.arithmetic.model import CHECKPOINT

    start = AutoModelForCausalLM.from_pretrained(CHECKPOINT).float()
    moved = apart({n: p.detach() for n, p in start.named_parameters()}, masters["one-2"])
    assert moved > 3e-4, "the updates changed next to nothing, so this test shows nothing"
    assert apart(masters["one-2"], masters[name]) < 1e-5


@pytest.mark.parametrize(("name", "other"), [("fp16-1", "fp16-2"), ("fp16-3", "fp16-2"), ("bf16-1", "bf16-2"),
                                             ("bf16-3", "bf16-2"), ("two-bf16-1", "bf16-2")])  # fmt: skip
def test_in_half_precision_the_stage_makes_no_difference_either(masters, name, other):
    """BF16 has another optimiser class at stage 1 (BF16_Optimizer), and ZeRO-3 another linear layer and other rotary
    frequencies unless it is kept from them (loading.py, strategy.py): without either the masters part by 4e-4."""
    assert apart(masters[other], masters[name]) < 1e-6


def test_processes_with_different_numbers_of_chunks_do_not_wait_for_each_other(tmp_path):
    """86 responses of up to 24 tokens are two chunks of 1,024 and a bit, or two alone where one ended early; the head
    has 0.8 M weights, more than ZeRO-3 keeps whole."""
    from tests.models import random_qwen2

    model = random_qwen2(tmp_path / "model", hidden_size=384, vocab_size=2048)
    options = (
        "--rollout-batch-size=86 --num-samples=2 --train-batch-size=172 --micro-batch-size=86 --generate-max-length=24 "
        "--prompt-max-length=32 --zero-stage=3 --max-steps=2 --eval-steps=0 --save-every=0 --wandb=disabled"
    ).split()
    command = two_processes(str(ROOT / "train.py"), f"--model={model}", f"--output-dir={tmp_path / 'run'}", *options)
    done = subprocess.run(command, env=ONE_THREAD, capture_output=True, text=True, timeout=150)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "run" / "metrics.jsonl").read_text().count("\n") == 2


@pytest.fixture(scope="module")
def run_of_two(tmp_path_factory):
    """Three steps of the real thing in two processes that share one engine, parameters and optimiser cut up."""
    folder = tmp_path_factory.mktemp("two") / "run"
    options = ["--zero-stage=3", "--tensor-parallel=2", "--max-steps=3", "--eval-steps=3", "--max-eval=64"]
    command = two_processes(str(ROOT / "train.py"), f"--output-dir={folder}", "--wandb=disabled", *options)
    done = subprocess.run(command, env=ONE_THREAD, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder, done.stdout


def test_two_processes_sample_and_train_as_one_program(run_of_two):
    folder, output = run_of_two
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [1, 2, 3], "one process writes, and only one"
    assert output.count("precision: learner fp16") == 1
    for record in records:
        assert 0.5 < record["train/reward"] < 0.95
        assert record["mismatch/abs_prob_diff_mean"] < 6e-4, "the sampler does not have the learner's weights"
    assert 0.8 < records[-1]["eval/accuracy"] <= 1


def test_a_run_of_two_goes_on_as_one_process_with_another_stage(run_of_two):
    folder, _ = run_of_two
    other = folder.parent / "goes-on"
    command = [
        sys.executable, str(ROOT / "train.py"), f"--output-dir={other}", "--wandb=disabled", "--zero-stage=2",
        f"--resume={folder}/checkpoints/step-000003", "--max-steps=4", "--eval-steps=0",
    ]  # fmt: skip
    done = subprocess.run(command, env=ONE_THREAD, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    (record,) = [json.loads(line) for line in (other / "metrics.jsonl").read_text().splitlines()]
    assert (record["step"], record["train/updates"]) == (4, 16)
    assert record["mismatch/abs_prob_diff_mean"] < 6e-4


def test_processes_that_share_an_engine_agree_on_rewards_that_a_grader_gives_twice_differently(tmp_path):
    """A time-out in one of them is such a case; under dynamic sampling they would keep different prompts."""
    options = (
        "--tensor-parallel=2 --dynamic-sampling=True --max-steps=2 --eval-steps=1 --max-eval=16 --num-samples=2 "
        "--rollout-batch-size=32 --train-batch-size=64 --micro-batch-size=32 --save-every=0 --wandb=disabled"
    ).split()
    script = str(ROOT / "tests" / "engines" / "disagreeing_graders.py")
    command = two_processes(script, f"--output-dir={tmp_path / 'run'}", *options)
    done = subprocess.run(command, env=ONE_THREAD, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr[-3000:]


def test_a_process_that_dies_takes_the_other_down_with_it(tmp_path):
    folder = tmp_path / "run"
    command = two_processes(str(ROOT / "train.py"), f"--output-dir={folder}", "--wandb=disabled", "--eval-steps=0")
    process = subprocess.Popen(command, env=ONE_THREAD, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        metrics, deadline = folder / "metrics.jsonl", time.time() + 240
        while time.time() < deadline and process.poll() is None and not (metrics.exists() and metrics.read_text()):
            time.sleep(0.5)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        workers = [int(pid) for pid in children if "train.py" in Path(f"/proc/{pid}/cmdline").read_text()]
        assert len(workers) == 2
        os.kill(workers[1], signal.SIGKILL)
        killed = time.time()
        output, _ = process.communicate(timeout=60)
        assert time.time() - killed < 60
    finally:
        process.kill()
    assert process.returncode != 0
    assert "SIGKILL" in output or "Signal 9" in output
    assert not [pid for pid in workers if Path(f"/proc/{pid}").exists()]


def test_a_process_that_fails_alone_says_why_and_the_others_do_not_wait(tmp_path):
    options = ["--max-steps=3", "--eval-steps=0", "--wandb=disabled", f"--output-dir={tmp_path / 'run'}"]
    command = two_processes(str(ROOT / "tests" / "engines" / "one_process_fails.py"), *options)
    done = subprocess.run(command, env=ONE_THREAD, capture_output=True, text=True, timeout=180)
    assert done.returncode == 1
    assert "train.py: only the second process found this" in done.stderr
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "failed"


@pytest.fixture(scope="module")
def gradients(tmp_path_factory):
    """Where gradients.py left its reports and gradients, of every objective and some rejections, by how it was run."""
    out = tmp_path_factory.mktemp("gradients")
    script = str(ROOT / "tests" / "engines" / "gradients.py")
    alone = lines(out, ["one 2", "fours 2 --micro-batch-size=4", "tokens 2 --micro-batch-tokens=90"])
    run_lines(sys.executable, script, *alone)
    run_lines(*two_processes(script, str(out / "two"), "123"))
    return out


@pytest.mark.parametrize("how", ["one", "two"])
def test_what_teaches_nothing_has_no_gradient_under_any_objective_or_rejection(gradients, how):
    from learners.objectives import OBJECTIVES
    from tests.engines.gradients import REJECTING

    reports = json.loads((gradients / f"{how}.json").read_text())
    cases = [f"{stage}/{case}" for stage in ("2" if how == "one" else "123") for case in (*OBJECTIVES, *REJECTING)]
    assert list(reports) == cases
    for name, report in reports.items():
        case = name[2:]
        assert report["apart"] < 1e-6, name
        assert report["share"] < 0.35 if case != "penalty" else report["share"] == 1, (
            "what teaches was passed backwards"
        )
        rejected = {key: value for key, value in report.items() if key.startswith("objective/rejected_")}
        assert len(rejected) == len(REJECTING.get(case, {}).get("reject", ())), name
        for key, share in rejected.items():
            assert share == 1 if case == "everything" else 0 < share < 1, (name, key)
        assert report["norm"] == 0 if case == "everything" else report["norm"] > 0.1, name


def test_the_gradients_are_those_that_plain_python_makes_of_the_formulas(gradients):
    for name, report in json.loads((gradients / "one.json").read_text()).items():
        assert report["from_by_hand"] < 1e-6, name


@pytest.mark.parametrize("how", ["fours", "tokens", "two"])
def test_a_gradient_depends_neither_on_micro_batches_nor_on_processes_nor_on_the_stage(gradients, how):
    with (
        safe_open(gradients / "one.safetensors", "pt") as one,
        safe_open(gradients / f"{how}.safetensors", "pt") as other,
    ):
        for name in other.keys():  # noqa: SIM118 - it is no dictionary
            expected = one.get_tensor(f"2/{name[2:]}")
            assert (other.get_tensor(name) - expected).norm() <= 1e-6 * expected.norm(), name
