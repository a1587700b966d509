"""What starting both engines on a CPU must not load or do; in a process of its own, on a machine new to vLLM."""

import os
import subprocess
import sys

import pytest
import torch

from tests.conftest import ROOT

PROGRAM = """
import subprocess, sys
from pathlib import Path
import train
from learners.command_line import parse
from learners.record.run_log import NoLog

started = []
run, subprocess.run = subprocess.run, lambda command, **kw: started.append(command) or run(command, **kw)
config = parse(["--wandb=disabled", f"--output-dir={sys.argv[1]}"])
task, prompts, eval_prompts = train.load_task(config)
train.prepare(config)
marks = {}
learner = train.build(config, task, prompts, eval_prompts, NoLog(Path(sys.argv[1])), marks)
learner.learn(learner.collect(1))
learner.close()
task.close()
print("LOADED", *sorted(name for name in sys.modules if name.startswith("torch._inductor.") and "lowering" in name))
print("STARTED", *[command for command in started if "vllm" in str(command)])
print("MARKS", *marks)
"""


@pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU torch's compiler is used")
def test_neither_torchs_compiler_nor_a_second_vllm_is_loaded(tmp_path):
    environ = os.environ | {"VLLM_CACHE_ROOT": str(tmp_path / "cache")}
    environ.pop("TORCH_COMPILE_DISABLE", None)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "run")], cwd=ROOT, env=environ, capture_output=True, text=True
    )
    assert [line for line in done.stdout.splitlines() if line.startswith(("LOADED", "STARTED", "MARKS"))] == [
        "LOADED",
        "STARTED",
        "MARKS imports learner sampler",
    ], done.stderr[-2000:]
    assert "leaked" not in done.stderr
    assert list((tmp_path / "cache" / "modelinfos").iterdir())  # vLLM did look at the model
