"""Which gradients overflow or vanish at which loss scale."""

import copy

import pytest
import torch

from learners.command_line import parse
from learners.model.log_probs import TokenLogProbs
from scripts.check_range import largest_activations
from scripts.make_out_of_range import enlarge_stream
from scripts.parts.loss_scales import AtScale, Fate, climb, compared, gradients, sampled
from tasks.arithmetic.model import build_model

PROMPTS = [[5, 9, 30, 40, 6], [5, 9, 31]]


@pytest.fixture(scope="module")
def config():
    return parse(["--dtype=fp16", "--wandb=disabled", "--train-batch-size=64", "--generate-max-length=24"])


def tiny():
    return build_model(hidden_size=64, num_layers=2).float().eval()


def test_the_gradient_is_that_of_the_loss_of_a_run(config):
    """-A log pi over responses x longest response (64 x 24), by torch alone."""
    model = tiny()
    batch = sampled(model, PROMPTS, 6, config)
    made = gradients(TokenLogProbs(copy.deepcopy(model)), batch, config, scale=4.0)
    loss = 0.0
    for i, prompt in enumerate(PROMPTS):
        ids = batch.input_ids[i : i + 1, : batch.lengths[i]].long()
        assert ids[0, : len(prompt)].tolist() == prompt and len(prompt) < ids.shape[1] <= len(prompt) + 6
        log_pi = model(input_ids=ids).logits.log_softmax(-1)[0, :-1].gather(1, ids[0, 1:, None])
        loss = loss - batch.advantages[i] * log_pi[len(prompt) - 1 :].sum() / (64 * 24)
    loss.backward()
    assert made.keys() == dict(model.named_parameters()).keys()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(made[name], 4 * parameter.grad, rtol=1e-4, atol=1e-7)
    assert sum(made[name].norm() for name in made) > 1e-3


def test_responses_are_the_seeds_and_without_tokens_those_of_the_prompt(config):
    model = tiny()
    one, same = (sampled(model, PROMPTS, 6, config) for _ in range(2))
    assert torch.equal(one.input_ids, same.input_ids) and torch.equal(one.advantages, same.advantages)
    assert set(one.advantages.tolist()) <= {1.0, -1.0}
    prompts = sampled(model, PROMPTS, 0, config)
    assert prompts.lengths.tolist() == [5, 3] and prompts.response_mask.sum(1).tolist() == [4, 2]


def test_what_is_counted():
    true = {"layers.0.a.weight": torch.tensor([3.0, 4e-9, -4.0]), "layers.1.a.weight": torch.tensor([0.0, 12.0]),
            "b.weight": torch.tensor([1.0])}  # fmt: skip
    rounded = {
        "layers.0.a.weight": torch.tensor([6.0, 0.0, -6e-5]).half(),
        "layers.1.a.weight": torch.tensor([0.0, 24.0]).half(),
        "b.weight": torch.tensor([2.0]).half(),
    }
    at = compared(1, true, rounded)
    assert set(at.by_kind) == {"a", "b"} and at.first is None
    fate = at.by_kind["a"]
    assert fate.norm == pytest.approx(169) and fate.vanished == pytest.approx(1.6e-17)
    assert fate.share("blurred") == pytest.approx(4 / 13) and fate.share("apart") == pytest.approx(4 / 13, rel=1e-4)
    assert at.whole.norm == pytest.approx(170) and at.is_safe
    rounded["b.weight"] = torch.tensor([0.0]).half()
    assert not compared(1, true, rounded).is_safe, "all of b vanishes"
    for value in (float("inf"), float("nan")):
        rounded["layers.0.a.weight"] = torch.tensor([value, 0.0, 1.0]).half()
        at = compared(1, true, rounded)
        assert at.by_kind["a"].overflows and not at.by_kind["b"].overflows and at.whole.overflows
        assert at.first == "layers.0.a.weight" and not at.is_safe


@pytest.mark.parametrize(
    ("low", "high", "found"),
    [(6, 17, (6, 17)), (-3, 40, (0, 24)), (8, 8, (8, 8)), (23, 30, (23, 24)), (5, 6, None), (30, 40, None)],
)
def test_the_ends_of_what_is_safe_are_found_to_a_power_of_two(low, high, found):
    looked = []

    def at(power: int) -> AtScale:
        looked.append(power)
        vanished = 0.0 if power >= low else 1.0
        return AtScale(power, {"a": Fate(norm=1.0, vanished=vanished)}, "a" if power > high else None)

    ladder, safe = climb(at)
    assert [look.power for look in ladder] == [0, 4, 8, 12, 16, 20, 24] and safe == found
    assert len(looked) <= 11


def test_a_smaller_stream_leaves_the_function_and_moves_the_scales_down(config):
    """By as many powers of two, as that is how much larger the gradients are that go through the stream."""
    ends = []
    for power in (0, -8):
        model = tiny()
        if power:
            enlarge_stream(model, 2.0**power)
        batch = sampled(model, PROMPTS, 6, config)
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([PROMPTS[0]])).logits
        exact = gradients(TokenLogProbs(model), batch, config)
        half = TokenLogProbs(copy.deepcopy(model).half())
        half.check()
        assert largest_activations(model, PROMPTS)["self_attn.q_proj"].value < 100
        _, safe = climb(lambda p, h=half, b=batch, e=exact: compared(p, e, gradients(h, b, config, 2.0**p)))
        ends.append((logits, safe[1]))
    torch.testing.assert_close(ends[0][0], ends[1][0], rtol=1e-4, atol=1e-5)
    assert 6 <= ends[0][1] - ends[1][1] <= 9, ends
