"""The memory plan against what DeepSpeed really holds, to 2%; how it is counted: tests/engines/memory_sums.py."""

import json
import subprocess
import sys

import pytest

from tests.conftest import ROOT
from tests.engines.test_processes import ONE_THREAD, two_processes
from tests.models import random_qwen2

pytestmark = pytest.mark.engines

SCRIPT = str(ROOT / "tests" / "engines" / "memory_sums.py")
RUNS = {
    "one": ([sys.executable, SCRIPT], ["fp16-1", "bf16-1", "fp32-1", "fp16-2", "fp16-2-lora", "fp16-3"]),
    "two": (two_processes(SCRIPT), ["fp16-1", "bf16-1", "fp16-2", "fp32-2", "fp16-3", "fp16-3-lora"]),
}


@pytest.mark.parametrize("processes", RUNS)
def test_what_is_held_was_planned(tmp_path, processes):
    model = random_qwen2(tmp_path / "model", hidden_size=384, vocab_size=8192)  # 9 million parameters
    command, cases = RUNS[processes]
    done = subprocess.run(
        [*command, str(model), *cases], env=ONE_THREAD, cwd=tmp_path, capture_output=True, text=True, timeout=580
    )
    assert done.returncode == 0, done.stderr[-3000:]
    sums = json.loads(done.stdout.splitlines()[-1])
    assert list(sums) == cases
    for case, moments in sums.items():
        assert len(moments) == 3
        for moment, (held, planned) in moments.items():
            assert held == pytest.approx(planned, rel=0.02) or _not_yet_whole(processes, case, moment, held, planned)


def _not_yet_whole(processes: str, case: str, moment: str, held: int, planned: int) -> bool:
    """ZeRO-3 in several processes makes small parameters whole in the first forward pass, and plans for it before."""
    return processes == "two" and "-3" in case and moment == "vLLM starts" and 0.85 * planned < held < planned
