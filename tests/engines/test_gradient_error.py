"""gradient_error.py with both real engines: without mismatch nothing but rounding, and the learner's own gradient."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.conftest import ROOT
from tests.engines.conftest import built_learner
from tests.engines.gradients import choose, gradient_of

pytestmark = pytest.mark.engines

OPTIONS = ["--dtype", "fp32", "--prompts", "8", "--n", "2", "--advantages", "signs", "--sketch", str(2**21)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("gradients") / "out"
    command = [sys.executable, ROOT / "scripts/gradient_error.py", *OPTIONS, "--output-dir", place]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300,
                          env=os.environ | {"OMP_NUM_THREADS": "1"})  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return place


def test_without_mismatch_every_estimator_errs_by_rounding_alone(folder):
    rows = json.loads((folder / "gradient_error.json").read_text())["rows"]
    assert len({row["estimator"] for row in rows}) > 50
    for row in rows:
        assert row["relative_error"] < 1e-4 and row["kept"] == 1.0, row
        assert 0 == row["forward"] == row["backward"]
        assert row["sampling_noise"] > 0.1


def test_the_responses_gradients_add_up_to_the_learners(folder, tmp_path):
    from learners.rollouts.batch import RolloutBatch
    from scripts.parts.corrections import catalogue
    from scripts.parts.gradient_table import slopes_by_length
    from scripts.parts.gradients import GradientStore, Sketch
    from scripts.parts.responses import Chunks

    responses = next(Chunks(folder / "responses", "fp32", 1).scored())
    advantages = np.random.default_rng(0).integers(0, 2, len(responses)) * 2.0 - 1  # as signs are drawn
    longest = max(len(r.response_ids) for r in responses)
    store = GradientStore(folder / f"gradients-{2**21}", "fp32")
    wanted = {"pg-seq-is", "pg-token-is", "grpo-bypass"}
    corrections = {c.name: c for c in catalogue() if c.name in wanted and "oat" in c.recipes}
    slopes = slopes_by_length(list(corrections.values()), responses, advantages, [longest])
    with built_learner(tmp_path / "run", "--dtype=fp32", "--train-batch-size=16", "--rollout-batch-size=8",
                       "--num-samples=2", "--max-eval=8", "--learning-rate=1e-30") as learner:  # fmt: skip
        signs = Sketch(list(learner.causal_lm.parameters()), 2**21, 0).signs.numpy()
        batch = RolloutBatch.from_transitions(responses)
        batch.advantages = torch.from_numpy(advantages).float()
        for name, correction in corrections.items():
            choose(learner, name)
            whole, _, _ = gradient_of(learner, batch)
            total = 0.0
            places = slopes.places[correction.label, longest]
            for r, advantage, (key, multiple) in zip(responses, advantages, places, strict=True):
                total = total + advantage * multiple * store.read(r, len(r.response_ids))[key].astype(float)
            loss_gradient = -total * signs / (len(responses) * learner.config.sampling.generate_max_length)
            assert np.linalg.norm(loss_gradient - whole.numpy()) < 1e-5 * np.linalg.norm(loss_gradient), name
