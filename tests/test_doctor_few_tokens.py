"""The doctor's rules where a handful of tokens tell, and what tells causes apart that look alike in them."""

from dataclasses import replace

import numpy as np
import pytest

from learners.diagnosis.diagnose import diagnose
from learners.diagnosis.dump import Dump
from tests.test_doctor import LENGTH, toy, with_values

FP16 = {"sample_dtype": "fp16", "train_dtype": "fp16"}


def of_odds(mu, pi, certain=100) -> Dump:
    """A dump of tokens with these log odds in responses of 10, after ``certain`` tokens that both sides are sure of."""
    log_p = lambda odds: -np.logaddexp(0, -np.concatenate([np.full(certain, 25.0), odds])).astype(np.float32)
    count = certain + len(mu)
    starts = np.array([*range(0, count, 10), count])
    return Dump(starts, np.arange(count, dtype=np.int32), log_p(mu), log_p(pi), claims=FP16)


def of_pairs(mu, pi, certain=10) -> Dump:
    """Two responses to each prompt, which part at their first token; the log-probabilities there, (prompts, 2) each."""
    many = 2 * len(mu)
    flat = lambda values: np.insert(np.full((many, certain), -1e-7), 0, np.ravel(values), axis=1)
    ids = np.insert(np.full((many, certain), 5), 0, 10 + np.arange(many) % 2, axis=1)
    flat_ids, log_mu, log_pi = ids.ravel().astype(np.int32), *(flat(v).ravel().astype(np.float32) for v in (mu, pi))
    prompts = [[i // 2] for i in range(many)]
    return Dump(np.arange(many + 1) * (certain + 1), flat_ids, log_mu, log_pi, prompt_ids=prompts, claims=FP16)


@pytest.mark.parametrize(
    "ratio", [0.6, 1.6]
)  # so few tokens, nearly all likely, look as if drawn from pi in the second
def test_a_temperature_shows_in_thirteen_uncertain_tokens(ratio):
    odds = np.array([-0.3 if ratio < 1 else -0.2, 0.8, 1.0, 1.2, 1.4, 1.6, 1.8, 2.0, 2.3, 2.6, 3.0, 3.6, 4.2])
    apart = np.full((2, 130), 25.0)  # one in each response
    apart[:, ::10] = odds, ratio * odds + 0.01 * np.sin(9 * odds)
    found = diagnose(of_odds(*apart, certain=0))
    assert found.name == "temperature", found.sentence
    assert 1 + found.numbers["odds_slope"] == pytest.approx(ratio, abs=0.05)
    assert diagnose(of_odds(odds, ratio * odds + 0.9 * np.sin(9 * odds))).name != "temperature"


def test_a_temperature_shows_in_two_pairs_of_unlikely_tokens():
    mu = np.array([[-1.2, -3.0], [-1.0, -2.2]])
    apart = lambda pi: pi - np.array([[0.3], [0.2]])
    assert diagnose(of_pairs(mu, apart(0.8 * mu))).name == "temperature"
    assert diagnose(of_pairs(mu, apart(0.8 * mu + [[0.0, 0.0], [0.0, 0.1]]))).name != "temperature"


def test_what_two_tokens_in_one_context_deny_is_no_temperature():
    odds = np.linspace(0.5, 6, 12)
    lone = of_odds(odds, 0.5 * odds + 0.05 * np.sin(9 * odds))
    assert diagnose(lone).name == "temperature"
    pairs = of_pairs(
        np.array([[-1.0, -2.0], [-1.2, -3.0], [-0.9, -3.5]]), np.array([[-2.0, -1.9], [-2.5, -2.0], [-3, -1]])
    )
    both = Dump(np.concatenate([pairs.starts, pairs.starts[-1] + lone.starts[1:]]),
                *(np.concatenate([getattr(part, name) for part in (pairs, lone)])
                  for name in ("response_ids", "log_mu", "log_pi")),
                prompt_ids=[*pairs.prompt_ids, *([100 + i] for i in range(len(lone)))], claims=FP16)  # fmt: skip
    assert diagnose(both).name != "temperature"


def test_a_filter_shows_in_three_tokens_that_it_left_alone():
    mu = np.full(120, 25.0)
    mu[::10] = np.linspace(-2, 2, 12)
    pi = np.where(mu < 25, mu - 0.02, mu)
    pi[[5, 35, 65, 95]] = 2.5, 3.5, 2.0, 3.0
    with_noise = np.where(mu == -2, -1.95, pi)
    for values in (pi, with_noise):
        found = diagnose(of_odds(mu, values, certain=0))
        assert found.name == "filtered", found.sentence
    up_and_down = np.where(mu < 25, mu + 0.3, pi)
    assert diagnose(of_odds(mu, up_and_down, certain=0)).name != "filtered"


def test_rounded_weights_are_told_from_training_by_its_direction():
    rng = np.random.default_rng(0)
    odds = rng.uniform(0.2, 5, 120) * np.where(np.arange(120) % 2, 1, -1)
    size = 0.6 * np.exp(0.9 * rng.standard_normal(120)) * rng.standard_normal(120)
    halves = {"sample_dtype": "bf16", "train_dtype": "bf16"}
    mostly_up = np.abs(size) * np.sign(odds) * np.where(np.arange(120) // 2 % 4, 1, -1)
    made = (replace(of_odds(odds, odds + d), claims=halves) for d in (size, mostly_up))
    rounded, trained = map(diagnose, made)
    assert 4.2 < rounded.numbers["d_90"] / rounded.numbers["d_50"] < 9
    assert (rounded.name, trained.name) == ("quantised", "stale"), (rounded.sentence, trained.sentence)


def test_first_tokens_that_training_moves_are_not_taken_for_a_special_one():
    plain = toy()
    first = np.arange(0, len(plain.log_pi), LENGTH)
    log_pi = plain.log_pi.copy()
    log_pi[first] = 1.8 * plain.log_mu[first]
    trained = diagnose(with_values(plain, log_pi=log_pi))
    assert "special-token" not in {finding.name for finding in trained.findings}
    log_pi[first] = np.roll(plain.log_mu[first], 5) - 2
    assert diagnose(with_values(plain, log_pi=log_pi)).name == "special-token"


def test_positions_that_begin_again_show_in_a_few_tokens():
    mu, pi = np.tile([0.5, 25.0, 1.0, 2.0, 1.5], 10), np.tile([0.501, -6.0, -7.0, -5.0, -6.0], 10)
    mu, pi = mu - 0.01 * np.arange(50), pi - 0.01 * np.arange(50)
    found = diagnose(replace(of_odds(mu, pi, certain=0), starts=np.arange(11) * 5))
    assert "place_1" not in found.numbers
    assert found.name == "positions" and "begins" in found.sentence, found.sentence


def test_three_pairs_on_fp16s_grid_are_no_bf16():
    found = diagnose(replace(toy(noise=0.1, grid=2.0**-7, responses=4), claims=FP16))
    assert 3 <= found.numbers["pairs"] < 6 and found.level == "BF16"
    assert found.name == "quantised", found.sentence


def test_eight_pairs_show_a_gap_of_several_units_of_the_grid():
    dump = replace(toy(noise=0.02, grid=2.0**-9, responses=12), claims=FP16)
    found = diagnose(dump)
    assert 8 <= found.numbers["pairs"] < 16 and found.numbers["d_50"] < 0.03
    assert found.name == "quantised", found.sentence
    assert diagnose(replace(toy(noise=0.003, grid=2.0**-9, responses=12), claims=FP16)).is_healthy
