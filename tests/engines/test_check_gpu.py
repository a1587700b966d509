"""The command that checks a machine, on the CPU that is here."""

import json
import re
import subprocess
import sys

import pytest

from scripts.check_gpu import CHECKS, compare_mismatch, compare_stages
from scripts.parts.gpu_checks import Row, reason
from tests.conftest import ROOT

pytestmark = pytest.mark.engines


def check(folder, *arguments: str, timeout: float = 900):
    """Returns the finished process, and the rows of check.json, None if there is none."""
    command = [sys.executable, ROOT / "scripts" / "check_gpu.py", f"--output-dir={folder}", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
    file = folder / "check.json"
    return done, json.loads(file.read_text())["rows"] if file.exists() else None


def test_all_that_a_cpu_can_show_holds(tmp_path):
    done, rows = check(tmp_path / "out", "--small", "--minutes=14")
    assert done.returncode == 0, done.stdout + done.stderr
    assert {row["check"] for row in rows} == {"versions", *CHECKS}
    held = [(row["check"], row["part"]) for row in rows if row["holds"]]
    assert held.count(("compiled", "compiled")) == 2
    assert {part for name, part in held if name == "sync"} == {"fp16", "bf16", "fp32", "lora-merge", "lora-adapter"}
    assert {part for name, part in held if name == "zero"} == {"zero-1", "zero-2", "zero-3", "compared"}
    assert not [row for row in rows if row["holds"] is False]


def test_what_crashes_is_a_row_with_the_error(tmp_path):
    (tmp_path / "nothing").mkdir()
    done, rows = check(tmp_path / "out", "--small", "dtypes", f"--model={tmp_path / 'nothing'}")
    assert done.returncode == 1
    assert [(row["check"], row["part"], row["holds"]) for row in rows[1:]] == [
        ("dtypes", dtype, False) for dtype in ("fp16", "bf16", "fp32")
    ]
    assert all("Error" in row["figure"] and "nothing" in row["figure"] for row in rows[1:])
    assert done.stdout.count("FAILS") == 6, "as they come, and in the table"


def test_what_hangs_is_ended_in_time(tmp_path):
    done, rows = check(tmp_path / "out", "--small", "overflow", "compiled", "--minutes=0.03", timeout=60)
    assert done.returncode == 1
    assert {(row["check"], row["part"]) for row in rows[1:]} == {("overflow", "fp16"), ("compiled", "compiled")}
    assert all(re.match(r"not done after \d s; ", row["figure"]) for row in rows[1:])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--small", "sinc"], "There is no check sinc; there are: dtypes, "),
        (["--small", "--model=/no/where"], "--model /no/where is neither a folder nor a hub id; check the path."),
        ([], "There is no GPU here; --small"),
    ],
)
def test_what_is_refused(tmp_path, monkeypatch, arguments, said):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    done, rows = check(tmp_path / "out", *arguments)
    assert (done.returncode, rows) == (2, None)
    assert said in done.stderr
    assert not (tmp_path / "out").exists()


def test_dtypes_and_stages_are_held_against_each_other():
    def rows(check, key, **values):
        return [Row(None, "", {key: value}, check=check, part=part) for part, value in values.items()]

    assert compare_mismatch(rows("mismatch", "pi-mu", fp16=5e-5, bf16=5e-4, fp32=2e-7)).holds
    assert not compare_mismatch(rows("mismatch", "pi-mu", fp16=5e-5, bf16=1e-4, fp32=2e-7)).holds
    assert not compare_mismatch(rows("mismatch", "pi-mu", fp16=5e-5, bf16=5e-4, fp32=4e-5)).holds, "TF32"
    assert compare_mismatch(rows("mismatch", "pi-mu", fp16=5e-5, bf16=5e-4)) is None
    norms = {"one": [0.5, 0.25], "two": [0.5, 0.25001]}
    assert compare_stages(rows("zero", "train/loss", **norms)).holds
    assert not compare_stages(rows("zero", "train/loss", **norms, three=[0.5, 0.26])).holds
    assert compare_stages(rows("zero", "train/loss", one=[0.5])) is None


def test_the_reason_is_the_error_and_not_what_is_said_after_it():
    said = "loading\n[rank0]: torch.OutOfMemoryError: CUDA out of memory.\n[rank0]:[W1] a warning at the end\n\n"
    assert reason(said) == "torch.OutOfMemoryError: CUDA out of memory."
    assert reason("nothing\nSegmentation fault\n") == "Segmentation fault"
    assert reason("") == ""
