"""Sweep files, and running them without a server."""

import csv
import json
from pathlib import Path

import pytest
import yaml

from learners.config import parse
from learners.objectives import OBJECTIVES
from scripts import sweep
from tasks.errors import UsageError
from tests.conftest import ROOT

FILES = sorted((ROOT / "scripts" / "sweeps").glob("*.yaml"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_combination_is_a_command_line_that_train_understands(file):
    fixed, combinations = sweep.read_grid(file)
    assert yaml.safe_load(file.read_text())["program"] == "train.py"
    assert len(combinations) > 1
    resolved = {json.dumps(parse(sweep.command_line(fixed, one)).to_dict()) for one in combinations}
    assert len(resolved) == len(combinations), "two combinations are the same run"
    assert len({sweep.run_name(one) for one in combinations}) == len(combinations)


def test_the_objectives_sweep_names_every_objective():
    _, combinations = sweep.read_grid(ROOT / "scripts" / "sweeps" / "objectives.yaml")
    assert sorted(one["objective"] for one in combinations) == sorted(OBJECTIVES)


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ("method: bayes\nparameters: {seed: {values: [0]}}", "only a grid"),
        ("method: grid\nparameters: {seed: {min: 0, max: 1}}", "neither value nor values"),
        ("method: grid", "no sweep file"),
        ("[", "no sweep file"),
    ],
)
def test_what_is_no_grid_is_refused(tmp_path, content, part):
    file = tmp_path / "sweep.yaml"
    file.write_text(content)
    with pytest.raises(UsageError, match=part):
        sweep.read_grid(file)


def test_finished_runs_are_kept_and_unfinished_ones_repeated(tmp_path, monkeypatch):
    """The runs themselves are replaced here: what is tested is which of them are started."""
    started = []

    def pretend(command, **_):
        folder = Path(next(a for a in command if a.startswith("--output-dir=")).removeprefix("--output-dir="))
        started.append(folder.name)
        folder.mkdir()
        status = "failed" if "seed=2" in folder.name else "finished"
        (folder / "summary.json").write_text(json.dumps({"status": status, "final_reward": 0.5}))

    monkeypatch.setattr(sweep.subprocess, "run", pretend)
    file = tmp_path / "seeds.yaml"
    file.write_text("method: grid\nparameters: {dtype: {value: fp16}, seed: {values: [0, 1, 2]}}")
    arguments = sweep.Arguments(file, output_dir=tmp_path / "out")
    (tmp_path / "out" / "seed=1").mkdir(parents=True)  # begun by an earlier sweep that was killed
    assert sweep.main(arguments) == 1
    assert sorted(started) == ["seed=0", "seed=1", "seed=2"]
    started.clear()
    assert sweep.main(arguments) == 1
    assert started == ["seed=2"], "the finished ones were run again"
    rows = list(csv.DictReader((tmp_path / "out" / "results.csv").open()))
    assert [row["seed"] for row in rows] == ["0", "1", "2"]
    assert rows[0]["final_reward"] == "0.5"
    assert rows[2]["status"].startswith("failed")
