"""Gradients of single responses, their sketches, and what is made of them, against plain torch and loops."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from learners.command_line import parse
from scripts import gradient_error
from scripts.parts.corrections import catalogue
from scripts.parts.gradient_table import crossings, draw, markdown, merged, rows_of, slopes_by_length
from scripts.parts.gradients import (
    EXACT,
    FORWARD,
    PLAIN,
    GradientModel,
    GradientStore,
    Sketch,
    key_of,
    watched,
)
from scripts.parts.responses import Response
from tasks.errors import UsageError

WHOLE = 2**21  # more numbers than the embedded model has parameters
PROMPT, ANSWER = [5, 6, 7, 8], [9, 3, 4, 6, 1]


def response(log_pi, log_mu, prompt: int = 0, sample: int = 0) -> Response:
    return Response(
        prompt, sample, PROMPT, ANSWER[: len(log_pi)], [float(x) for x in log_mu], True, [float(x) for x in log_pi]
    )


def model_in(dtype: torch.dtype, **options) -> GradientModel:
    return GradientModel(
        parse([]), dtype, "sdpa", **{"size": WHOLE, "seed": 0, "loss_scale": 1.0, "weight": 1.0} | options
    )


def gradient_in_float64(kappa: list[float]) -> np.ndarray:
    """Of sum_t kappa_t log pi(answer_t): the whole model in float64, one log_softmax over all."""
    model = AutoModelForCausalLM.from_pretrained(parse([]).model_path, dtype=torch.float64)
    tokens = len(kappa)
    ids = torch.tensor([PROMPT + ANSWER[:tokens]])
    log_pi = model(ids).logits[0, :-1].log_softmax(-1)[-tokens:]
    chosen = log_pi.gather(1, ids[0, -tokens:, None])[:, 0]
    parameters = list(model.parameters())
    return torch.cat(
        [g.flatten() for g in torch.autograd.grad(chosen, parameters, torch.tensor(kappa).double())]
    ).numpy()


@pytest.mark.parametrize("kappa", [[1.0] * 5, [0.5, 0.0, 2.0, -1.0, 1.0], [1.0, 2.0]])
def test_a_response_gradient_is_that_of_plain_torch(kappa):
    model = model_in(torch.float32, loss_scale=1024.0, weight=1 / 64)
    made = model.gradients(response([0.0] * 5, [0.0] * 5), len(kappa), {"own": np.array(kappa)})
    signs = model.sketch.signs.numpy()
    expected = gradient_in_float64(kappa)
    assert np.linalg.norm(made["own"] * signs - expected) < 1e-5 * np.linalg.norm(expected)
    plain = gradient_in_float64([1.0] * len(kappa))
    for key in (PLAIN, EXACT, FORWARD):
        assert np.linalg.norm(made[key] * signs - plain) < 1e-5 * np.linalg.norm(plain), key


def test_between_fp32_and_the_dtype_lies_the_forward_pass():
    """With the outputs of the dtype's layers in the place of its own, FP32 computes the dtype's hidden states; the
    parts of the error are of rounding's size, and BF16's larger than FP16's."""
    model = model_in(torch.bfloat16)
    ids, captured = torch.tensor([PROMPT + ANSWER]), []
    states = lambda m: m.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state
    with watched(model.rounded, captured.append):
        rounded = states(model.rounded)
    values = iter(captured)
    with watched(model.exact, lambda output: output + (next(values).float() - output).detach()):
        between = states(model.exact)
    assert torch.equal(between, rounded.float())
    assert not torch.equal(states(model.exact), between), "the layers are not watched any more"
    sizes = {}
    for dtype in (torch.bfloat16, torch.float16):
        made = model_in(dtype).gradients(response([0.0] * 5, [0.0] * 5), 5, {})
        size = np.linalg.norm(made[EXACT])
        sizes[dtype] = [np.linalg.norm(made[a] - made[b]) / size for a, b in ((FORWARD, EXACT), (PLAIN, FORWARD))]
    for of_bf16, of_fp16 in zip(*sizes.values(), strict=True):
        assert 1e-5 < of_fp16 < of_bf16 / 3 < 0.1


@given(st.integers(0, 10**6))
@settings(max_examples=10)
def test_a_sketch_keeps_lengths_and_angles_and_adds_up(seed):
    generator = torch.Generator().manual_seed(seed)
    shapes = ((300, 70), (7,), (4001,))
    one, other = ([torch.randn(s, generator=generator) * 3**i for i, s in enumerate(shapes)] for _ in range(2))
    sketch, flat = Sketch(one, 4096, seed), lambda parts: torch.cat([p.flatten() for p in parts]).double().numpy()
    a, b, sums = sketch(one, 2.0), sketch(other, 2.0), sketch([x + y for x, y in zip(one, other, strict=True)], 2.0)
    assert sums == pytest.approx(a + b, abs=1e-3)
    for (x, y), (exact_x, exact_y) in (((a, a), (one, one)), ((a, b), (one, other))):
        scale = np.linalg.norm(flat(exact_x)) * np.linalg.norm(flat(exact_y)) / 4
        assert abs(x @ y - flat(exact_x) @ flat(exact_y) / 4) < 6 * (2 / 4096) ** 0.5 * scale
    whole = Sketch(one, 10**6, seed)(one, 1.0)
    assert np.linalg.norm(whole) == pytest.approx(np.linalg.norm(flat(one))), "nothing is lost of so few"


def test_a_constant_is_a_multiple_of_the_plain_gradient():
    assert key_of(np.full(4, 0.3)) == (PLAIN, 0.3)
    key, multiple = key_of(np.array([1.0, 1.0, 0.5]))
    assert (key != PLAIN, multiple) == (True, 1.0) and key == key_of(np.array([1.0, 1.0, 0.5]))[0]
    assert key != key_of(np.array([1.0, 0.5, 1.0]))[0]


@pytest.fixture
def measured(tmp_path):
    """Four responses with made-up log-probabilities and gradients; rows of the whole catalogue at two lengths."""
    random = np.random.default_rng(0)
    log_pi = -random.random((4, 5))
    responses = [response(p, p + 0.05 * random.standard_normal(5), i // 2, i % 2) for i, p in enumerate(log_pi)]
    advantages, store = np.array([1.0, -1.0, 0.5, 0.0]), GradientStore(tmp_path / "gradients", "bf16")
    slopes = slopes_by_length(catalogue(), responses, advantages, [2, 5])
    of_tokens = random.standard_normal((4, 5, 16))  # grad log pi of each token: the gradient is linear in kappa
    for i, (each, wanted) in enumerate(zip(responses, slopes.kappas, strict=True)):
        for tokens, kappas in wanted.items():
            made = {key: kappa @ of_tokens[i, :tokens] for key, kappa in kappas.items()}
            plain = of_tokens[i, :tokens].sum(0)
            store.add(each, tokens, made | {PLAIN: plain, EXACT: plain + 0.03, FORWARD: plain + 0.01})
    return responses, advantages, of_tokens, rows_of("bf16", store, slopes, advantages, 100, 0.9, 0)


def test_rows_are_those_of_a_loop(measured):
    responses, advantages, of_tokens, rows = measured
    assert {row["length"] for row in rows} == {2, 5} and len(rows) == 2 * len(catalogue())
    for row in rows:
        if row["estimator"].split()[0] not in ("reinforce", "pg-seq-is", "pg-token-is"):
            continue
        estimate = exact = 0.0
        for r, advantage, tokens in zip(responses, advantages, of_tokens, strict=True):
            ratio = np.exp(np.array(r.log_pi) - np.array(r.log_mu))[: row["length"]]
            weight = {"reinforce": np.ones(row["length"]), "pg-token-is": ratio}
            weight = weight.get(row["estimator"].split()[0], np.full(row["length"], ratio.prod()))
            estimate = estimate + advantage * (weight @ tokens[: row["length"]])
            exact = exact + advantage * (tokens[: row["length"]].sum(0) + 0.03)
        size = np.linalg.norm(exact)
        assert row["relative_error"] == pytest.approx(np.linalg.norm(estimate - exact) / size, rel=1e-5)
        assert row["cosine"] == pytest.approx(estimate @ exact / size / np.linalg.norm(estimate), rel=1e-5)
        assert row["forward"] == pytest.approx(0.02 * 4 * 0.5 / size), "sum of A times (forward - exact), 16 numbers"
        assert row["backward"] == pytest.approx(0.01 * 4 * 0.5 / size)
        assert row["relative_error_low"] <= row["relative_error_high"]


def test_tables_and_figure(measured):
    rows = measured[-1]
    text = markdown(rows)
    assert text.count("## BF16, up to") == 2 and "pg-seq-is" in text and "reject geo" in text
    assert len(merged(rows)) < len(rows) / 2, "equal numbers share a row"
    figure = draw(rows, gradient_error.DRAWN, "made up")
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == list(gradient_error.DRAWN)


def test_where_the_error_reaches_the_noise():
    row = {"dtype": "bf16", "estimator": "x", "sampling_noise": 1.0}
    rows = [row | {"length": n, "relative_error": 0.01 * n} for n in (25, 400)]
    assert crossings(rows)["bf16"]["x"] == pytest.approx(100)
    assert crossings(rows[:1])["bf16"]["x"] is None
    assert crossings(rows[1:])["bf16"]["x"] == 400, "from the first length on"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"objectives": ("grop",)}, "--objectives grop is none of reinforce"),
        ({"reject": ("geometric",)}, "--reject geometric is none of geo"),
        ({"lengths": (0,)}, "--lengths are numbers of tokens, from 1"),
        ({"sketch": 8}, "--sketch is 8; fewer than 256"),
        ({"layers": 2}, "--layers belongs to scripts/analyze_mismatch.py"),
        ({"n": 0}, "--n is 0"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(UsageError, match=message):
        gradient_error.check(gradient_error.Arguments(**options))
