"""The laboratory of corrections: enumeration against sampling and autograd, what is left of responses, the program."""

import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
import tyro

from learners.objectives import RECIPES, REJECTIONS
from scripts import correction_table
from scripts.correction_table import Arguments, half_gone, half_text, merged
from scripts.parts.corrections import Bench, catalogue
from scripts.parts.program import run_program
from scripts.parts.responses import Chunks, Response
from scripts.parts.toy_policy import PROMPTS, ToyPolicy, calibrated

CORRECTIONS = {correction.label: correction for correction in catalogue()}
PLAIN = ToyPolicy(noise=0.0)
NOISY = ToyPolicy(noise=0.4)  # twenty times BF16's divergence, so that every other correction acts


def first(name: str):
    """As registered: the first recipe's."""
    return next(c for c in CORRECTIONS.values() if c.name == name)


def test_the_exact_gradient_is_that_of_the_expected_return():
    toy, length = PLAIN, 5
    logits = torch.tensor(toy.log_pi, requires_grad=True)
    sequences = toy.enumerate(length)
    logp = logits.log_softmax(1).flatten()[torch.from_numpy(sequences.cells)].sum(1)
    returns = torch.from_numpy(toy.rewards.ravel()[sequences.cells].sum(1) / length**0.5)
    value = (logp.exp() * returns).sum() / PROMPTS
    made_value, made = toy.value_and_gradient(length)
    assert made_value == pytest.approx(value.item(), abs=1e-12)
    np.testing.assert_allclose(made, torch.autograd.grad(value, logits)[0].flatten().numpy(), atol=1e-12)
    assert sequences.probability.sum() == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("label", CORRECTIONS)
def test_without_noise_nothing_is_biased_or_lost(label):
    toy = PLAIN
    point = Bench(toy, toy.enumerate(4), toy.enumerate(4)).point(CORRECTIONS[label])
    assert point["bias"] < 1e-10
    assert (point["kept"], point["left"]) == (pytest.approx(1, abs=1e-12),) * 2
    assert point["variance"] == pytest.approx(1, rel=1e-9)
    assert point["limited"] == point["left_error"] == point["bias_error"] == 0


@pytest.mark.parametrize("length", [1, 3, 7])
def test_sequence_weights_are_unbiased_and_no_weights_are_not(length):
    bench = Bench(NOISY, NOISY.enumerate(length), PLAIN.enumerate(length))
    assert bench.point(first("pg-seq-is"))["bias"] < 1e-10
    assert bench.point(first("reinforce"))["bias"] > 1e-2
    assert (bench.point(first("pg-token-is"))["bias"] < 1e-10) == (length == 1)  # a token is a sequence of one


@pytest.mark.parametrize("label", [label for label, c in CORRECTIONS.items() if not c.needs_all])
def test_a_sample_agrees_with_the_enumeration(label):
    toy, unseen = ToyPolicy(noise=0.2), 3 / 2048  # what is as rare as that may not be in the sample at all
    exact = Bench(toy, toy.enumerate(5), PLAIN.enumerate(5)).point(CORRECTIONS[label])
    sample, plain = (made.sample(2048, 8, seed=4).prefixes(5) for made in (toy, PLAIN))
    sampled = Bench(toy, sample, plain).point(CORRECTIONS[label])
    for key in ("left", "kept", "bias", "angle", "variance"):
        if exact[key] is None:  # nothing was kept
            assert sampled[key] is None
            continue
        assert abs(sampled[key] - exact[key]) <= 4 * sampled[f"{key}_error"] + unseen, key
    assert not any(exact[key] for key in exact if key.endswith("_error"))


@pytest.mark.parametrize("stays", [True, False])
def test_what_leaves_the_denominators_is_a_mean_over_what_is_kept(monkeypatch, stays):
    monkeypatch.setitem(REJECTIONS, "geo", replace(REJECTIONS["geo"], stays_counted=stays))
    toy, geo = ToyPolicy(noise=0.02), first("geo")
    sequences = toy.enumerate(3)
    bench, batch = Bench(toy, sequences, PLAIN.enumerate(3)), toy.batch(sequences)
    mean_weight = (batch.logp - batch.mu_logp).mean(1).exp().numpy()
    thresholds = dict(geo.thresholds)
    kept = sequences.probability * ((mean_weight >= thresholds["geo_low"]) & (mean_weight <= thresholds["geo_high"]))
    gradients = toy.gradients(sequences.cells, batch.advantages[:, None].expand(-1, 3).numpy())
    expected, truth = kept @ gradients / (1 if stays else kept.sum()), toy.value_and_gradient(3)[1]
    point = bench.point(geo)
    assert 0.05 < kept.sum() < 0.5
    assert point["left"] == pytest.approx(kept.sum(), rel=1e-9)
    assert point["bias"] == pytest.approx(np.linalg.norm(expected - truth) / np.linalg.norm(truth), rel=1e-9)
    cosine = expected @ truth / np.linalg.norm(expected) / np.linalg.norm(truth)
    assert point["angle"] == pytest.approx(np.degrees(np.arccos(cosine)), rel=1e-6)


def test_the_noise_has_the_size_that_was_measured():
    toy = calibrated(2e-3)
    batch = toy.batch(toy.sample(256, 512, seed=9))
    log_weight = batch.logp - batch.mu_logp
    assert (log_weight.expm1() - log_weight).mean().item() == pytest.approx(2e-3, rel=0.03)


# ------------------------------------------------------------------------------------------------ real responses


def write_analysis(folder, log_ratios: list[list[float]], chunk: int = 2) -> None:
    """A finished FP16 analysis of responses with the given log pi - log mu, one a prompt."""
    chunks = Chunks(folder / "responses", "fp16", -(-len(log_ratios) // chunk))
    made = [Response(i, 0, [1], [2] * len(row), [-3.0] * len(row), True, [x - 3.0 for x in row])
            for i, row in enumerate(log_ratios)]  # fmt: skip
    for i in range(chunks.count):
        chunks.write_scored(i, made[i * chunk : (i + 1) * chunk])
    (folder / "settings.json").write_text(json.dumps({"prompts": len(log_ratios), "chunk": chunk}))


def test_what_is_left_of_real_responses(tmp_path):
    """Four responses: one agrees; one has a token of weight 5; one leaves geo's band; one opsm's, if A < 0."""
    rows = [[0.0, 0.0], [float(np.log(5.0))], [0.01, 0.0, 0.0, 0.0], [-0.6]]
    write_analysis(tmp_path, rows)
    results = correction_table.on_responses(correction_table.read_responses(tmp_path))
    whole = {label: by_dtype["fp16"][0] for label, by_dtype in results.items()}
    dropped = lambda name: 1 - whole[first(name).label]["responses_kept"]
    assert (dropped("geo"), dropped("opsm"), dropped("reinforce"), dropped("pg-token-tis")) == (0.75, 0.125, 0, 0)
    tis = first("pg-token-tis")
    assert dict(tis.thresholds)["tis_cap"] == 2
    assert whole[tis.label]["limited"] == pytest.approx(1 / 8)  # a token of eight
    kappa = np.array([1, 1, 2, np.exp(0.01), 1, 1, 1, np.exp(-0.6)])
    assert whole[tis.label]["left"] == pytest.approx(kappa.sum() ** 2 / 8 / (kappa**2).sum(), rel=1e-6)


@pytest.mark.parametrize("broken", ["absent", "empty", "unfinished", "no settings"])
def test_a_wrong_folder_is_refused_with_a_sentence(tmp_path, monkeypatch, capsys, broken):
    folder, output = tmp_path / "analysis", tmp_path / "out"
    if broken != "absent":
        folder.mkdir()
    if broken in ("unfinished", "no settings"):
        write_analysis(folder, [[0.0]] * 4)
        (folder / ("settings.json" if broken == "no settings" else "responses/fp16-00001.parquet")).unlink()
    monkeypatch.setattr(sys, "argv", ["scripts/correction_table.py"])
    with pytest.raises(SystemExit) as ended:
        run_program(lambda: correction_table.main(Arguments(responses=folder, output_dir=output)))
    said = capsys.readouterr().err.strip()
    assert ended.value.code == 2
    assert said.startswith(f"correction_table.py: --responses {folder}")
    assert "\n" not in said
    assert not output.exists()


# ------------------------------------------------------------------------------------------------ the program


def test_half_of_the_sample_is_gone_where_the_curve_crosses_one_half():
    curve = lambda *pairs: [{"length": n, "left": left, "left_error": 0.01} for n, left in pairs]
    points = curve((1, 0.2), (4, 0.8), (16, 0.9), (64, 0.1))
    assert half_gone(points) == ([("below", 2.0), ("above", 32.0)], "gone")
    assert half_text(points) == "below 2, above 32"
    assert half_text(points[1:3]) == "never"
    assert half_text(points[:1]) == "always"
    hovering = curve((1, 0.51), (2, 0.49), (4, 0.51))
    assert half_text(hovering) == "about half"
    assert half_text(curve((1, 0.9)) + hovering[1:] + curve((8, 0.8))) == "never"


def test_equal_results_share_a_row():
    """All have one result but for k3 and for GRPO under one recipe: the others' row has GRPO's other recipes."""
    alone = next(c for c in CORRECTIONS.values() if c.name == "grpo" and len(c.recipes) < len(RECIPES))
    left = {label: 0.5 if c is alone else 0.3 if c.name == "k3" else 0.9 for label, c in CORRECTIONS.items()}
    rows = merged({label: {"fp16": [{"length": 1, "left": value}]} for label, value in left.items()})
    assert [row.by_dtype["fp16"][0]["left"] for row in rows] == [left[row.corrections[0].label] for row in rows]
    assert {row.label for row in rows if len(row.corrections) == 1} == {alone.label, "reject k3"}
    others = next(row for row in rows if len(row.corrections) > 1)
    grpo = next(c for c in others.corrections if c.name == "grpo")
    assert set(grpo.recipes) | set(alone.recipes) == set(RECIPES)
    assert next(c for c in others.corrections if c.name == "pg-seq-is").label == "pg-seq-is"


def test_the_program_writes_what_it_says(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(correction_table, "ENUMERATED", range(1, 4))
    arguments = tyro.cli(Arguments, args=["--samples=64", "--max-length=16", f"--output-dir={tmp_path}"])
    assert correction_table.main(arguments) == 0
    assert {file.suffix for file in tmp_path.iterdir()} == {".json", ".md", ".png", ".pdf"}
    results = json.loads((tmp_path / "corrections.json").read_text())
    assert set(results) == set(CORRECTIONS)
    geo = results[first("geo").label]
    assert [p["length"] for p in geo["bf16"]] == [1, 2, 3, 16]
    assert geo["bf16"][3]["left"] < geo["fp16"][3]["left"]
    assert "reject geo" in (tmp_path / "corrections.md").read_text()
    assert "half is gone" in capsys.readouterr().out


def test_labels_name_the_recipes_that_say_so_and_no_others():
    assert "pg-seq-is (oat)" in CORRECTIONS and "reinforce" in CORRECTIONS
    bands = {label.partition("(")[2] for label in CORRECTIONS if label.startswith("reject geo ")}
    assert bands == {"oat)", "skyrl)", "slime)", "nemo-rl)", "openrlhf)"}
    assert "grpo-token-tis tis_cap=3 clip_high=0.2 (trl)" in CORRECTIONS
