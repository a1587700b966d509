"""The record of a run: what stands in its files, what a checkpoint keeps of it, what is shown; and its evaluations."""

import json
import math
import time
from types import SimpleNamespace

import numpy as np
import pytest

from actors.processes import Processes
from learners.command_line import parse
from learners.record import run_log
from learners.record.evaluation import evaluate
from learners.record.run_log import NoLog, RunLog, default_folder


@pytest.fixture
def config():
    return parse(["--wandb=disabled", "--name=a-run"])


def metrics(reward: float, skipped: int = 0, **more: float) -> dict[str, float]:
    return {
        "train/reward": reward, "precision/loss_scale": 65536.0, "precision/skipped_updates": skipped,
        "time/step": 2.0 + reward,
        "mismatch/kl_k3": reward / 10, "mismatch/abs_prob_diff_mean": reward / 100,
    } | {key.replace("__", "/"): value for key, value in more.items()}  # fmt: skip


def lines(folder, name):
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def run(config, folder, rewards=(0.1, 0.2, 0.3, 0.4, 0.5, 0.9), **how) -> RunLog:
    log = RunLog(config, folder, **how)
    log.evaluation(0, {"eval/accuracy": 0.25})
    for step, reward in enumerate(rewards, start=1):
        log.step(step, metrics(reward, step // 3, **({"eval__accuracy": 0.7 - step / 10} if step % 3 == 0 else {})))
    return log


def test_the_summary_says_how_it_began_and_ended(tmp_path, config, capsys):
    summary = run(config, tmp_path).finish("stopped", skipped_updates=1)
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    expected = {
        "status": "stopped", "dtype": "fp16", "objective": "pg-seq-is", "steps": 6, "initial_reward": 0.1,
        "final_reward": (0.2 + 0.3 + 0.4 + 0.5 + 0.9) / 5, "initial_accuracy": 0.25,
        "final_accuracy": pytest.approx(0.1), "best_accuracy": pytest.approx(0.4),
        "mismatch_kl_k3": pytest.approx(0.01), "mismatch_abs_prob_diff_mean": pytest.approx(0.001),
        "sanity_passed": None,
        "skipped_updates": 2,
        "seconds_per_step": pytest.approx(2.35), "startup_seconds": {},
    }  # fmt: skip
    assert {key: summary[key] for key in expected} == expected
    assert set(summary) - set(expected) == {"wall_seconds", "peak_memory_gb"}
    assert 0 < summary["wall_seconds"] < 60 and 0.01 < summary["peak_memory_gb"] < 50
    shown = capsys.readouterr().out
    for words in (
        "a-run: stopped after 6 steps",
        "accuracy on held-out problems before training: 25.0%",
        "0.460",
        "skipped",
    ):
        assert words in shown
    assert "metrics.jsonl summary.json config.json reward.png" in shown and "goes on from" not in shown
    assert (tmp_path / "reward.png").stat().st_size > 1000


def test_a_run_without_a_step_has_no_numbers(tmp_path, config, capsys):
    summary = RunLog(config, tmp_path).finish("failed", skipped_updates=3)
    assert summary["skipped_updates"] == 3 and summary["steps"] == 0
    none = ("initial_reward", "final_reward", "initial_accuracy", "final_accuracy", "best_accuracy", "seconds_per_step")
    assert {summary[key] for key in none} == {None}
    assert "starts anew, as no checkpoint was written yet" in capsys.readouterr().out
    (tmp_path / "checkpoints" / "step-000020").mkdir(parents=True)
    (tmp_path / "checkpoints" / "step-000040").mkdir()
    (tmp_path / "checkpoints" / "step-000060.unfinished").mkdir()
    RunLog(config, tmp_path).finish("interrupted")
    assert f"--output-dir {tmp_path} goes on from step-000040" in capsys.readouterr().out


def test_what_is_no_number_is_null_and_what_goes_on_drops_what_came_later(tmp_path, config):
    log = RunLog(config, tmp_path, {"prompts": 7})
    for step in (1, 2, 3):
        prompts = [SimpleNamespace(question=f"q{n}", reference=f"r{n}") for n in range(6)]
        answers = [SimpleNamespace(response=f"a{n}", rewards=[0.0, n / 100]) for n in range(12)]
        log.samples(step, prompts, answers, 2)
        log.step(step, metrics(step / 10, eval__accuracy=(3 - step) / 10, some__thing=math.nan))
        if step == 2:
            kept = json.loads(json.dumps(log.state()))
    assert [record["some/thing"] for record in lines(tmp_path, "metrics.jsonl")] == [None] * 3
    samples = lines(tmp_path, "samples.jsonl")
    assert len(samples) == 3 * 4, "as many prompts as --log-samples says"
    assert samples[1] == {
        "step": 1, "prompt": "q1", "reference": "r1", "responses": ["a2", "a3"], "rewards": [0.02, 0.03]
    }  # fmt: skip
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["prompts"] == 7 and written["precision"]["dtype"] == "fp16" and written["output"]["name"] == "a-run"
    assert kept["steps_done"] == kept["sampled"] == 2 and kept["evaluations"] == [[1, 0.2], [2, 0.1]]
    assert kept["best_evaluation"] == [1, 0.2] and kept["wandb_id"] is None
    (tmp_path / "summary.json").write_text("{}")
    again = RunLog(config, tmp_path, resumed=kept | {"seconds": 100.0})
    assert not (tmp_path / "summary.json").exists(), "it is unfinished again"
    assert [record["step"] for record in again.history] == [
        record["step"] for record in lines(tmp_path, "metrics.jsonl")
    ]
    assert [record["step"] for record in again.history] == [1, 2]
    assert {record["step"] for record in lines(tmp_path, "samples.jsonl")} == {1, 2}
    assert again.evaluations == [(1, 0.2), (2, 0.1)]
    assert 100 <= time.time() - again.started < 110
    assert again.state()["steps_done"] == 2 and again.state()["sampled"] == 2


def test_the_environment_that_is_noted(tmp_path):
    noted = run_log.describe_environment()
    assert noted["versions"]["torch"] and noted["versions"]["deepspeed"]
    assert "no-such-package" not in noted["versions"]
    assert set(noted) == {"python", "versions", "device", "threads", "git_commit", "git_dirty", "command"}
    assert noted["git_commit"] is None or len(noted["git_commit"]) == 40
    assert noted["threads"] >= 1 and ("CPU" in noted["device"] or " x " in noted["device"])
    assert run_log._git("no-such-command") is None


def test_where_a_run_writes(config):
    assert default_folder(config).as_posix().startswith("runs/a-run-2")
    config.output.output_dir = "/somewhere"
    assert default_folder(config).as_posix() == "/somewhere"


def test_the_other_processes_keep_no_log(tmp_path):
    log = NoLog(tmp_path)
    assert log.say("anything") is None and log.step(1, {}) is None and log.folder == tmp_path
    assert list(tmp_path.iterdir()) == []


def test_start_up_is_told_by_phases(tmp_path, config, capsys):
    log = RunLog(config, tmp_path)
    log.started_up(10.0, {"imports": 13.0, "learner": 13.5})
    assert log.startup == {"imports": 3.0, "learner": 0.5}
    assert "ready after 3.5 s: imports 3.0 s, learner 0.5 s" in capsys.readouterr().out


def test_a_full_disk_is_told_and_the_run_goes_on(tmp_path, config, capsys, monkeypatch):
    log = RunLog(config, tmp_path)
    monkeypatch.setattr(log._metrics, "append", lambda record: "No space left on device")
    log.step(1, metrics(0.5))
    assert "metrics.jsonl could not be written (No space left on device)" in capsys.readouterr().out
    assert len(log.history) == 1


@pytest.mark.parametrize(("rewards", "verdict"), [([0.96, 0.97], True), ([0.96], None), ([0.9, 0.99], False)])
def test_the_sanity_verdict_is_of_the_sanity_task(tmp_path, config, rewards, verdict):
    log = RunLog(config, tmp_path)
    log.steps_per_epoch = 2
    log.history = [{"train/reward": reward} for reward in rewards[:-1]]
    assert log.sanity_verdict(rewards[-1]) is None
    config.task.task = "sanity"
    assert log.sanity_verdict(rewards[-1]) is verdict
    log.steps_per_epoch = None
    assert log.sanity_verdict(rewards[-1]) is None


def test_wandb_never_ends_a_run(capsys):
    assert run_log._attempt(lambda: 5, "start") == 5
    assert run_log._attempt(lambda: 1 / 0, "log") is False
    assert (
        "W&B could not log (ZeroDivisionError: division by zero); the run goes on without it" in capsys.readouterr().out
    )


# ------------------------------------------------------------------------------------------------ evaluation


def test_an_evaluation_is_of_all_prompts_and_of_answers_that_are_wholly_right():
    rewards = np.array([[1.0, 0.0, 1.0, 0.5], [1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.99, 0.0]])
    actor = SimpleNamespace(
        evaluate=lambda prompts, seed: (rewards[: len(prompts)] + 0 * seed, np.full((len(prompts), 4), 6.0))
    )
    config = parse(["--eval-n=4", "--eval-temperature=1", "--eval-k=2", "--seed=5"])
    made = evaluate(config, actor, ["a", "b", "c"], Processes())
    assert made["eval/accuracy"] == pytest.approx((2 + 4 + 0) / 12)
    assert made["eval/response_length"] == 6.0
    assert made["eval/pass_at_k"] == pytest.approx((5 / 6 + 1 + 0) / 3), (
        "of two of four, two right: all but 1 pair of 6"
    )
    assert made["eval/accuracy_stderr"] > 0 and made["time/evaluate"] >= 0
    once, twice = (
        evaluate(parse([]), SimpleNamespace(evaluate=lambda p, seed, n=n: (rewards[:, :n],) * 2), [""] * 3, Processes())
        for n in (1, 2)
    )
    assert "eval/pass_at_k" not in once and once["eval/accuracy"] == pytest.approx(2 / 3)
    assert "eval/pass_at_k" in twice
    assert evaluate(config, actor, [], Processes()) == {}
