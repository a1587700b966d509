"""Runs that are stopped, killed and resumed, on the real command line."""

import json
import signal
import subprocess
import sys
import time

import pytest
from safetensors.torch import load_file

from tests.conftest import ROOT
from tests.engines.conftest import without_times

pytestmark = pytest.mark.engines


def steps_of(folder) -> list[int]:
    metrics = folder / "metrics.jsonl"
    return [json.loads(line)["step"] for line in metrics.read_text().splitlines()] if metrics.exists() else []


def run_until(folder, step: int, number: signal.Signals, *options: str) -> tuple[int, str]:
    """Start the default run, or go on with it, and send it a signal in the step after one. Returns (code, output)."""
    command = [sys.executable, str(ROOT / "train.py"), f"--output-dir={folder}", "--wandb=disabled", "--save-every=2"]
    command += options
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    try:
        deadline = time.time() + 240
        while time.time() < deadline and process.poll() is None and step not in steps_of(folder):
            time.sleep(0.05)
        time.sleep(0.3)  # into the next step
        process.send_signal(number)
        output, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    return process.returncode, output


def test_stopped_killed_and_interrupted_it_makes_the_run_that_nothing_disturbed(default_run, tmp_path):
    folder = tmp_path / "run"
    code, output = run_until(folder, 3, signal.SIGUSR1)
    assert code == 0, output[-2000:]
    assert "SIGUSR1: stopped" in output and "the same command goes on from there" in output
    assert json.loads((folder / "summary.json").read_text())["status"] == "stopped"
    stopped_at = steps_of(folder)[-1]

    code, output = run_until(folder, stopped_at + 3, signal.SIGKILL)
    assert code == -signal.SIGKILL
    assert "going on from" in output

    code, output = run_until(folder, stopped_at + 5, signal.SIGINT)
    assert code == 130, output[-2000:]
    assert "Traceback" not in output
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["status"] == "interrupted"
    assert (folder / "reward.png").exists()

    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == list(range(1, summary["steps"] + 1)), "each step once"
    assert len(records) >= stopped_at + 5
    assert without_times(records) == without_times(default_run.metrics[: len(records)])


def test_weights_after_a_kill_are_bitwise_those_of_a_straight_run(tmp_path):
    """In FP16 with the loss scaler in the middle of a window; and to W&B it is the same run."""
    options = ["--wandb=offline", "--eval-steps=0", "--max-steps=4", "--loss-scale-window=7", "--save-every=2"]

    def run(folder) -> None:
        command = [sys.executable, str(ROOT / "train.py"), f"--output-dir={folder}", *options]
        subprocess.run(command, check=True, capture_output=True, timeout=300)

    run(tmp_path / "straight")
    run(tmp_path / "killed")
    (tmp_path / "killed" / "summary.json").unlink()  # as a kill at step 4, before its checkpoint, leaves it
    for gone in (tmp_path / "killed" / "checkpoints" / "step-000004").iterdir():
        gone.unlink()
    run(tmp_path / "killed")
    assert steps_of(tmp_path / "killed") == [1, 2, 3, 4]
    for file in ("model/model.safetensors", "checkpoints/step-000004/weights-0000.safetensors"):
        one, other = (load_file(tmp_path / name / file) for name in ("straight", "killed"))
        assert all((one[name] == other[name]).all() for name in one)
    ids = [path.name.rsplit("-", 1)[1] for path in (tmp_path / "killed" / "wandb").glob("offline-run-*")]
    assert len(ids) == 2 and len(set(ids)) == 1, "the run that goes on is another one to W&B"
    scales = [
        json.loads(line)["precision/loss_scale"]
        for line in (tmp_path / "killed" / "metrics.jsonl").read_text().splitlines()
    ]
    assert len(set(scales)) > 1, "the scale never moved, so the scaler's state was not tested"


def test_in_bf16_a_run_goes_on_at_stage_1_where_no_loss_scaler_is(tmp_path):
    """DeepSpeed's stage 1 in BF16 is another class; from the same checkpoint it makes the step that stage 2 makes."""
    options = ["--dtype=bf16", "--wandb=disabled", "--eval-steps=0", "--save-every=1", "--keep=3", "--max-steps=2"]
    options += ["--rollout-batch-size=16", "--train-batch-size=64"]

    def run(folder, *more) -> dict:
        command = [sys.executable, str(ROOT / "train.py"), f"--output-dir={folder}", *options, *more]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-2000:]
        assert "Virtual Memory" not in done.stdout, "DeepSpeed prints its memory"
        return load_file(folder / "checkpoints" / "step-000002" / "weights-0000.safetensors")

    straight = run(tmp_path / "two", "--zero-stage=2")
    other = run(tmp_path / "one", "--zero-stage=1", f"--resume={tmp_path}/two/checkpoints/step-000001")
    assert straight.keys() == other.keys() and {name.split("/")[0] for name in other} >= {"master", "exp_avg"}
    assert max((straight[name] - other[name]).abs().max().item() for name in other) < 1e-6


def test_a_checkpoint_of_another_model_is_recognised_and_named(tmp_path):
    from learners.checkpoints.training_state import refuse_another_model
    from tasks.errors import UsageError

    ours = {"model.norm.weight": [128], "model.embed_tokens.weight": [128, 128]}
    refuse_another_model(dict(ours), dict(ours), tmp_path)
    wider = ours | {"model.embed_tokens.weight": [128, 256]}
    with pytest.raises(
        UsageError, match=r"is of another model: model.embed_tokens.weight has shape \[128, 256\] there"
    ):
        refuse_another_model(wider, ours, tmp_path)
    adapters = {"model.layers.0.q_proj.lora_A.default.weight": [4, 128]}
    with pytest.raises(UsageError, match="give the same --model and --lora options"):
        refuse_another_model(adapters, ours, tmp_path)
