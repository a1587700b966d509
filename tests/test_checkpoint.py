"""Checkpoints as folders, and record files, through kills, damage and full disks."""

import json
import os
import resource
import subprocess
import sys

import pytest

from learners.checkpoints.folders import Checkpoints, find_checkpoint, name_of, verify
from learners.record.json_lines import JsonLines, read
from tasks.errors import UsageError
from tests.conftest import ROOT


def some_files(content: str):
    def write(folder):
        paths = [folder / "a.bin", folder / "b.json"]
        for path in paths:
            path.write_text(content)
        return paths

    return write


def test_the_newest_stay_and_are_whole(tmp_path):
    folder = tmp_path / "a run" / "checkpoints"  # neither is there yet
    checkpoints, opened = Checkpoints(folder, keep=2), os.listdir("/proc/self/fd")
    for step in (5, 10, 100):
        assert checkpoints.write(name_of(step), some_files(f"of step {step}")) is None
    assert [path.name for path in checkpoints] == ["step-000100", "step-000010"]
    for path in checkpoints:
        assert verify(path) is None
    assert checkpoints.newest_whole() == (folder / "step-000100", [])
    assert os.listdir("/proc/self/fd") == opened, "files stay open"


def test_a_checkpoint_within_a_step_is_newer_than_the_step_before_it():
    assert sorted([name_of(6), name_of(5, 2), name_of(5), name_of(5, 10)]) == [
        name_of(5), name_of(5, 2), name_of(5, 10), name_of(6)
    ]  # fmt: skip


DAMAGE = {
    "truncated": (lambda path: path.write_text("of"), "a.bin has 2 bytes instead of 9"),
    "a byte changed": (lambda path: path.write_text("of stEp 2"), "a.bin is not what was written"),
    "missing": (lambda path: path.unlink(), "a.bin is missing"),
    "no manifest": (lambda path: (path.parent / "manifest.json").unlink(), "manifest.json cannot be read"),
    "manifest cut off": (lambda path: (path.parent / "manifest.json").write_text("{"), "manifest.json cannot be read"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_recognised_named_and_passed_over(tmp_path, kind):
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=5)
    for step in (1, 2):
        checkpoints.write(name_of(step), some_files(f"of step {step}"))
    damage, sentence = DAMAGE[kind]
    newest = tmp_path / "checkpoints" / "step-000002"
    damage(newest / "a.bin")
    assert sentence in verify(newest)
    path, complaints = find_checkpoint(tmp_path, "auto")
    assert path.name == "step-000001"
    assert len(complaints) == 1 and str(newest) in complaints[0]
    with pytest.raises(UsageError, match=sentence):
        find_checkpoint(tmp_path, str(newest))


def test_several_processes_share_the_files_and_miss_none(tmp_path):
    def write(folder):
        paths = [folder / f"{i}.bin" for i in range(7)]
        for i, path in enumerate(paths):
            path.write_text("x" * 10**i)
        return paths

    Checkpoints(tmp_path, keep=1).write(name_of(1), write)
    checkpoint = tmp_path / "step-000001"
    for i in range(7):
        file = checkpoint / f"{i}.bin"
        content = file.read_text()
        file.write_text("y" + content[1:])
        damage = [verify(checkpoint, part, parts=3) for part in range(3)]
        found = [(part, sentence) for part, sentence in enumerate(damage) if sentence is not None]
        assert len(found) == 1 and f"{i}.bin is not what was written" in found[0][1]
        assert found[0][0] == (6 - i) % 3, "the largest files go to different processes"
        file.write_text(content)


def test_a_kill_while_writing_leaves_the_older_ones_and_no_new_one(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=3)
    checkpoints.write(name_of(1), some_files("one"))

    def killed(folder):
        (folder / "a.bin").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        checkpoints.write(name_of(2), killed)
    assert [path.name for path in checkpoints] == ["step-000001"]
    assert checkpoints.write(name_of(3), some_files("three")) is None
    assert {path.name for path in tmp_path.iterdir()} == {"step-000001", "step-000003"}, "what was left was not removed"


def test_a_checkpoint_that_is_made_again_replaces_the_first(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=3)
    for content in ("first", "second"):
        assert checkpoints.write(name_of(1), some_files(content)) is None
    assert [path.name for path in tmp_path.iterdir()] == ["step-000001"]
    assert (tmp_path / "step-000001" / "a.bin").read_text() == "second"


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from learners.checkpoints.folders import Checkpoints, name_of
import torch
from safetensors.torch import save_file

def write(folder):
    save_file({"a": torch.zeros(100_000)}, folder / "a.safetensors")
    return [folder / "a.safetensors"]

checkpoints = Checkpoints(Path(sys.argv[1]), keep=3)
assert checkpoints.write(name_of(1), write) is None
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))
print(checkpoints.write(name_of(2), write))
"""


def test_a_disk_that_is_full_is_told_and_the_older_one_stays_whole(tmp_path):
    """A limit on the size of files stands in for the end of the disk: the write fails in the same way, half done."""
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[1] == resource.RLIM_INFINITY
    run = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() not in ("", "None")
    assert [path.name for path in tmp_path.iterdir()] == ["step-000001"]
    assert verify(tmp_path / "step-000001") is None


def test_records_survive_a_cut_off_line_and_keep_only_what_stays(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st')
    assert [record["step"] for record in read(path)] == [1, 2, 3]
    file = JsonLines(path, keep=lambda record: record["step"] <= 2)
    assert file.append({"step": 3}) is None
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n{"step": 3}\n'
    path.write_text("no json\n{}")
    with pytest.raises(ValueError, match="Expecting value"):
        read(path)


def test_records_wait_while_the_disk_is_full(tmp_path, monkeypatch):
    file = JsonLines(tmp_path / "metrics.jsonl")
    assert file.append({"step": 1}) is None
    opened = type(file.path).open

    def full(self, mode):
        handle = opened(self, mode)
        handle.seek(0, 2)
        handle.write(b'{"half')  # a part may have been written when the disk ends
        handle.close()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(file.path), "open", full)
    assert file.append({"step": 2}) == "No space left on device"
    monkeypatch.undo()
    assert file.append({"step": 3}) is None
    assert [json.loads(line)["step"] for line in file.path.read_text().splitlines()] == [1, 2, 3]
