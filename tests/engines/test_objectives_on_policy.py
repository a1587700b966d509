"""Every objective at an on-policy step with both real engines in FP32, where there is nothing to correct."""

from dataclasses import replace

import pytest
import torch

from learners.objectives import OBJECTIVES, REJECTIONS, defaults
from tests.engines.conftest import built_learner

pytestmark = pytest.mark.engines


@pytest.fixture(scope="module")
def learner(tmp_path_factory):
    arguments = ["--dtype=fp32", "--lm-head-fp32=True", "--max-eval=8", "--beta=0.01", "--lr-warmup-ratio=0"]
    batch = ["--rollout-batch-size=16", "--train-batch-size=128"]
    with built_learner(tmp_path_factory.mktemp("run") / "out", *arguments, *batch) as learner:
        yield learner


@pytest.fixture(scope="module")
def first_updates(learner):
    """Metrics of each objective's only update, each from the same weights and on the same responses."""
    from learners.rollouts.step import Step

    sampled = learner.collect(1).batch
    for group in learner.optimizer.param_groups:  # nothing is changed by the update
        group["lr"] = 0.0
    for rate in range(len(learner.scheduler.base_lrs)):
        learner.scheduler.base_lrs[rate] = 0.0
    metrics = {}
    for name, made in OBJECTIVES.items():
        chosen = defaults(name, "oat")
        learner.updater.objective, learner.updater.thresholds = made, {key: chosen[key] for key in made.thresholds}
        metrics[name] = learner.learn(Step(1, replace(sampled), times={}))
    learner.updater.objective, learner.updater.thresholds = OBJECTIVES["reinforce"], {}
    for name, made in REJECTIONS.items():
        for threshold, value in made.thresholds.items():
            setattr(learner.config.objective, threshold, value)
        learner.updater.rejections = [made]
        metrics[f"reject {name}"] = learner.learn(Step(1, replace(sampled), times={}))
    learner.updater.rejections = [REJECTIONS["geo"]]
    learner.config.objective.geo_low = learner.config.objective.geo_high = 2.0
    metrics["reject everything"] = learner.learn(Step(1, replace(sampled), times={}))
    learner.updater.rejections = []
    return metrics


@pytest.mark.parametrize("name", OBJECTIVES)
def test_ratio_is_1_and_nothing_is_clipped(first_updates, name):
    metrics = first_updates[name]
    assert metrics.get("objective/ratio", 1.0) == pytest.approx(1, abs=1e-5)
    assert metrics.get("objective/token_weight", 1.0) == pytest.approx(1, abs=1e-4)
    assert metrics.get("objective/sequence_weight", 1.0) == pytest.approx(1, abs=1e-3)
    assert metrics.get("objective/phi", 1.0) == pytest.approx(1, abs=2e-3)
    assert metrics.get("objective/gate", 1.0) == pytest.approx(1, abs=1e-8)
    for key, value in metrics.items():
        if key.endswith("_fraction"):
            assert value == 0, key
    assert metrics["objective/reference_kl"] == pytest.approx(0, abs=1e-9)
    assert metrics["mismatch/abs_prob_diff_max"] < 1e-4
    assert metrics["mismatch/ess_seq"] == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("name", REJECTIONS)
def test_nothing_is_rejected(first_updates, name):
    assert first_updates[f"reject {name}"][f"objective/rejected_{name.replace('-', '_')}"] == 0


def test_a_step_of_which_everything_is_rejected_goes_by(first_updates):
    metrics = first_updates["reject everything"]
    assert metrics["objective/rejected_geo"] == 1
    assert metrics["precision/grad_norm"] < 1e-5  # what is left is that of --beta, at the initial model
    assert metrics["objective/reference_kl"] == pytest.approx(0, abs=1e-9)


def test_every_objective_has_the_same_gradient_there(first_updates):
    norms = {name: metrics["precision/grad_norm"] for name, metrics in first_updates.items()}
    norms.pop("reject everything", None)
    assert min(norms.values()) > 0.05
    assert norms == pytest.approx(dict.fromkeys(norms, norms["reinforce"]), rel=1e-3)


def test_the_head_in_fp32_is_what_the_learner_uses(learner):
    hidden = torch.randn(3, learner.causal_lm.config.hidden_size, dtype=torch.float64)
    head = learner.causal_lm.get_output_embeddings()
    assert head(hidden.half()).dtype == torch.float32


def test_log_probabilities_are_fp32_all_the_way(learner, first_updates):
    """What the sampler reports, rounded to BF16 on its way to the metric, shows at once."""
    step = learner.collect(1)
    step.batch.mu_logp = step.batch.mu_logp.bfloat16().float()
    rounded, clean = learner.learn(step), first_updates["reinforce"]
    assert clean["mismatch/abs_log_ratio_mean"] < 1e-5
    assert rounded["mismatch/abs_log_ratio_mean"] > 1e-4
    assert rounded["mismatch/kl_k3"] > 100 * clean["mismatch/kl_k3"]
