"""The doctor on dumps that both engines make with one fault each: the embedded model, after real training steps."""

import subprocess
import sys

import pytest

from tests.conftest import ROOT

pytestmark = pytest.mark.engines
# Too rare in a few responses of this model to be found, or like other weights to it (docs/doctor.md counts how often).
UNSURE = {"padding seen", "another prompt"}

HIDDEN = " (below rounding)"


def test_each_fault_of_the_engines_is_named_first():
    command = [sys.executable, str(ROOT / "scripts" / "doctor_table.py"), "--prompts=64", "--draws=4"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = [line.strip("| ").split(" | ") for line in done.stdout.splitlines() if line.startswith("| ")][1:]
    from scripts.parts.faults import faults

    expected = {name: fault.causes for name, fault in faults(list, "top-k 3").items()}
    hidden = {name.removesuffix(HIDDEN) for name, _ in rows if name.endswith(HIDDEN)}
    assert {name.removesuffix(HIDDEN) for name, _ in rows} == set(expected)
    assert hidden == {"biased normaliser"}, (
        "99 tokens are too few for its sum to be off; all else is above FP16's rounding"
    )
    found = {name.removesuffix(HIDDEN): told.split()[0] for name, told in rows}
    wrong = {name: told for name, told in found.items() if told not in expected[name] and name not in UNSURE | hidden}
    assert not wrong
    assert found["biased normaliser"] == "healthy"
