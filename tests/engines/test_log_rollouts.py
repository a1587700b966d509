"""What --log-rollouts keeps is what was trained on, each step once, whatever stops the run, in one process or two."""

import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from pyarrow import parquet

from scripts.parts.dump_reading import read
from tests.conftest import ROOT
from tests.engines.conftest import built_learner
from tests.engines.test_going_on import run_until
from tests.engines.test_processes import ONE_THREAD, two_processes

pytestmark = pytest.mark.engines


@pytest.mark.parametrize("objective", ["pg-seq-is", "grpo"])  # without pi_old, and with it
def test_what_is_kept_is_what_was_trained_on(tmp_path, objective):
    options = ["--log-rollouts=16", f"--objective={objective}", "--rollout-batch-size=8", "--train-batch-size=32"]
    with built_learner(tmp_path / "run", *options, "--dtype=bf16", "--train-on-all=True") as learner:
        seen = []
        log_probs = learner.updater.log_probs
        learner.updater.log_probs = lambda batch: seen.append((batch, log_probs(batch))) or seen[-1][1]
        step = learner.collect(1)
        learner.learn(step)
        learner.learn(type(step)(1, step.batch, {}))  # the same step again, as after a resume
    dump = read([tmp_path / "run"], {})
    batch, mask = step.batch, step.batch.response_mask[:16]
    assert len(dump) == 16 and dump.step.tolist() == [1] * 16
    assert dump.log_mu.tolist() == batch.mu_logp[:16][mask].tolist()
    assert dump.response_ids.tolist() == batch.input_ids[:16, 1:][mask].tolist()
    assert dump.reward.tolist() == batch.rewards[:16].tolist() and dump.group.tolist() == [0] * 8 + [1] * 8
    prompts = batch.lengths[:16] - mask.sum(1)
    assert [len(ids) for ids in dump.prompt_ids] == prompts.tolist()
    assert dump.claims["train_dtype"] == dump.claims["sample_dtype"] == "bf16" and dump.claims["temperature"] == 1
    # The passes of the first update, at the same weights: found by their log mu, equal up to the shape of the batch.
    trained = {tuple(b.mu_logp[i][b.response_mask[i]].tolist()): logp[i][b.response_mask[i]]
               for b, logp in reversed(seen[: len(seen) // 2]) for i in range(len(b))}  # fmt: skip
    for i in range(16):
        own = slice(*dump.starts[i : i + 2])
        again = trained[tuple(dump.log_mu[own].tolist())].detach()
        torch.testing.assert_close(torch.from_numpy(dump.log_pi[own].copy()), again, atol=0.05, rtol=0)


def test_a_run_that_was_stopped_keeps_each_step_once_as_the_run_that_nothing_disturbed(tmp_path):
    options = ["--log-rollouts=16", "--max-steps=4", "--eval-steps=0", "--save-model=False"]
    options += ["--rollout-batch-size=32", "--train-batch-size=64"]

    def finish(folder) -> None:
        command = [sys.executable, str(ROOT / "train.py"), f"--output-dir={folder}", "--wandb=disabled", *options]
        done = subprocess.run([*command, "--save-every=2"], capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr[-2000:]

    run, rollouts = tmp_path / "run", tmp_path / "run" / "rollouts"
    code, output = run_until(run, 1, signal.SIGUSR1, *options)
    assert code == 0 and "SIGUSR1: stopped" in output, output[-2000:]
    later = rollouts / "step-000099.parquet"  # of a process that was killed after what it had saved
    later.write_bytes((rollouts / "step-000001.parquet").read_bytes())
    finish(run)
    finish(tmp_path / "straight")
    names = [f"step-{step:06d}.parquet" for step in range(1, 5)]
    for folder in (rollouts, tmp_path / "straight" / "rollouts"):
        assert sorted(path.name for path in folder.iterdir() if path.name[0] != "_") == ["claims.json", *names]
    for name in names:
        one, other = (parquet.read_table(folder / "rollouts" / name) for folder in (run, tmp_path / "straight"))
        assert one.equals(other), name
    dump = read([run], {})
    assert dump.step.tolist() == [step for step in range(1, 5) for _ in range(16)] and dump.problems == []
    assert len(set(dump.group.tolist())) == 8, "two prompts a step, and those of two steps are not one"


@pytest.mark.parametrize("options", [["--zero-stage=3"], ["--objective=grpo", "--tensor-parallel=2"]])
def test_two_processes_keep_them_once(tmp_path, options):
    """Without pi_old, in a pass of which each takes its part, and with it."""
    command = two_processes(
        str(ROOT / "train.py"), f"--output-dir={tmp_path / 'run'}", "--wandb=disabled", "--max-steps=2",
        "--eval-steps=0", "--log-rollouts=9", "--micro-batch-size=4", "--rollout-batch-size=8", "--train-batch-size=64",
        *options,
    )  # fmt: skip
    done = subprocess.run(command, env=ONE_THREAD, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    dump = read([tmp_path / "run"], {})
    assert dump.step.tolist() == [1] * 10 + [2] * 10, "so many as divide among the processes"
    assert dump.problems == [] and dump.claims["train_dtype"] == "fp16"
    assert dump.group.tolist() == [0] * 8 + [1] * 2 + [2] * 8 + [3] * 2
    prompts = {}
    for group, ids in zip(dump.group.tolist(), dump.prompt_ids, strict=True):
        assert prompts.setdefault(group, ids) == ids
    assert len(set(map(tuple, prompts.values()))) == 4
    gap = np.abs(np.exp(dump.log_pi) - np.exp(dump.log_mu))
    assert 0 < gap.mean() < 6e-4 and gap.max() < 0.02, "log pi is not that of the weights that sampled"


def test_a_run_that_goes_on_in_another_dtype_claims_it_of_its_own_steps(tmp_path):
    with built_learner(tmp_path / "run", "--log-rollouts=8", "--dtype=bf16", "--rollout-batch-size=16") as learner:
        from learners.record.rollout_log import drop_later, write_rollouts

        batch = learner.collect(1).batch.select(torch.arange(8))
        for step, dtype in ((1, "bf16"), (2, "fp16"), (3, "bf16")):
            learner.config.precision.train_dtype = dtype
            write_rollouts(learner.config, tmp_path / "run", step, batch, batch.mu_logp)
    files = sorted((tmp_path / "run" / "rollouts").glob("step-*.parquet"))
    assert [read([file], {}).claims["train_dtype"] for file in files] == ["bf16", "fp16", "bf16"]
    drop_later(tmp_path / "run", 1)
    assert sorted(path.name for path in files[0].parent.iterdir()) == ["claims.json", "step-000001.parquet"]
