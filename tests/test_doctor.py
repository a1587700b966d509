"""The doctor's statistics on numbers whose fault is known, its limits, its page and its exit codes."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from learners.diagnosis.diagnose import diagnose
from learners.diagnosis.dump import Dump
from learners.diagnosis.glossary import meaning
from learners.diagnosis.of_weights import lag_of
from learners.diagnosis.totals import add_up
from tests.conftest import ROOT
from tests.programs import run_programs

LENGTH, VOCABULARY, PER_PROMPT = 60, 1500, 4


def softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def toy(change=None, responses=32, noise=0.02, seed=0, grid=0.0, sampled_as=None) -> Dump:
    """Responses of a policy whose logits are drawn for every place of every prompt.

    Args:
        change: (logits of mu, logits of pi) -> the two, as log-probabilities are made of them.
        noise: standard deviation of the difference between the two sides' logits.
        grid: both sides' logits are rounded to multiples of it.
        sampled_as: (logits of mu) -> logits that tokens are drawn from, where they are not mu's.
    """
    rng = np.random.default_rng(seed)
    size = (responses, LENGTH, VOCABULARY)
    logits = (2.5 * rng.standard_normal(size) + 8).astype(np.float32)
    logits += (rng.random((responses, LENGTH, 1)) < 0.5) * (np.arange(VOCABULARY) == 7) * 10
    other = logits + noise * rng.standard_normal(size).astype(np.float32)
    first = np.arange(responses) // PER_PROMPT * PER_PROMPT
    logits, other = logits[first], other[first]
    if grid:
        logits, other = np.round(logits / grid) * grid, np.round(other / grid) * grid
    drawn_from = logits if sampled_as is None else sampled_as(logits)
    mu, pi = (logits, other) if change is None else change(logits, other)
    drawn_from = mu if sampled_as is None else drawn_from
    tokens = np.argmax(drawn_from + rng.gumbel(size=size), -1)
    pick = lambda values: np.take_along_axis(softmax(values), tokens[..., None], -1)[..., 0].ravel().astype(np.float32)
    prompts = [[1, 2, 3 + i // PER_PROMPT] for i in range(responses)]
    return Dump(np.arange(responses + 1) * LENGTH, tokens.ravel().astype(np.int32), pick(mu), pick(pi),
                prompt_ids=prompts, group=np.arange(responses) // PER_PROMPT)  # fmt: skip


def filtered(logits: np.ndarray, top_p: float) -> np.ndarray:
    order = np.argsort(-logits, -1)
    p = np.exp(np.take_along_axis(softmax(logits), order, -1))
    out = np.cumsum(p, -1) - p >= top_p
    made = np.take_along_axis(logits, order, -1)
    made[out] = -1e9
    back = np.empty_like(logits)
    np.put_along_axis(back, order, made, -1)
    return back


@pytest.fixture(scope="module")
def plain() -> Dump:
    return toy()


def with_values(dump: Dump, **columns) -> Dump:
    return replace(dump, **{name: np.asarray(values, np.float32) for name, values in columns.items()})


@pytest.mark.parametrize("noise", [1e-5, 0.01, 0.06])
def test_rounding_alone_is_healthy_and_its_level_named(noise):
    found = diagnose(toy(noise=noise, seed=1))
    assert found.is_healthy, found.sentence
    assert found.level == {1e-5: "FP32", 0.01: "FP16", 0.06: "BF16"}[noise]


@pytest.mark.parametrize("temperature", [0.9, 1.1])
@pytest.mark.parametrize("noise", [0.01, 0.08])
def test_a_temperature_on_one_side_is_found_with_its_size(temperature, noise):
    for change in (lambda a, b: (a / temperature, b), lambda a, b: (a, b / temperature)):
        found = diagnose(toy(change, noise=noise))
        assert found.name == "temperature", found.sentence
        ratio = 1 + found.numbers["odds_slope"]
        assert abs(abs(np.log(ratio)) - abs(np.log(temperature))) < 0.04


@pytest.mark.parametrize("noise", [0.01, 0.06])
def test_a_filter_is_found_on_either_side(noise):
    found = diagnose(toy(lambda a, b: (filtered(a, 0.95), b), noise=noise))
    assert found.name == "filtered", found.sentence
    assert "log_mu" in found.findings[0].title
    found = diagnose(toy(lambda a, b: (a, filtered(b, 0.9)), noise=noise, sampled_as=lambda a: filtered(a, 0.85)))
    assert found.name == "filtered", found.sentence
    assert "log_pi" in found.findings[0].title


def test_tokens_drawn_from_pi_tell_raw_log_probabilities_from_a_temperature():
    raw = toy(lambda a, b: (a, b / 0.8), sampled_as=lambda a: a / 0.8)
    assert diagnose(raw).name == "raw-log-probs"
    assert diagnose(raw).numbers["sampled_from"] == pytest.approx(1, abs=0.7)
    assert diagnose(replace(raw, claims={"temperature": 1.0})).name == "temperature", "raw is processed at 1"
    drawn_from_mu = toy(lambda a, b: (a, b / 0.8))
    assert diagnose(drawn_from_mu).name == "temperature"
    assert diagnose(drawn_from_mu).numbers["sampled_from"] == pytest.approx(-1, abs=0.7)


def test_a_claimed_filter_that_log_mu_does_not_know_of(plain):
    assert diagnose(replace(plain, claims={"top_p": 0.9})).name == "raw-log-probs"
    assert diagnose(replace(plain, claims={"top_p": 1.0})).is_healthy


def test_a_token_that_is_off_wherever_it_stands_and_one_that_is_off_once(plain):
    ids, counts = np.unique(plain.response_ids, return_counts=True)
    places = np.flatnonzero(plain.response_ids == ids[np.argmin(np.abs(counts - 9))])
    assert len(places) >= 4
    for spoilt, name in ((places, "special-token"), (places[:1], "few-responses")):
        log_pi = plain.log_pi.copy()
        log_pi[spoilt] -= 5
        told = with_values(plain, log_pi=log_pi)
        assert diagnose(replace(told, claims={"sample_dtype": "fp16", "train_dtype": "fp16"})).name == name


def test_a_page_that_is_cut_off_leaves_its_exit_code(tmp_path):
    row = {"response_ids": [1, 2], "log_mu": [-0.5, -0.25], "log_pi": [-0.5, -0.25]}
    (tmp_path / "dump.jsonl").write_text("".join(json.dumps(row) + "\n" for _ in range(64)))
    told = subprocess.run(
        ["bash", "-o", "pipefail", "-c", f"{sys.executable} {ROOT}/scripts/doctor.py {tmp_path}/dump.jsonl | true"],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert "Traceback" not in told.stderr and told.returncode == 0


def test_a_shift_by_one_token(plain):
    found = diagnose(with_values(plain, log_pi=np.roll(plain.log_pi, 1)))
    assert found.name == "shifted", found.sentence


@pytest.mark.parametrize(
    ("spoil", "name"),
    [
        (lambda v: np.round(v, 2), "rounded"),
        (lambda v: (v.view(np.uint32) & 0xFFFF0000).view(np.float32), "rounded"),
        (lambda v: v.astype(np.float16), "rounded"),
        (lambda v: np.maximum(v, -4), "clamped"),
        (lambda v: np.where(np.arange(len(v)) == 5, np.nan, v), "not-finite"),
        (lambda v: np.where(np.arange(len(v)) == 5, -np.inf, v), "not-finite"),
        (lambda v: -v, "not-log-probabilities"),
        (np.exp, "not-log-probabilities"),
        (np.zeros_like, "not-written"),
        (lambda v: np.where(np.arange(len(v)) == 5, v, -11.5), "not-written"),
        (lambda v: v - 0.004, "biased-normaliser"),
        (lambda v: np.where(np.arange(len(v)) % LENGTH == LENGTH - 1, -17, v), "special-token"),
    ],
)
@pytest.mark.parametrize("side", ["log_mu", "log_pi"])
def test_what_was_done_to_the_numbers_themselves(spoil, name, side):
    dump = toy(noise=1e-5 if name == "biased-normaliser" else 0.02, seed=2)
    found = diagnose(with_values(dump, **{side: spoil(getattr(dump, side))}))
    assert found.name == name, found.sentence
    assert len(found.findings[0].evidence) > 20


def test_a_filter_that_leaves_one_token_is_not_taken_for_zeros_that_were_never_overwritten():
    log_pi = np.log(np.random.default_rng(0).uniform(0.8, 1.0, 600)).astype(np.float32)
    dump = Dump(np.arange(21) * 30, np.arange(600, dtype=np.int32), np.zeros(600, np.float32), log_pi)
    assert "not-written" not in {finding.name for finding in diagnose(dump).findings}
    log_pi[::20] = -3
    assert diagnose(replace(dump, log_pi=log_pi)).name == "not-written"


def test_rows_of_unequal_lengths_weigh_by_their_share(plain):
    told = "d.jsonl: row 3 is dropped, as log_mu and log_pi have unequal lengths"
    sure = {}
    for dropped, rows in ((1, 32), (8, 32), (200, 32), (1, 512)):
        many = toy(responses=rows) if rows != 32 else plain
        made = diagnose(replace(many, unequal=dropped, problems=[told]))
        sure[dropped, rows] = made.findings[0].confidence if made.name == "unequal-lengths" else 0.0
        assert (told in made.notes) == (not sure[dropped, rows])
    assert sure[1, 32] == pytest.approx(0.5 + 5 / 33) and sure[8, 32] == sure[200, 32] == 0.98
    assert sure[1, 512] == 0


def test_what_is_claimed_and_cannot_be_is_noted(plain):
    halves = {"sample_dtype": "bf16", "train_dtype": "bf16"}
    said = lambda dump, **claims: " ".join(diagnose(replace(dump, claims=claims)).notes)
    fine = toy(noise=0.0, grid=2.0**-7, responses=64)
    assert "claimed to be in BF16, and its logits lie on FP16's grid" in said(fine, **halves)
    assert "claimed to be" not in said(fine, sample_dtype="fp16", train_dtype="fp16")
    assert "both log-probabilities are at temperature 1" in said(fine, temperature=0.6)
    assert "temperature 1" not in said(fine, temperature=1.0)
    exact = toy(noise=1e-5)
    assert "BF16 is claimed, and the gap is at the level of FP32" in said(exact, **halves)
    assert "int8 is claimed of the rollout" in said(exact, rollout_quantization="int8")
    assert "is claimed" not in said(plain, **halves, rollout_quantization="none")
    cut = toy(lambda a, b: (filtered(a, 0.95), b))
    assert "No filter is claimed (top_p 1)" in said(cut, top_p=1.0)
    assert "No filter" not in said(cut, top_p=0.95)


def test_every_statistic_is_explained(plain):
    many = replace(plain, log_pi_again=plain.log_pi, reward=np.arange(32) % 2, step=np.arange(32) // 8)
    made = diagnose(many).numbers
    assert len(made) > 100
    assert {name for name in made if not meaning(name)} == set()
    assert meaning("place_64").startswith("median gap in log odds from place 64")
    assert meaning("nothing") == ""


def test_dropout_shows_in_repeats_and_in_a_second_pass():
    rng = np.random.default_rng(0)
    noisy = lambda: toy(lambda a, b: (a, b + 0.8 * rng.standard_normal(b.shape)), responses=64)
    dump = noisy()
    assert diagnose(replace(dump, log_pi_again=noisy().log_pi)).name == "not-deterministic"
    assert diagnose(dump).numbers["repeat_pi"] > 4 * diagnose(dump).numbers["repeat_mu"]


def test_prompts_that_differ_fall_off(plain):
    rng = np.random.default_rng(0)
    size = 0.5 * np.exp(-np.arange(LENGTH) / 12)[None, :, None]
    found = diagnose(toy(lambda a, b: (a, b + size * rng.standard_normal(b.shape))))
    assert found.name == "prompts-differ", found.sentence


def test_logits_on_a_grid_betray_the_dtype():
    dump = toy(noise=0.0, grid=2.0**-4, responses=64)
    claimed = {"sample_dtype": "fp16", "train_dtype": "fp16"}
    assert diagnose(replace(dump, claims=claimed)).name == "precision"
    assert diagnose(replace(dump, claims={"sample_dtype": "bf16", "train_dtype": "bf16"})).is_healthy
    assert diagnose(replace(toy(noise=0.0, grid=2.0**-7, responses=64), claims=claimed)).is_healthy


@pytest.mark.parametrize(
    ("claims", "name"), [({"lora": True}, "adapters"), ({"rollout_quantization": "int8"}, "healthy"), ({}, "quantised")]
)
def test_what_is_claimed_decides_between_causes_that_look_alike(claims, name):
    dump = toy(noise=0.3, seed=3)
    found = diagnose(replace(dump, claims={"sample_dtype": "fp16", "train_dtype": "fp16"} | claims))
    assert found.name == name, found.sentence


@pytest.mark.parametrize(
    ("levels", "lag"),
    [([1, 10, 10, 11, 10, 10], 1), ([1, 8, 13, 18, 17, 18, 18, 17], 3), ([1, 1, 1, 1], None), ([1, 10], None)],
)
def test_the_lag_is_where_the_gap_stops_growing(levels, lag):
    found = lag_of([(i + 1, float(level)) for i, level in enumerate(levels)])
    assert (found and found[0]) == lag


def test_a_few_responses_in_the_wrong_place(plain):
    log_pi = plain.log_pi.copy()
    log_pi[: 2 * LENGTH] = plain.log_pi[-2 * LENGTH :]
    found = diagnose(with_values(plain, log_pi=log_pi))
    assert found.name == "few-responses", found.sentence
    assert {r["response"] for r in found.worst["responses"][:2]} == {0, 1}


def test_horizon_of_known_noise_and_its_interval():
    rng = np.random.default_rng(0)
    gap = 0.05 * rng.standard_normal((400, 100)).astype(np.float32)
    starts = np.arange(401) * 100
    log_mu = np.full(40000, -2, np.float32)
    found = diagnose(Dump(starts, np.arange(40000, dtype=np.int32), log_mu, log_mu + gap.ravel())).horizon
    assert found["half"].low < np.log(2) / 0.05**2 < found["half"].high
    assert found["half"].high - found["half"].low < 150
    sums = gap.sum(1, dtype=float)
    for name, weights in (("sequence", np.exp(sums)), ("geometric", np.exp(sums / 100))):
        assert found[f"{name}_left"] == pytest.approx(weights.mean() ** 2 / (weights**2).mean(), rel=1e-4)
    assert found["mean_length"] == 100


def test_sums_over_chunks_are_those_of_loops(plain, monkeypatch):
    from learners.diagnosis import totals

    whole = add_up(plain.starts, plain.log_mu, plain.log_pi)
    monkeypatch.setattr(totals, "CHUNK_TOKENS", 100)
    monkeypatch.setattr(totals.chunks, "__defaults__", (100,))
    parts = add_up(plain.starts, plain.log_mu, plain.log_pi)
    gap = (plain.log_pi - plain.log_mu).astype(float).reshape(-1, LENGTH)
    for made in (whole, parts):
        assert np.allclose(made.gap, gap.sum(1), atol=1e-5)
        assert np.allclose(made.gap_squared, (gap**2).sum(1), rtol=1e-4)
        assert made.k3 == pytest.approx(np.mean(np.expm1(gap) - gap), rel=1e-3)
        assert made.worst_tokens[0][0] == pytest.approx(np.abs(gap).max(), rel=1e-5)


# ------------------------------------------------------------------------------------------------ the program


def write(dump: Dump, path) -> None:
    rows = [
        {"prompt_ids": dump.prompt_ids[i], "response_ids": dump.response_ids[a:b].tolist(),
         "log_mu": dump.log_mu[a:b].tolist(), "log_pi": dump.log_pi[a:b].tolist()}
        for i, (a, b) in enumerate(zip(dump.starts, dump.starts[1:], strict=False))
    ]  # fmt: skip
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n")


def run(*words):
    command = [sys.executable, str(ROOT / "scripts" / "doctor.py"), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def test_the_program_says_it_in_one_sentence_and_by_its_exit_code(tmp_path, plain):
    write(plain, tmp_path / "healthy.jsonl")
    write(toy(lambda a, b: (a / 0.9, b)), tmp_path / "ill.jsonl")
    healthy, ill = run(tmp_path / "healthy.jsonl"), run(tmp_path / "ill.jsonl", "--output-dir", tmp_path / "out")
    assert (healthy.returncode, ill.returncode) == (0, 1), healthy.stderr + ill.stderr
    assert healthy.stdout.startswith("Healthy, at the level of FP16 rounding")
    assert ill.stdout.startswith("Another temperature on one side")
    made = json.loads((tmp_path / "out" / "diagnosis.json").read_text())
    assert made["diagnosis"] == "temperature"
    shown = " ".join(ill.stdout.split())
    busy = [row["correction"] for row in made["corrections"] if row["left"] < 0.98]
    assert any(len(name) > 80 for name in busy) and all(name in shown for name in busy), "no label is cut"
    assert "reject geo geo_low=0.99 geo_high=1.01 (skyrl)" in busy
    assert "-0.0%" not in ill.stdout
    assert "geometric ones" in healthy.stdout


def test_what_cannot_be_read_is_refused(tmp_path):
    contents = ("", "no json\n", '{"a": 1}\n')
    for number, content in enumerate(contents):
        (tmp_path / f"bad-{number}.jsonl").write_text(content)
    doctor, out = "scripts/doctor.py", tmp_path / "out"
    bad = ([doctor, tmp_path / f"bad-{number}.jsonl", "--output-dir", out] for number in range(len(contents)))
    *refused, nowhere = run_programs(*bad, [doctor, tmp_path / "nowhere"])
    for done in refused:
        assert (done.returncode, done.stdout) == (2, ""), done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
    assert not out.exists()
    assert nowhere.returncode == 2
