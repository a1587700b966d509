"""Does a model fit FP16, what becomes of one that does not, and how much of an update reaches the half weights."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from learners.model.log_probs import TokenLogProbs
from scripts.check_range import Largest, largest_activations, print_table, weights_below_normal
from scripts.make_out_of_range import enlarge_stream
from scripts.parts.loss_scales import kind_of
from scripts.update_reach import reach
from tasks.arithmetic.model import build_model
from tasks.errors import NonFiniteError, UsageError
from tests.programs import run_programs

ROOT = Path(__file__).resolve().parent.parent
PROMPT = [5, 9, 30, 40, 6]


def tiny():
    return build_model(hidden_size=64, num_layers=2).float().eval()


def gpt2():
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=1, vocab_size=16, n_positions=8))


@pytest.mark.parametrize("power", [3, 16])
def test_a_larger_stream_leaves_the_function_as_it_was(power):
    model, ids = tiny(), torch.tensor([PROMPT])
    with torch.no_grad():
        before = model(input_ids=ids).logits
        stream = largest_activations(model, [PROMPT])["residual stream"].value
        enlarge_stream(model, 2.0**power)
        after = model(input_ids=ids).logits
    # The norms' epsilon, 1e-6, is what changes: it matters less.
    torch.testing.assert_close(after, before, rtol=1e-2, atol=1e-3)
    enlarged = largest_activations(model, [PROMPT])["residual stream"].value
    assert enlarged == pytest.approx(stream * 2.0**power, rel=1e-2)


def test_a_model_without_such_layers_is_refused():
    with pytest.raises(UsageError, match="GPT2LMHeadModel has no Llama-like layers"):
        enlarge_stream(gpt2(), 2.0)


def test_the_largest_numbers_are_found_by_kind():
    """Against what the model says of itself, and against a projection whose input and output are kept by hand."""
    model = tiny()
    with torch.no_grad():
        seen = []
        for layer in model.get_decoder().layers:
            layer.mlp.down_proj.register_forward_hook(lambda module, inputs, output: seen.extend([inputs[0], output]))
        whole = model(input_ids=torch.tensor([PROMPT]), output_hidden_states=True)
        down = max(tensor.abs().max().item() for tensor in seen)
        found = largest_activations(model, [PROMPT])
    assert found["mlp.down_proj"].value == pytest.approx(down, rel=1e-6)
    # The last of the model's own hidden states has passed the norm; the others after the embedding are the stream.
    assert found["residual stream"].value >= whole.hidden_states[1].abs().max().item()
    assert {"residual stream", "mlp.down_proj", "self_attn.q_proj", "lm_head"} <= set(found)
    assert found["residual stream"].where.startswith("model.layers.")


def test_tokens_that_the_model_adds_are_watched_too():
    model, passes = tiny(), []
    model.lm_head.register_forward_hook(lambda *_: passes.append(1))
    for tokens, expected in ((0, 1), (8, 8)):
        passes.clear()
        largest_activations(model, [PROMPT], tokens)
        assert len(passes) == expected


def test_what_is_not_finite_or_empty_or_never_runs():
    largest = Largest()
    largest.see(torch.zeros(0, 4), "an expert without a token")
    assert largest.value == 0
    print_table({"never ran": largest}, 65504.0)
    largest.see(torch.tensor([1.0, float("nan")]), "a layer")
    assert (largest.value, largest.where) == (float("inf"), "a layer")


def test_a_model_without_layers_cannot_be_checked():
    with pytest.raises(UsageError, match="GPT2LMHeadModel has no Llama-like layers"):
        largest_activations(gpt2(), [PROMPT])


def test_kinds():
    assert kind_of("model.layers.12.mlp.down_proj") == "mlp.down_proj"
    assert kind_of("model.layers.12") == "residual stream"
    assert kind_of("lm_head") == "lm_head"


def test_weights_that_fp16_cannot_hold():
    layer = torch.nn.Linear(4, 2, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, 1e-5, 1e-9, 0.0], [2.0, -1e-6, 6e4, -0.1]]))
    assert weights_below_normal(layer) == pytest.approx((2 / 7, 1 / 7))


def test_a_model_out_of_range_is_told_apart_from_one_that_changes_its_logits():
    model = tiny()
    enlarge_stream(model, 2.0**22)
    TokenLogProbs(model).check()
    with pytest.raises(NonFiniteError, match=r"not finite in float16.*another --dtype"):
        TokenLogProbs(model.half()).check()


def test_the_commands(tmp_path):
    cases = [
        (6, 0, "powers of two below its end", []),
        (14, 1, "does not fit FP16", []),
        (-12, 0, "its first updates will be skipped, until the scale has fallen", []),
        (-12, 1, "--loss-scale 65536 is above that: every update will be skipped", ["--loss-scale=65536"]),
    ]
    make, check = "scripts/make_out_of_range.py", ["scripts/check_range.py", "--prompts", "4", "--tokens", "8"]
    check += ["--task", "arithmetic", "--prompt-max-length", "32", "--generate-max-length", "24"]
    commands = []
    for number, (power, _, _, options) in enumerate(cases):
        folder = str(tmp_path / str(number))
        commands += [[make, "--power", str(power), "--output-dir", folder], [*check, "--model", folder, *options]]
        commands += [[make, "--output-dir", folder]]
    ended = run_programs(*commands)
    for (_, code, verdict, _), made, checked, again in zip(cases, *(ended[i::3] for i in range(3)), strict=True):
        assert made.returncode == 0, made.stderr
        assert (checked.returncode, verdict in checked.stdout) == (code, True), checked.stdout + checked.stderr
        assert again.returncode == 2 and "is not empty; name a new folder" in again.stderr


@settings(max_examples=50, deadline=None)
@given(st.integers(-6, 6), st.floats(-0.49, 0.49), st.sampled_from([torch.float16, torch.bfloat16]))
def test_half_a_spacing_decides_whether_a_weight_moves(exponent, part, dtype):
    """From a number of the dtype, less than half a spacing moves nothing, a whole one arrives whole."""
    start = torch.full((3,), 2.0**exponent * 1.5)
    spacing = 2.0**exponent * torch.finfo(dtype).eps
    moved, along, length = reach(start, start.double() + part * spacing, dtype)
    assert (moved, along) == (0, 0.0)
    assert length == pytest.approx(3 * (part * spacing) ** 2, rel=1e-6, abs=1e-8 * spacing**2)
    assert reach(start, start.double() + 0.51 * spacing, dtype)[0] == 3
    moved, along, length = reach(start, start + spacing, dtype)
    assert (moved, along / length) == (3, pytest.approx(1.0))
