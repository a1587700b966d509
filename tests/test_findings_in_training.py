"""What a run's own steps are looked at for: pooled to windows, each cause named once, and only when two show it."""

import functools

import numpy as np
import pytest
import torch

from learners.diagnosis.watch import MOST, Watch
from learners.rollouts.batch import RolloutBatch
from tests.test_doctor import LENGTH, PER_PROMPT, filtered, toy

ROWS = 24  # so that three steps are a window


def batch_of(dump) -> tuple[RolloutBatch, torch.Tensor]:
    """A dump's responses as a step of a run, and log pi of them."""
    rows, width = len(dump), 3 + LENGTH
    ids = torch.cat([torch.tensor(dump.prompt_ids), torch.from_numpy(dump.response_ids).view(rows, LENGTH)], 1).int()
    mask = (torch.arange(1, width) >= 3).expand(rows, -1)
    at = lambda flat: torch.zeros(rows, width - 1).masked_scatter_(mask, torch.from_numpy(flat))
    lengths = torch.full((rows,), width)
    batch = RolloutBatch(ids, lengths, mask, at(dump.log_mu), torch.zeros(rows), torch.ones(rows, dtype=torch.bool))
    return batch, at(dump.log_pi)


@functools.cache
def step_of(change, seed: int, noise: float = 0.02):
    return batch_of(toy(change, responses=ROWS, seed=seed, noise=noise))


def watched(*changes, **claims) -> list[list[str]]:
    """What is said at the end of each step, whose numbers are changed so."""
    watch, said = Watch({"temperature": 1.0} | claims), []
    for number, change in enumerate(changes, 1):
        watch.keep(number, *step_of(change, number % 3))
        said.append(watch.look())
    return said


def hotter(mu, pi):
    return mu / 0.9, pi


def cut(mu, pi):
    return filtered(mu, 0.8), pi


def test_a_cause_is_named_once_after_two_windows():
    said = watched(*[hotter] * 12)
    assert [number for number, sentences in enumerate(said, 1) if sentences] == [6]
    [sentence] = said[5]
    assert sentence.startswith("another temperature on one side: ") and "(1 is claimed)" in sentence


def test_what_one_window_alone_shows_is_not_named_and_another_cause_is():
    assert not any(watched(*[hotter] * 3, *[None] * 3, *[hotter] * 3, *[None] * 3))
    said = watched(*[hotter] * 6, *[cut] * 6)
    assert [len(sentences) for sentences in said] == [0] * 5 + [1] + [0] * 5 + [1]
    assert "filtered" in said[11][0]


def test_a_window_holds_whole_responses_and_no_more_than_is_cheap():
    watch = Watch({})
    batch, log_pi = batch_of(toy(responses=4))
    for _ in range(MOST // (4 * LENGTH) + 3):
        watch.keep(1, batch, log_pi)
    assert MOST <= watch.tokens < MOST + LENGTH and watch.tokens % LENGTH == 0
    assert watch.look() == [] and watch.tokens == 0


def test_the_lag_is_told_from_the_steps_of_windows_before():
    def moved(mu, pi):
        noise = np.random.default_rng(0).standard_normal(pi[::PER_PROMPT].shape)
        return mu, pi + 0.1 * noise.repeat(PER_PROMPT, 0)

    said = watched(None, *[moved] * 8, sample_dtype="bf16", train_dtype="bf16")
    [sentence] = said[5]
    assert "1 step behind" in sentence and sum(map(len, said)) == 1
    assert not any(watched(*[moved] * 6, sample_dtype="bf16", train_dtype="bf16"))
    # The rounding of weights that two dtypes hold grows as well, and is no fault.
    assert not any(watched(None, *[moved] * 8, sample_dtype="bf16", train_dtype="fp32"))


def test_a_rule_that_fails_ends_no_run(monkeypatch):
    monkeypatch.setattr("learners.diagnosis.watch.examine", lambda *_: 1 / 0)
    said = watched(*[None] * 12)
    assert [number for number, sentences in enumerate(said, 1) if sentences] == [6]
    assert "ZeroDivisionError" in said[5][0]


@pytest.mark.parametrize("noise", [1e-5, 0.02])
def test_rounding_is_not_warned_of(noise):
    watch = Watch({})
    for number in range(1, 13):
        watch.keep(number, *step_of(None, number % 6, noise))
        assert watch.look() == []
