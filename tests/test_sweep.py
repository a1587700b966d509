"""Sweep files, and running them without a server."""

import csv
import io
import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest
import tyro
import yaml
from rich.console import Console

from learners.command_line import parse
from learners.model import config_file
from learners.objectives import OBJECTIVES
from scripts import sweep
from scripts.parts import job_queue
from tasks.errors import UsageError
from tests.conftest import ROOT

FILES = sorted((ROOT / "scripts" / "sweeps").glob("*.yaml"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_combination_is_a_command_line_that_train_understands(file, monkeypatch):
    facts = json.loads((ROOT / "tests" / "data" / "model_configs.json").read_text())
    real = config_file.read_model_config
    monkeypatch.setattr(config_file, "read_model_config", lambda config: facts.get(config.model.model) or real(config))
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


def test_only_some_of_what_varies_can_be_asked_for():
    _, combinations = sweep.read_grid(ROOT / "scripts" / "sweeps" / "precision_objectives.yaml")
    some = sweep.chosen(combinations, ("objective=grpo,gspo", "seed=1"))
    assert [(one["objective"], one["dtype"], one["seed"]) for one in some] == [
        (objective, dtype, "1") for objective in ("grpo", "gspo") for dtype in ("fp16", "bf16")
    ]
    with pytest.raises(UsageError, match="--only lr=1 names nothing that varies; objective, dtype, seed do"):
        sweep.chosen(combinations, ("lr=1",))
    with pytest.raises(UsageError, match="seed has no value 7; it has 0, 1, 2"):
        sweep.chosen(combinations, ("seed=0,7",))


def test_the_matrix_of_the_paper_is_complete():
    _, combinations = sweep.read_grid(ROOT / "scripts" / "sweeps" / "precision_objectives.yaml")
    assert len(combinations) == 2 * 11 * 3
    kinds = ("reinforce", "pg-", "grpo", "gspo")
    papers = [name for name in OBJECTIVES if name.startswith(kinds) and not name.endswith("-bypass")]
    assert {one["objective"] for one in combinations} == set(papers)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_an_agent_of_wandb_calls_the_same_command(file):
    content = yaml.safe_load(file.read_text())
    assert content["command"] == ["${env}", "${interpreter}", "${program}", "${args}"]
    assert "wandb" not in content["parameters"], "an agent's runs would not be recorded"
    metric = content.get("metric", {}).get("name", "train/reward")
    assert metric in (ROOT / "docs" / "metrics.md").read_text() or metric.startswith("mismatch/")


def test_options_are_sent_as_wandb_sends_them():
    fixed = {"save_model": str(False)}
    assert sweep.command_line(fixed, {"seed": "1"}) == ["--save_model=False", "--seed=1"]
    assert parse(sweep.command_line(fixed, {})).output.save_model is False


def test_extra_options_take_the_place_of_the_files():
    given = tyro.cli(
        sweep.Arguments, args=["f.yaml", "--extra=--model=M", "--extra=--task=math", "--only", "a=1", "b=2"]
    )
    assert given.extra == ("--model=M", "--task=math") and given.only == ("a=1", "b=2")
    made = sweep.with_extra(["--max_steps=60", "--seed=1"], ("--max-steps=2",))
    assert made == ["--seed=1", "--max-steps=2", "--wandb=disabled"]
    assert sweep.with_extra(["--seed=1"], ("--wandb=offline",)) == ["--seed=1", "--wandb=offline"]
    assert sweep.with_extra(["--reject=geo", "--wandb=offline"], ("--reject=",)) == ["--wandb=offline"]


# ------------------------------------------------------------------------------------------------ running

STAND_IN = """
import json, os, sys, time
from pathlib import Path

options = dict(argument.lstrip("-").split("=", 1) for argument in sys.argv[1:])
folder = Path(options["output-dir"])
with (folder.parent / "started").open("a") as file:
    file.write(folder.name + "\\n")
folder.mkdir()
config = {"training": {"seed": int(options["seed"])}, "objective": {"objective": "pg-seq-is"}}
config["precision"] = {"dtype": options["dtype"]}
(folder / "config.json").write_text(json.dumps(config))
(folder / "metrics.jsonl").write_text(json.dumps({"step": 1, "train/reward": 0.25}) + "\\n")
status = "finished"
if options["seed"] == "2":
    sys.exit("out of memory")
if options["seed"] == "7":
    try:
        (folder / "ready").touch()
        time.sleep(60)
    except KeyboardInterrupt:
        status = "interrupted"
summary = {"status": status, "final_reward": 0.5, "steps": 1, "startup_seconds": {"imports": 1.0}}
(folder / "summary.json").write_text(json.dumps(summary))
sys.exit(0 if status == "finished" else 130)
"""


@pytest.fixture
def small_sweep(tmp_path, monkeypatch):
    """A function that runs a sweep over the given seeds; train.py is replaced, what is tested is which runs start."""
    program = tmp_path / "program"
    program.mkdir()
    (program / "train.py").write_text(STAND_IN)
    monkeypatch.setattr(sweep, "ROOT", program)
    out = tmp_path / "out"

    def run(*seeds: int, jobs: int = 1, extra: tuple[str, ...] = ()) -> tuple[int, list[str]]:
        file = tmp_path / "seeds.yaml"
        file.write_text(f"method: grid\nparameters: {{dtype: {{value: fp16}}, seed: {{values: {list(seeds)}}}}}")
        (out / "started").unlink(missing_ok=True)
        code = sweep.main(sweep.Arguments(file, output_dir=out, jobs=jobs, extra=extra))
        return code, (out / "started").read_text().split() if (out / "started").exists() else []

    run.out = out
    return run


def rows_of(out: Path) -> list[dict]:
    return list(csv.DictReader((out / "results.csv").open()))


def test_a_failure_stops_no_other_run_and_is_repeated_next_time(small_sweep):
    code, started = small_sweep(0, 1, 2, 3, jobs=2)
    assert (code, sorted(started)) == (1, ["seed=0", "seed=1", "seed=2", "seed=3"])  # two at a time: in either order
    rows = {row["seed"]: row for row in rows_of(small_sweep.out)}
    assert [rows[seed]["status"] for seed in "0123"] == ["finished", "finished", "failed", "finished"]
    assert rows["0"]["final_reward"] == "0.5"
    assert "startup_seconds" not in rows["0"]
    assert "out of memory" in (small_sweep.out / "seed=2.log").read_text()
    assert small_sweep(0, 1, 2, 3) == (1, ["seed=2"]), "the finished ones were run again"
    assert small_sweep(0, 1, 3) == (0, [])


def test_a_run_that_was_cut_off_is_kept_aside_and_repeated(small_sweep):
    (small_sweep.out / "seed=1").mkdir(parents=True)
    (small_sweep.out / "seed=1" / "metrics.jsonl").write_text("{}")
    assert small_sweep(0, 1) == (0, ["seed=0", "seed=1"])
    (aside,) = small_sweep.out.glob("seed=1.set-aside-*")
    assert (aside / "metrics.jsonl").read_text() == "{}"


def test_a_finished_run_with_other_options_is_not_taken_for_this_one(small_sweep, capsys):
    assert small_sweep(0) == (0, ["seed=0"])
    file = small_sweep.out / "seed=0" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"training": {"seed": 0, "learning_rate": 0.1}}))
    assert small_sweep(0)[1] == ["seed=0"]
    assert "other options: learning_rate" in capsys.readouterr().out


def test_an_interruption_stops_the_runs_and_keeps_their_summaries(small_sweep):
    def interrupt():
        while not (small_sweep.out / "seed=7" / "ready").exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    assert small_sweep(0, 7, 3) == (130, ["seed=0", "seed=7"])
    assert json.loads((small_sweep.out / "seed=7" / "summary.json").read_text())["status"] == "interrupted"
    assert [row["status"] for row in rows_of(small_sweep.out)] == ["finished", "stopped"]


def test_nothing_starts_where_a_combination_is_refused(small_sweep):
    with pytest.raises(UsageError, match=r"seed=1: --learning-rate is -1"):
        small_sweep(1, extra=("--learning-rate=-1",))
    with pytest.raises(UsageError, match="varies"):
        small_sweep(1, 2, extra=("--seed=5",))
    with pytest.raises(UsageError, match="with a value"):
        small_sweep(1, 2, extra=("--gradient-checkpointing",))
    assert not small_sweep.out.exists()


def test_the_live_table_shows_what_runs_and_what_ended(tmp_path):
    config = {"training": {"max_steps": 60}}
    jobs = [job_queue.Job(tmp_path / f"seed={i}", [], {"seed": str(i)}, config) for i in range(4)]
    jobs[0].status, jobs[0].summary = "finished", {"steps": 60, "final_reward": 0.97, "mismatch_kl_k3": 3e-7}
    jobs[1].status = "failed"
    jobs[2].status = "running"
    jobs[2].folder.mkdir()
    lines = [json.dumps({"step": i, "train/reward": i / 10}) + "\n" for i in (1, 2)]
    (jobs[2].folder / "metrics.jsonl").write_text("".join(lines) + '{"step": 3, "tra')
    assert job_queue.cells(jobs[0]) == ["seed=0", "finished", "60/60", "0.970", "", "3.00e-07"]
    assert job_queue.cells(jobs[2]) == ["seed=2", "running", "2/60", "0.200", "", ""]
    queue = job_queue.Queue(jobs, 2, [], 1, tmp_path)
    queue.durations, queue.started = [100.0, 140.0], {id(jobs[2]): time.monotonic() - 20}
    assert queue.seconds_left() == pytest.approx((120 + 100) / 2, abs=1)
    shown = io.StringIO()
    Console(file=shown, width=120).print(job_queue.table(queue))
    assert "2 of 4 runs ended, 1 failed, 1 waiting, about 2 min left" in " ".join(shown.getvalue().split())
    assert "seed=3" not in shown.getvalue()
