"""evaluate.py and build_sanity_set.py by their command lines: after a kill, the next run goes on to the same end.

One engine start each; a run whose responses are all stored starts none.
"""

import json
import shutil
import signal
import subprocess
import sys
import time

import pytest

from tests.conftest import ROOT

pytestmark = pytest.mark.engines

EVALUATE = ["evaluate.py", "--benchmark=arithmetic", "--n=6", "--k=3", "--max-problems=24", "--dtype", "fp16"]
BUILD = ["build_sanity_set.py", "--max-problems=64", "--samples=20", "--max-num-seqs=32"]


def command(arguments: list[str], folder) -> list[str]:
    return [sys.executable, str(ROOT / "scripts" / arguments[0]), *arguments[1:], f"--output-dir={folder}"]


def run(arguments: list[str], folder) -> str:
    done = subprocess.run(command(arguments, folder), capture_output=True, text=True, timeout=600, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def records(folder, *fields: str) -> dict:
    lines = [json.loads(line) for line in (folder / "responses.jsonl").read_text().splitlines()]
    made = {tuple(record[field] for field in fields): record for record in lines}
    assert len(made) == len(lines), "a response was sampled twice"
    return made


def kill_at(arguments: list[str], folder, lines: int) -> None:
    """Run the command, and kill it without warning once so many lines are stored."""
    process = subprocess.Popen(
        command(arguments, folder), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT
    )
    file, deadline = folder / "responses.jsonl", time.monotonic() + 300
    while not file.exists() or file.read_bytes().count(b"\n") < lines:
        assert process.poll() is None, "ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluation") / "full"
    run(EVALUATE, folder)
    return folder


def test_an_evaluation_stores_every_response_and_makes_its_tables(evaluation):
    from tasks.accuracy import Accuracy

    made = records(evaluation, "dtype", "benchmark", "problem", "sample")
    assert len(made) == 24 * 6
    assert {record["reward"] for record in made.values()} == {0.0, 1.0}
    rewards: dict[str, list] = {}
    for (_, _, problem, _), record in sorted(made.items()):
        rewards.setdefault(problem, []).append(record["reward"])
    expected = Accuracy.of(list(rewards.values()), k=3)
    names, values = ((evaluation / "table.csv").read_text().splitlines()[i].split(",") for i in (0, 1))
    row = dict(zip(names, values, strict=True))
    assert row["dtype"] == "fp16"
    assert float(row["arithmetic avg@6"]) == expected.mean
    assert float(row["arithmetic stderr"]) == pytest.approx(expected.stderr, rel=1e-12)  # summed in another order
    assert float(row["arithmetic pass@3"]) == expected.pass_at_k
    assert f"{100 * expected.mean:.2f} ± {100 * expected.stderr:.2f}" in (evaluation / "table.txt").read_text()


def test_an_evaluation_that_was_cut_off_goes_on_to_the_same_responses_and_table(evaluation, tmp_path):
    cut = tmp_path / "cut"
    shutil.copytree(evaluation, cut)
    for table in cut.glob("table.*"):
        table.unlink()
    content = (cut / "responses.jsonl").read_bytes()
    (cut / "responses.jsonl").write_bytes(content[: len(content) // 3 - 5])  # as a kill leaves it, mid-line
    assert "cut off by a kill" in run(EVALUATE, cut)
    key = ("dtype", "benchmark", "problem", "sample")
    assert records(cut, *key) == records(evaluation, *key), "the same, although sampled in other company"
    for name in ("table.txt", "table.csv", "table.tex"):
        assert (cut / name).read_bytes() == (evaluation / name).read_bytes()


@pytest.fixture(scope="module")
def early(tmp_path_factory):
    """A set that was stopped early, and killed on the way."""
    folder = tmp_path_factory.mktemp("sanity") / "early"
    kill_at(BUILD, folder, lines=300)
    run(BUILD, folder)
    return folder


def test_the_sanity_set_is_the_same_stopped_early_and_killed_on_the_way(early, tmp_path):
    full = tmp_path / "full"
    run([*BUILD, "--early-stopping=False"], full)
    drawn_in_full, drawn_early = records(full, "problem", "sample"), records(early, "problem", "sample")
    assert len(drawn_in_full) == 64 * 20
    assert len(drawn_early) < 0.85 * 64 * 20
    assert all(drawn_in_full[key] == record for key, record in drawn_early.items())
    questions = [
        [json.loads(line)["problem"] for line in (folder / "problems.jsonl").open()] for folder in (full, early)
    ]
    assert questions[0] == questions[1]
    assert 0 < len(questions[0]) < 64
    by_definition = {}
    for (problem, _), record in drawn_in_full.items():
        by_definition[problem] = by_definition.get(problem, 0) + (record["reward"] == 1)
    assert len(questions[0]) == sum(4 <= right <= 16 for right in by_definition.values())
    card = json.loads((early / "card.json").read_text())
    assert (card["kept"], card["template"], card["dtype"]) == (len(questions[0]), "no", "fp16")
    assert card["saving"] == pytest.approx(1 - len(drawn_early) / (64 * 20))
    assert (early / "histogram.png").read_bytes()[:4] == b"\x89PNG"

    from datasets import load_dataset

    assert load_dataset(str(early), split="train")["problem"][:] == questions[0], "its README says what to load"


def test_training_on_the_set_passes_in_fp16_and_stops_then(early, tmp_path):
    """64 problems leave 44: two steps of 16 prompts an epoch."""
    folder = tmp_path / "run"
    options = ["--task=sanity", f"--data={early}", "--dtype=fp16", "--stop-when-passed=True", "--wandb=disabled"]
    options += ["--rollout-batch-size=16", "--train-batch-size=32", "--micro-batch-size=32"]
    options += ["--lr-scheduler=constant_with_warmup", f"--output-dir={folder}"]
    train = [sys.executable, str(ROOT / "train.py"), *options]
    done = subprocess.run(train, capture_output=True, text=True, timeout=600, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    rewards = [json.loads(line)["train/reward"] for line in (folder / "metrics.jsonl").open()]
    passing = [step for step in range(2, len(rewards) + 1) if sum(rewards[step - 2 : step]) / 2 > 0.95]
    assert passing == [len(rewards)], "the run ends at the first step that passes"
    assert len(rewards) < 60
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["sanity_passed"], summary["status"]) == (True, "finished")
    assert f"passed after {len(rewards)} steps" in done.stdout
