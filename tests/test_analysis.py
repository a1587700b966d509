"""The offline mismatch analysis, without engines: statistics, store, figure, table, layers, what is refused."""

import json
import math
from dataclasses import asdict
from statistics import NormalDist

import numpy as np
import pandas
import pytest
import torch
import tyro

from learners.diagnosis.bootstrap import Interval, interval, resamples
from learners.model.log_probs import TokenLogProbs
from learners.record.mismatch import derive, measure
from learners.record.tally import Tally
from scripts import analyze_mismatch
from scripts.parts import layers
from scripts.parts.mismatch_figure import MismatchPicture, difference_edges, difference_limit, draw
from scripts.parts.mismatch_table import MismatchTable, interval_text
from scripts.parts.responses import Chunks, Response
from scripts.parts.scoring import score_batch, token_batches
from scripts.parts.statistics import ResponseTallies, ratio, slope_and_intercept
from tasks.arithmetic.model import build_model
from tasks.errors import UsageError


def responses(count: int, noise: float, seed: int = 0, drift: float = 0.0) -> list[Response]:
    """Made-up responses of 1 to 12 tokens, log pi = log mu + drift + noise."""
    rng, made = np.random.default_rng(seed), []
    for i in range(count):
        length = int(rng.integers(1, 13))
        log_mu = np.float32(-rng.exponential(1, length))
        log_pi = np.minimum(np.float32(log_mu + drift + rng.normal(0, noise, length)), 0)
        made.append(Response(i // 2, i % 2, [1, 2], [5] * length, log_mu.tolist(), True, log_pi.tolist()))
    return made


def all_at_once(sampled: list[Response]) -> dict[str, float]:
    """learners/record/mismatch.py on one padded batch."""
    width = max(len(r.log_mu) for r in sampled)
    pad = lambda rows: torch.tensor([row + [0.0] * (width - len(row)) for row in rows])
    mask = torch.tensor([[t < len(r.log_mu) for t in range(width)] for r in sampled])
    tally = Tally()
    measure(tally, pad([r.log_pi for r in sampled]), pad([r.log_mu for r in sampled]), mask)
    return {name.removeprefix("mismatch/"): value for name, value in derive(tally.result()).items()}


# ------------------------------------------------------------------------------------------------ statistics


def test_metrics_of_the_whole_sample_are_the_training_runs():
    sampled = responses(40, 0.1)
    made, expected = ResponseTallies(sampled).metrics(), all_at_once(sampled)
    assert set(expected) < set(made)
    assert {name: made[name] for name in expected} == pytest.approx(expected, rel=1e-9, abs=1e-12)
    differences = [np.array(r.log_pi, np.float64) - np.array(r.log_mu, np.float64) for r in sampled]
    assert made["seq_kl_k1"] == pytest.approx(-np.mean([d.sum() for d in differences]))
    assert made["seq_kl_k3"] == pytest.approx(np.mean([(np.exp(d) - 1 - d).sum() for d in differences]))


def test_a_resampled_set_has_the_metrics_of_the_repeated_responses():
    sampled = responses(6, 0.2)
    times = np.array([2, 0, 1, 0, 3, 0.0])
    repeated = [r for r, count in zip(sampled, times, strict=True) for _ in range(int(count))]
    made, expected = ResponseTallies(sampled).metrics(times), all_at_once(repeated)
    assert {name: made[name] for name in expected} == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_resamples_draw_with_replacement_and_depend_on_the_seed():
    draws = np.array(list(resamples(50, 400, seed=3)))
    assert (draws.sum(1) == 50).all()
    assert draws.mean() == pytest.approx(1.0)
    assert draws.var() == pytest.approx(1 - 1 / 50, rel=0.05)  # of a multinomial count
    assert np.array_equal(draws, np.array(list(resamples(50, 400, seed=3))))
    assert not np.array_equal(draws, np.array(list(resamples(50, 400, seed=4))))


def test_interval_of_a_mean_is_the_normal_one():
    """For the mean of n values, the percentile interval is mean +- z s / sqrt(n), up to the bootstrap's own noise."""
    values = np.random.default_rng(0).normal(3.0, 2.0, 400)
    replicates = np.array([times @ values / 400 for times in resamples(400, 4000, seed=1)])
    made = interval(values.mean(), replicates, confidence=0.9)
    half = NormalDist().inv_cdf(0.95) * values.std() / math.sqrt(400)
    assert made.estimate == values.mean()
    assert made.low == pytest.approx(values.mean() - half, abs=0.05 * half)
    assert made.high == pytest.approx(values.mean() + half, abs=0.05 * half)


def test_ratio_is_of_departures_from_agreement_and_left_out_where_it_means_nothing():
    rng = np.random.default_rng(0)
    over, under = 1 - 0.08 * rng.uniform(0.9, 1.1, 500), 1 - 0.01 * rng.uniform(0.9, 1.1, 500)
    as_interval = lambda estimate, values: interval(estimate, values, 0.95)
    made = ratio("ess_seq", as_interval(0.92, over), over, as_interval(0.99, under), under, 0.95)
    assert made.estimate == pytest.approx(8.0)
    assert 6.4 < made.low < 8 < made.high < 10
    around_zero = rng.normal(0, 1, 500)
    assert ratio("kl_k1", as_interval(0.5, over), over, as_interval(0.1, around_zero), around_zero, 0.95) is None


def test_slope_is_the_least_squares_one_and_that_of_the_metrics():
    sampled = responses(30, 0.05, drift=-0.2)
    lengths = np.array([len(r.log_mu) for r in sampled], float)
    totals = np.array([np.sum(np.array(r.log_pi) - np.array(r.log_mu)) for r in sampled])
    slope, intercept = slope_and_intercept(lengths, totals)
    solution = np.linalg.lstsq(np.stack([lengths, np.ones(30)], 1), totals, rcond=None)[0]
    assert (slope, intercept) == pytest.approx(tuple(solution))
    assert 1000 * slope == pytest.approx(ResponseTallies(sampled).metrics()["seq_log_ratio_slope"], rel=1e-5)
    assert all(math.isnan(x) for x in slope_and_intercept(np.ones(3), np.arange(3.0)))


# ------------------------------------------------------------------------------------------------ table and figure


@pytest.fixture(scope="module")
def table():
    tallies = {"fp16": ResponseTallies(responses(80, 0.01)), "bf16": ResponseTallies(responses(80, 0.08))}
    return MismatchTable.of(tallies, replicates=200, confidence=0.95, seed=0)


def test_table_has_every_metric_with_its_interval_and_the_ratio(table):
    assert set(all_at_once(responses(4, 0.1))) < set(table.intervals)
    for by_dtype in (table.intervals["kl_k3"], table.intervals["abs_prob_diff_mean"]):
        for value in by_dtype.values():
            assert value.low < value.estimate < value.high
    assert 40 < table.ratios["kl_k3"].estimate < 100, "noise 8 times as large has 64 times the divergence"
    assert table.ratios["kl_k3"].low < 64 < table.ratios["kl_k3"].high
    assert math.isnan(table.intervals["abs_prob_diff_max"]["fp16"].low)
    text = table.markdown("a caption")
    assert "mean \\|pi - mu\\| of a token" in text
    assert all(line.count(" | ") == 3 for line in text.splitlines() if line.startswith("| ess"))
    assert json.loads(json.dumps(table.to_dict()))["metrics"]["kl_k3"]["bf16"] == asdict(
        table.intervals["kl_k3"]["bf16"]
    )


def test_a_table_of_one_dtype_has_no_ratio():
    made = MismatchTable.of({"fp16": ResponseTallies(responses(10, 0.1))}, replicates=100, confidence=0.9, seed=0)
    assert made.ratios == {}
    assert made.header() == ["metric", "FP16"]
    assert {len(row) for row in made.rows()} == {2}


def test_picture_counts_every_token_where_it_belongs():
    sampled = responses(50, 0.1)
    picture = MismatchPicture.of(sampled)
    tokens = sum(len(r.log_mu) for r in sampled)
    assert picture.probabilities.sum() == picture.differences.sum() == tokens
    mu, pi = (np.exp(np.concatenate([getattr(r, name) for r in sampled])) for name in ("log_mu", "log_pi"))
    edges = np.linspace(0, 1, len(picture.probabilities) + 1)
    cell = np.argmax(picture.probabilities)
    i, j = np.unravel_index(cell, picture.probabilities.shape)
    inside = (mu >= edges[i]) & (mu <= edges[i + 1]) & (pi >= edges[j]) & (pi <= edges[j + 1])
    assert picture.probabilities[i, j] == pytest.approx(inside.sum(), abs=1)
    bounds = difference_edges()
    assert (np.diff(bounds) > 0).all()
    above = picture.differences[:, len(bounds) // 2 :].sum()
    assert above == (pi - mu >= 0).sum()
    assert difference_limit([picture]) == 10 ** math.ceil(math.log10(np.abs(pi - mu).max()))
    assert picture.log_ratios == pytest.approx([sum(r.log_pi) - sum(r.log_mu) for r in sampled])


def test_figure_shows_sequences_with_their_line_on_equal_scales(table):
    pictures = {"fp16": MismatchPicture.of(responses(30, 0.01)), "bf16": MismatchPicture.of(responses(30, 0.2))}
    figure = draw(pictures, table.kl_notes(), "title")
    columns = np.array(figure.axes[:6]).reshape(3, 2)
    assert [axis.get_title() for axis in columns[0]] == ["FP16", "BF16"]
    assert columns[2, 0].get_ylim() == columns[2, 1].get_ylim()
    for axis, picture, style in zip(columns[2], pictures.values(), ("-", "--"), strict=True):
        points, line = axis.get_lines()[1:]
        assert points.get_xdata().tolist() == picture.lengths
        assert points.get_ydata().tolist() == picture.log_ratios
        assert line.get_linestyle() == style
        slope = 1000 * np.diff(line.get_ydata())[0] / np.diff(line.get_xdata())[0]
        assert f"slope {slope:+.3g} per 1K tokens" in axis.texts[0].get_text()


# ------------------------------------------------------------------------------------------------ the store


def test_chunks_are_sampled_then_scored_and_read_back_as_they_were(tmp_path):
    chunks = Chunks(tmp_path / "responses", "bf16", 2)
    sampled = responses(4, 0.1)
    assert (chunks.not_sampled(), chunks.not_scored()) == ([0, 1], [0, 1])
    chunks.write_sampled(0, [Response(**(asdict(r) | {"log_pi": None})) for r in sampled])
    assert (chunks.not_sampled(), chunks.not_scored()) == ([1], [0, 1])
    assert [r.log_pi for r in chunks.read_sampled(0)] == [None] * 4
    chunks.write_scored(0, sampled)
    chunks.write_scored(1, sampled[:1])
    assert (chunks.not_sampled(), chunks.not_scored()) == ([], [])
    assert list(chunks.scored()) == [sampled, sampled[:1]]  # FP32 in, FP32 out
    frame = pandas.read_parquet(tmp_path / "responses")
    assert len(frame) == 5
    assert set(frame["dtype"]) == {"bf16"}
    assert frame["log_pi"][0].tolist() == sampled[0].log_pi


# ------------------------------------------------------------------------------------------------ scoring and layers


def test_scores_do_not_depend_on_the_batches_and_are_the_models_own():
    model = build_model(hidden_size=32, num_layers=2).eval()
    rng = np.random.default_rng(0)
    drawn = [
        Response(i, 0, rng.integers(3, 99, 3).tolist(), rng.integers(3, 99, n).tolist(), [0.0] * n, True)
        for i, n in enumerate(rng.integers(1, 20, 9))
    ]
    batches = list(token_batches(drawn, max_tokens=40))
    assert sorted(r.prompt for batch in batches for r in batch) == list(range(9))
    assert all(len(batch) == 1 or len(batch) * max(map(len, batch)) <= 40 for batch in batches)
    assert len(batches) == 3
    assert len(list(token_batches(drawn, max_tokens=1))) == 9, "a response longer than the limit goes alone"
    for batch in batches:
        score_batch(TokenLogProbs(model), batch)
    for response in drawn:
        ids = torch.tensor([response.prompt_ids + response.response_ids])
        whole = model(input_ids=ids).logits.log_softmax(-1)[0, :-1].gather(1, ids[0, 1:, None]).flatten()
        assert response.log_pi == pytest.approx(whole[2:].tolist(), abs=1e-5)


def test_relative_difference_averages_over_tokens_not_over_their_lengths():
    reference = [torch.tensor([[[3.0, 4.0], [300.0, 400.0]]]), torch.tensor([[[0.0, 2.0]]])]
    ours = [torch.tensor([[[3.0, 4.5], [300.0, 400.0]]]), torch.tensor([[[0.0, 2.4]]])]
    assert layers.relative_difference(ours, reference) == pytest.approx([(0.1 + 0.0 + 0.2) / 3])


def test_layer_states_are_hugging_faces_and_a_carried_residual_is_added():
    model = build_model(hidden_size=32, num_layers=3).eval()
    sequences = [[5, 6, 7, 8], [9, 10]]
    states = layers.states_of_trainer(model, sequences)
    assert [tuple(s.shape) for s in states] == [(3, 4, 32), (3, 2, 32)]
    expected = model(input_ids=torch.tensor([sequences[0]]), output_hidden_states=True).hidden_states
    for layer in (0, 1):  # of the last layer, Hugging Face shows the state after the final norm
        assert torch.equal(states[0][layer], expected[layer + 1][0])
    hidden, residual = torch.ones(2, 3), torch.full((2, 3), 2.0)
    assert torch.equal(layers.layer_output((hidden, residual)), hidden + residual)
    assert torch.equal(layers.layer_output((hidden, None)), hidden)
    assert torch.equal(layers.layer_output(hidden), hidden)


# ------------------------------------------------------------------------------------------------ the command line


@pytest.mark.parametrize(
    ("given", "prompts"), [([], 0), (["--layers"], 4), (["--layers", "8"], 8), (["--layers=2"], 2)]
)
def test_layers_may_be_given_with_and_without_a_number(given, prompts):
    arguments = tyro.cli(analyze_mismatch.Arguments, args=[*given, "--dtype", "bf16", "fp16"])
    assert arguments.layers == prompts
    assert arguments.dtype == ("bf16", "fp16")


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"n": 0}, "--n is 0"),
        ({"dtype": ("fp16", "fp16")}, "twice"),
        ({"confidence": 1.0}, "--confidence"),
        ({"model": "somewhere"}, "--data"),
        ({"max_tokens": 1000}, "--max-tokens 1000"),
        ({"max_tokens": 0}, "--max-tokens is 0"),
        ({"data": "nowhere.jsonl"}, "nowhere.jsonl"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_written(tmp_path, monkeypatch, options, part):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=part):
        analyze_mismatch.main(analyze_mismatch.Arguments(**options, output_dir=tmp_path / "out"))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_another_analysis_is_refused_and_its_own_taken_up(tmp_path):
    def opened(folder=tmp_path / "out", **options):
        arguments = analyze_mismatch.Arguments(prompts=4, output_dir=folder, **options)
        config, prompts, _ = analyze_mismatch.load_prompts(arguments)
        return analyze_mismatch.open_folder(arguments, config, prompts)

    assert opened() == tmp_path / "out"
    assert opened(dtype=("fp32",), bootstrap=500) == tmp_path / "out", "what the responses do not depend on may change"
    with pytest.raises(UsageError, match="another --n"):
        opened(n=7)
    with pytest.raises(UsageError, match="another --seed"):
        opened(seed=1)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    with pytest.raises(UsageError, match="holds other files"):
        opened(tmp_path / "other")


def test_intervals_print_readably():
    assert interval_text(Interval(0.000546, 0.000461, 0.000636)) == "0.000546 [0.000461, 0.000636]"
    assert interval_text(Interval(0.1, math.nan, math.nan)) == "0.1"
