"""What --log-rollouts keeps is what was trained on."""

import pytest
import torch

from scripts.parts.dump_reading import read
from tests.engines.conftest import built_learner


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
