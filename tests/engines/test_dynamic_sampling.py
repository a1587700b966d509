"""Dynamic sampling with both real engines, on the embedded model in FP16."""

import pytest

from tests.engines.conftest import built_learner

pytestmark = pytest.mark.engines

PROMPTS, GROUP, START = 64, 8, 128  # START: prompts that steps before have drawn


@pytest.fixture(scope="module")
def learner(tmp_path_factory):
    options = ["--dtype=fp16", "--dynamic-sampling=True", "--overlong-buffer=16", "--max-eval=8"]
    with built_learner(tmp_path_factory.mktemp("run") / "out", *options) as learner:
        yield learner


def collect(learner, max_rounds: int):
    learner.rollouts.prompts_drawn, learner.config.sampling.max_sampling_rounds = START, max_rounds
    return learner.collect(1)


def responses(step) -> list[list[int]]:
    return [ids[:length].tolist() for ids, length in zip(step.batch.input_ids, step.batch.lengths, strict=True)]


def test_the_batch_is_full_of_prompts_that_teach(learner):
    step = collect(learner, max_rounds=20)
    assert step.times["sampling/rounds"] > 1, "every prompt was mixed at once, so this test shows nothing"
    assert step.times["sampling/dropped_prompts"] > 0
    assert step.times["sampling/filled_prompts"] == 0
    assert learner.rollouts.prompts_drawn == START + step.times["sampling/prompts"]
    assert len(step.batch) == PROMPTS * GROUP
    rewards = step.batch.rewards.view(PROMPTS, GROUP)
    assert (rewards != rewards[:, :1]).any(1).all()

    again = collect(learner, max_rounds=20)
    assert responses(again) == responses(step), "a function of (seed, step, prompts drawn)"

    short = collect(learner, max_rounds=1)
    mixed = PROMPTS - short.times["sampling/filled_prompts"]
    assert 0 < mixed < PROMPTS
    assert len(short.batch) == PROMPTS * GROUP
    assert responses(short)[: mixed * GROUP] == responses(step)[: mixed * GROUP]


def test_it_learns_in_whole_updates_and_says_what_was_dropped(learner):
    step = collect(learner, max_rounds=1)
    metrics = learner.learn(step)
    learner.sync_params_to_actors()
    assert step.updates_done == learner.config.updates_per_step
    assert metrics["train/groups_with_equal_rewards"] == metrics["sampling/filled_prompts"] / PROMPTS
    lengths = step.batch.response_mask.sum(1)
    punished = ((24 - 16 - lengths) / 16).clamp(-1, 0)
    assert metrics["train/overlong_punishment"] == pytest.approx(punished.mean().item())
    assert punished.min() < 0, "no response was long, so this test shows nothing"
    expected = (step.batch.rewards + punished).view(PROMPTS, GROUP)
    assert step.batch.advantages.view(PROMPTS, GROUP) == pytest.approx(
        (expected - expected.mean(1, keepdim=True)).numpy(), abs=1e-6
    )


def test_the_place_in_the_prompts_is_saved(learner):
    collect(learner, max_rounds=3)
    saved = learner.counters()
    learner.rollouts.prompts_drawn = 0
    learner.set_counters(saved)
    assert learner.rollouts.prompts_drawn == saved["prompts_drawn"] > START
