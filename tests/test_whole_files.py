"""Files and folders that appear whole or not at all: seen whenever a name is given, and after a kill just before."""

import json
import os
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from learners.checkpoints import folders
from learners.checkpoints.folders import Checkpoints, find_checkpoint, name_of, verify
from learners.command_line import parse
from learners.record.json_lines import JsonLines, write_whole
from learners.record.rollout_log import write_rollouts
from learners.record.run_log import RunLog
from tasks.errors import UsageError


class KilledError(BaseException):
    """In place of SIGKILL: no handler of the program takes it."""


@pytest.fixture
def named(monkeypatch):
    """What was renamed to what, in order, each with the content at that moment; a name in ``kill`` is not given."""
    log = SimpleNamespace(names=[], kill=None)

    def renames(real):
        def rename(self, target):
            source, target = Path(self), Path(target)
            if log.kill is not None and log.kill in target.name:
                raise KilledError
            content = source.read_bytes() if source.is_file() else sorted(path.name for path in source.iterdir())
            log.names.append((source.name, target.name, content))
            return real(self, target)

        return rename

    for name in ("rename", "replace"):  # which Path's call
        monkeypatch.setattr(os, name, renames(getattr(os, name)))
    return log


def test_a_file_gets_its_name_when_it_is_whole(tmp_path, named):
    path = tmp_path / "a.json"
    write_whole(path, b"first")
    named.kill = "a.json"
    with pytest.raises(KilledError):
        write_whole(path, b"second")
    assert path.read_bytes() == b"first"
    named.kill = None
    write_whole(path, b"third")
    assert path.read_bytes() == b"third" and [p.name for p in tmp_path.iterdir()] == ["a.json"]
    assert [name[1:] for name in named.names] == [("a.json", b"first"), ("a.json", b"third")]


def test_what_is_cut_off_a_file_of_records_is_lost_only_when_the_rest_is_whole(tmp_path, named):
    path = tmp_path / "metrics.jsonl"
    before = b'{"step": 1}\n{"step": 2}\n{"st'
    path.write_bytes(before)
    named.kill = "metrics"
    with pytest.raises(KilledError):
        JsonLines(path, keep=lambda record: record["step"] < 2)
    assert path.read_bytes() == before
    named.kill = None
    assert JsonLines(path, keep=lambda record: record["step"] < 2).records == [{"step": 1}]
    assert path.read_bytes() == b'{"step": 1}\n'
    JsonLines(path)
    assert len(named.names) == 1, "a file that is as it should be is left alone"


@pytest.fixture
def config():
    return parse(["--wandb=disabled"])


STEP = {"train/reward": 0.5, "precision/loss_scale": 1.0, "precision/skipped_updates": 0, "time/step": 1.0}


def test_config_and_summary_of_a_run_are_whole_at_every_moment(tmp_path, named, config, capsys):
    log = RunLog(config, tmp_path)
    log.step(1, STEP)
    log.finish("stopped")
    for file in ("config.json", "summary.json"):
        contents = [content for _, target, content in named.names if target == file]
        assert len(contents) == 1 and json.loads(contents[0]) == json.loads((tmp_path / file).read_text())
    written = (tmp_path / "config.json").read_text()
    named.kill = "config.json"
    with pytest.raises(KilledError):
        RunLog(config, tmp_path, resumed=log.state())
    assert (tmp_path / "config.json").read_text() == written, "the run can still go on"
    assert json.loads((tmp_path / "summary.json").read_text())["status"] == "stopped"


def test_a_steps_rollouts_and_what_they_claim_appear_whole(tmp_path, named, config):
    config.precision.train_dtype = "bf16"
    mask = torch.tensor([[False, True, True], [True, True, False]])
    batch = SimpleNamespace(
        response_mask=mask, lengths=torch.tensor([4, 3]), input_ids=torch.arange(8).view(2, 4),
        mu_logp=-torch.arange(6.0).view(2, 3), rewards=torch.tensor([1.0, 0.0]),
    )  # fmt: skip
    for step in (7, 7, 8):
        write_rollouts(config, tmp_path, step, batch, -torch.arange(6.0).view(2, 3) / 2)
    folder = tmp_path / "rollouts"
    files = ["claims.json", "step-000007.parquet", "step-000008.parquet"]
    assert sorted(path.name for path in folder.iterdir()) == files
    assert [target for _, target, _ in named.names] == [files[1], files[0], files[1], files[2]]
    assert json.loads((folder / "claims.json").read_text()) == {
        "sample_dtype": "fp16", "train_dtype": "bf16", "top_p": 1.0, "temperature": 1.0, "lora": False
    }  # fmt: skip
    from pyarrow import parquet

    assert parquet.read_table(folder / files[2]).to_pylist() == [
        {"prompt_ids": [0, 1], "response_ids": [2, 3], "log_mu": [-1.0, -2.0], "log_pi": [-0.5, -1.0], "reward": 1.0,
         "group": 448, "step": 8},
        {"prompt_ids": [4], "response_ids": [5, 6], "log_mu": [-3.0, -4.0], "log_pi": [-1.5, -2.0], "reward": 0.0,
         "group": 448, "step": 8},
    ]  # fmt: skip
    config.precision.sample_dtype = "bf16"  # the run goes on with other options
    write_rollouts(config, tmp_path, 9, batch, -torch.arange(6.0).view(2, 3) / 2)
    assert json.loads((folder / "step-000009.parquet.claims.json").read_text())["sample_dtype"] == "bf16"
    assert json.loads((folder / "claims.json").read_text())["sample_dtype"] == "fp16"


# ------------------------------------------------------------------------------------------------ checkpoints


def some_files(*names: str):
    def write(folder):
        for name in names:
            (folder / name).write_text(f"of {folder.name[:11]}")
        return [folder / name for name in names]

    return write


def test_a_checkpoint_gets_its_name_last_with_all_its_files_on_the_disk(tmp_path, named, monkeypatch):
    flushed = []
    real = os.fsync
    monkeypatch.setattr(
        os, "fsync", lambda opened: (flushed.append(os.readlink(f"/proc/self/fd/{opened}")), real(opened))
    )
    checkpoints = Checkpoints(tmp_path / "kept", keep=2)
    assert checkpoints.write(name_of(1), some_files("a", "b")) is None
    unfinished = str(tmp_path / "kept" / (name_of(1) + ".unfinished"))
    assert flushed == [
        f"{unfinished}/a",
        f"{unfinished}/b",
        f"{unfinished}/manifest.json",
        unfinished,
        str(tmp_path / "kept"),
    ]
    assert named.names == [(name_of(1) + ".unfinished", name_of(1), ["a", "b", "manifest.json"])]
    manifest = json.loads((tmp_path / "kept" / name_of(1) / "manifest.json").read_text())
    assert manifest["files"]["a"]["bytes"] == len("of step-000001")


def test_a_kill_before_a_name_is_given_leaves_what_was_there(tmp_path, named):
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=1)
    checkpoints.write(name_of(1), some_files("a"))
    named.kill = name_of(2)
    with pytest.raises(KilledError):
        checkpoints.write(name_of(2), some_files("a"))
    assert checkpoints.newest_whole() == (tmp_path / "checkpoints" / name_of(1), [])
    named.kill = None
    assert checkpoints.write(name_of(3), some_files("a")) is None
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == [name_of(3)], "what was left is removed"


def test_one_that_is_made_again_is_moved_aside_until_the_new_one_has_its_name(tmp_path, named, monkeypatch):
    checkpoints = Checkpoints(tmp_path, keep=3)
    checkpoints.write(name_of(1), some_files("a"))
    there = []
    real = shutil.rmtree
    monkeypatch.setattr(
        folders.shutil, "rmtree", lambda path, **how: (there.append(Path(path).name), real(path, **how))
    )
    checkpoints.write(name_of(1), some_files("a", "b"))
    aside = name_of(1) + ".replaced.unfinished"
    assert [name[:2] for name in named.names[1:]] == [(name_of(1), aside), (name_of(1) + ".unfinished", name_of(1))]
    assert there == [aside]
    assert [path.name for path in checkpoints] == [name_of(1)]


def test_what_cannot_be_written_leaves_nothing_and_is_told(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=3)

    def full(folder):
        (folder / "a").write_text("half")
        raise OSError(28, "No space left on device")

    assert checkpoints.write(name_of(1), full) == "No space left on device"
    assert list(tmp_path.iterdir()) == []

    def without_a_number(folder):
        raise OSError("the file system says so")

    assert checkpoints.write(name_of(1), without_a_number) == "the file system says so"
    (tmp_path / "file").write_text("")
    assert Checkpoints(tmp_path / "file", keep=1).write(name_of(1), full) is not None

    def broken(folder):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        checkpoints.write(name_of(1), broken)


def test_names_sort_by_age_and_are_these():
    assert (name_of(7), name_of(7, 3), name_of(123456, 1234)) == (
        "step-000007", "step-000007-update-0003", "step-123456-update-1234"
    )  # fmt: skip


def test_which_checkpoint_a_run_goes_on_from(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=3)
    assert find_checkpoint(tmp_path, "auto") == (None, [])
    for step in (1, 2):
        checkpoints.write(name_of(step), some_files("a"))
    first, second = (tmp_path / "checkpoints" / name_of(step) for step in (1, 2))
    assert find_checkpoint(tmp_path, "never") == (None, [])
    assert find_checkpoint(tmp_path, "auto") == (second, [])
    assert find_checkpoint(tmp_path / "other", str(first)) == (first, [])
    for checkpoint in (first, second):
        (checkpoint / "a").unlink()
    complaints = [f"Checkpoint {checkpoint} is incomplete: a is missing." for checkpoint in (second, first)]
    assert find_checkpoint(tmp_path, "auto") == (None, complaints)
    with pytest.raises(UsageError, match=r"a is missing\. Name another with --resume\."):
        find_checkpoint(tmp_path, str(first))


def test_a_manifest_that_says_something_else_is_damage(tmp_path):
    Checkpoints(tmp_path, keep=1).write(name_of(1), some_files("a"))
    checkpoint = tmp_path / name_of(1)
    assert verify(checkpoint) is None
    for content in ("[]", '{"files": 1}', '{"files": {"a": {}}}', "{}"):
        (checkpoint / "manifest.json").write_text(content)
        assert re.search(r"is incomplete: manifest.json cannot be read \(\w+Error\)\.$", verify(checkpoint))
