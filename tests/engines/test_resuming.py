"""Checkpoints taken up again by one process and by two, in every dtype and ZeRO stage, each reading only its part."""

import json
import subprocess
import sys

import pytest
import torch

from tests.conftest import ROOT
from tests.engines.test_processes import ONE_THREAD, two_processes

pytestmark = pytest.mark.engines

SCRIPT = str(ROOT / "tests" / "engines" / "resume_in_parts.py")
CASES = ["fp16-1", "fp16-2", "bf16-1", "bf16-2", "fp32-1", "fp32-2", "fp16-2-lora", "fp32-3-lora", "fp16-3", "bf16-3"]


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """A folder with a model of which two processes cannot have equal parts: widths, and so sizes, are odd."""
    from transformers import Qwen2ForCausalLM

    from tasks.arithmetic.model import build_model, build_tokenizer

    folder = tmp_path_factory.mktemp("resumed")
    config = build_model(num_layers=2).config
    config.hidden_size, config.intermediate_size, config.head_dim = 129, 345, 32
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Qwen2ForCausalLM(config)
    assert sum(parameter.numel() % 2 for parameter in model.parameters()) > 5
    model.save_pretrained(folder / "model")
    build_tokenizer().save_pretrained(folder / "model")
    return folder


def run(out, *command: str) -> None:
    options = [f"--model={out / 'model'}", "--task=arithmetic", "--prompt-template=no", "--micro-batch-size=8"]
    lengths = ["--prompt-max-length=32", "--generate-max-length=24"]
    done = subprocess.run(
        [*command, *options, *lengths], env=ONE_THREAD, capture_output=True, text=True, timeout=400, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module")
def by_two(out):
    run(out, *two_processes(SCRIPT, str(out / "two"), ",".join(CASES)))
    return out / "two"


@pytest.mark.parametrize("case", CASES)
def test_each_of_two_processes_reads_its_half_and_the_run_is_the_one_that_was_not_interrupted(by_two, case):
    for rank in (0, 1):
        report = json.loads((by_two / case / f"2-{rank}.json").read_text())
        assert report["as_stored"], "a master or a moment is not what the checkpoint holds"
        assert report["cast"], "what is computed with is not the masters, cast"
        assert report["moved"] > 1e-5, "the updates changed nothing, so this test shows nothing"
        assert report["apart"] == 0
        if "lora" not in case:  # which is so small that the file's header and the least that is read count
            assert report["read"] < 0.65 * report["stored"]
            assert report["verified"] < 0.65 * report["bytes"]


@pytest.mark.parametrize("stage", [1, 3])
def test_what_two_processes_wrote_is_taken_up_by_one_with_another_stage(by_two, stage):
    cases = [case for case in ("fp16-2", "fp32-2", "fp16-2-lora", "bf16-2") if stage == 1 or case != "bf16-2"]
    run(by_two.parent, sys.executable, SCRIPT, str(by_two), ",".join(cases), f"--zero-stage={stage}")
    for case in cases:
        report = json.loads((by_two / case / "1-0.json").read_text())
        assert report["as_stored"] and report["cast"]
        if case == "fp32-2":
            assert report["apart"] < 1e-6


def test_what_one_process_wrote_is_taken_up_by_itself_bitwise_and_by_two(out):
    cases = ["fp16-2", "bf16-1", "fp32-3-lora", "fp16-3"]
    run(out, sys.executable, SCRIPT, str(out / "one"), ",".join(cases))
    run(out, *two_processes(SCRIPT, str(out / "one"), ",".join(cases)))
    for case in cases:
        alone = json.loads((out / "one" / case / "1-0.json").read_text())
        assert alone["as_stored"] and alone["cast"] and alone["apart"] == 0
        for rank in (0, 1):
            report = json.loads((out / "one" / case / f"2-{rank}.json").read_text())
            assert report["as_stored"] and report["cast"]


@pytest.mark.parametrize("processes", [1, 2])
def test_a_step_that_rejects_goes_on_with_what_it_knew_at_the_rollout_weights(processes, tmp_path):
    """Evaluated again after two updates, pi_old would be another, and so the tokens and the mean weight."""
    script = [str(ROOT / "tests" / "engines" / "stopped_within.py"), str(tmp_path)]
    command = [sys.executable, *script] if processes == 1 else two_processes(*script)
    done = subprocess.run(command, env=ONE_THREAD, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    for rank in range(processes):
        report = json.loads((tmp_path / f"{processes}-{rank}.json").read_text())
        assert report["updates_done"] == 2
        assert report["same_mean_weight"] and report["mean_weight"] != 1
        assert report["same_loss_mask"] and report["rejected"] > 0
        assert report["apart"] == 0
        assert report["metrics"] == pytest.approx(report["straight_metrics"], rel=1e-12)
