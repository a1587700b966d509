"""The learner's model against float64, without a mask against with one, whole and in chunks, and what it keeps."""

import weakref

import pytest
import torch
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from learners.model import output_head
from learners.model.log_probs import TokenLogProbs
from learners.model.output_head import ChosenLogProbs, give_log_probs
from tasks.arithmetic.model import build_model


def draw_batch():
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 98, (3, 9), generator=generator)
    lengths = torch.tensor([9, 6, 4])
    chosen = (torch.arange(8) >= 2) & (torch.arange(8) < lengths[:, None] - 1)
    return ids, lengths, chosen


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_log_probabilities_against_float64(temperature):
    model = build_model(hidden_size=64, num_layers=2)
    ids, lengths, chosen = draw_batch()
    with torch.no_grad():
        ours = TokenLogProbs(model, temperature)(ids, lengths, chosen)
        expected = []
        wide = build_model(hidden_size=64, num_layers=2).double()
        for row in range(3):  # each response alone and unpadded, one softmax a token
            tokens = ids[row, : lengths[row]]
            logits = wide(input_ids=tokens[None]).logits[0]
            for t in chosen[row].nonzero().flatten().tolist():
                expected.append((logits[t] / temperature).softmax(0)[tokens[t + 1]].log().item())
    assert ours.dtype == torch.float32
    assert ours.tolist() == pytest.approx(expected, abs=2e-5)


# ------------------------------------------------------------------------------------------------------- the head


def draw_head(rows=37, width=16, words=53, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(rows, width, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(words, width, generator=generator).to(dtype).requires_grad_()
    bias = torch.randn(words, generator=generator).to(dtype).requires_grad_()
    return hidden, weight, bias, torch.randint(0, words, (rows,), generator=generator)


@pytest.mark.parametrize("chunk", [1000, 37, 36, 8, 1])
@pytest.mark.parametrize("block", [53 * 1000, 53 * 5, 1])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("in_fp32", [False, True])
def test_the_head_gives_autograds_gradient_whatever_the_chunks(chunk, block, temperature, in_fp32, monkeypatch):
    monkeypatch.setattr(output_head, "CHUNK_TOKENS", chunk)
    monkeypatch.setattr(output_head, "BLOCK_ELEMENTS", block)
    hidden, weight, bias, targets = draw_head()
    factors = torch.linspace(-1, 1, 37)
    ours = ChosenLogProbs.apply(hidden, weight, bias, targets, temperature, in_fp32)
    gradients = torch.autograd.grad((ours * factors).sum(), (hidden, weight, bias))
    wide = [tensor.detach().double().requires_grad_() for tensor in (hidden, weight, bias)]
    expected = (functional.linear(*wide) / temperature).log_softmax(1).gather(1, targets[:, None]).squeeze(1)
    assert torch.allclose(ours.double(), expected, atol=1e-5)
    for got, true in zip(gradients, torch.autograd.grad((expected * factors).sum(), wide), strict=True):
        assert (got.double() - true).norm() < 1e-6 * true.norm()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_chunks_cost_a_half_gradient_no_digits(dtype, monkeypatch):
    """The parts of the weight's gradient are summed in FP32; summed in the dtype, 37 of them err several times more."""
    errors = []
    for chunk in (37, 1):
        monkeypatch.setattr(output_head, "CHUNK_TOKENS", chunk)
        hidden, weight, _, targets = draw_head(dtype=dtype)
        made = ChosenLogProbs.apply(hidden, weight, None, targets, 1.0, False)
        (got,) = torch.autograd.grad(made.sum(), weight)
        wide = weight.detach().double().requires_grad_()
        expected = (hidden.detach().double() @ wide.t()).log_softmax(1).gather(1, targets[:, None]).sum()
        (true,) = torch.autograd.grad(expected, wide)
        errors.append(((got.double() - true).norm() / true.norm()).item())
        assert got.dtype == dtype
    assert errors[1] < 1.2 * errors[0] < 4 * torch.finfo(dtype).eps


def test_a_gradient_of_no_token_is_zero():
    hidden, weight, bias, targets = draw_head()
    ChosenLogProbs.apply(hidden[:0], weight, bias, targets[:0], 1.0, False).sum().backward()
    assert weight.grad.eq(0).all() and bias.grad.eq(0).all()


def test_a_frozen_head_gets_no_gradient_and_passes_one_on():
    hidden, weight, bias, targets = draw_head()
    made = ChosenLogProbs.apply(hidden, weight.detach(), bias.detach(), targets, 1.0, False)
    (gradient,) = torch.autograd.grad(made.sum(), hidden)
    assert gradient.abs().sum() > 0


def test_a_head_that_is_more_than_a_product_is_refused():
    class Scaled(torch.nn.Linear):
        def forward(self, hidden):
            return 2 * super().forward(hidden)

    with pytest.raises(ValueError, match="Scaled"):
        give_log_probs(Scaled(2, 3))


class Memory(TorchDispatchMode):
    """Bytes of the tensors that operations make, while they live, and the most there were at once."""

    def __init__(self):
        super().__init__()
        self.seen, self.now, self.peak = weakref.WeakKeyDictionary(), 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage() not in self.seen:
                storage = tensor.untyped_storage()
                self.seen[storage] = None
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self.free, storage.nbytes())
        return result

    def free(self, size: int) -> None:
        self.now -= size


def test_the_head_keeps_little():
    """4,096 tokens at 152k words: at most 2.2 times the half logits of one chunk, and the hidden states, beside the
    gradients that it returns."""
    tokens, words, width = 4096, 151_936, 8
    hidden = torch.randn(tokens, width).bfloat16().requires_grad_()
    weight = torch.randn(words, width).bfloat16().requires_grad_()
    targets = torch.randint(0, words, (tokens,))
    with Memory() as memory:
        made = ChosenLogProbs.apply(hidden, weight, None, targets, 1.0, False)
        made.backward(torch.ones_like(made))
    chunk = 2 * output_head.CHUNK_TOKENS * words
    assert memory.peak > chunk, "nothing was measured"
    returned = weight.nbytes * (1 + 2 + 1) + hidden.nbytes  # the weight's: a part, the FP32 sum, the rounded sum
    assert memory.peak - returned < 2.2 * chunk + hidden.nbytes, f"{(memory.peak - returned) / chunk:.2f} chunks"


# ------------------------------------------------------------------------------------------------------- no mask


def build(family: str, attention: str):
    from transformers import AutoConfig, AutoModelForCausalLM

    common = dict(
        vocab_size=128, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64,
    )  # fmt: skip
    own = {
        "qwen2": {},
        "llama": {},
        "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "head_dim": 16},
    }[family]
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **common, **own)
    return AutoModelForCausalLM.from_config(config, attn_implementation=attention)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("family", ["qwen2", "llama", "qwen3_moe"])
def test_without_a_mask_all_is_as_with_one(family, attention, dtype):
    """To the bit, but for two roundings: torch's fused attention goes back in another order with a half mask than
    without, and a mixture's experts get other numbers of padding tokens, whose products then are cut up otherwise."""
    ids, lengths, chosen = draw_batch()
    ids = ids * (torch.arange(9) < lengths[:, None])
    made = []
    for needs_mask in (True, False):
        model = TokenLogProbs(build(family, attention).to(dtype))
        model.check()
        assert not model.needs_mask
        model.needs_mask = needs_mask
        logp = model(ids, lengths, chosen)
        (logp * torch.linspace(0.5, 1.5, len(logp))).sum().backward()
        made.append((logp.detach(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])))
    (with_mask, of_mask), (without, of_none) = made
    if family == "qwen3_moe":
        assert (with_mask - without).abs().max() < 4 * torch.finfo(dtype).eps * without.abs().max()
    else:
        assert torch.equal(with_mask, without)
    if family == "qwen3_moe" or (attention == "sdpa" and dtype != torch.float32):
        assert (of_mask.double() - of_none.double()).norm() < 4 * torch.finfo(dtype).eps * of_mask.double().norm()
    else:
        assert torch.equal(of_mask, of_none)


def test_the_decoder_gets_token_ids_alone():
    """A mask, or position ids, would turn fused attention kernels off."""
    model, asked = TokenLogProbs(build("qwen2", "sdpa")), []
    model.causal_lm.get_decoder().register_forward_pre_hook(
        lambda _, args, named: asked.append({name for name, value in named.items() if torch.is_tensor(value)}),
        with_kwargs=True,
    )
    model(*draw_batch())
    assert asked == [{"input_ids"}]


def test_a_model_that_looks_ahead_is_recognised_and_keeps_its_mask():
    from transformers import AutoModelForCausalLM

    ids, lengths, chosen = draw_batch()
    config = build("qwen2", "sdpa").config
    config.is_causal = False  # every token sees every other, as within a prefix
    model = TokenLogProbs(AutoModelForCausalLM.from_config(config, attn_implementation="sdpa"))
    for layer in model.causal_lm.model.layers:
        layer.self_attn.is_causal = False
    model.check()
    assert model.needs_mask
    padded = ids.clone()
    padded[torch.arange(9) >= lengths[:, None]] = 77
    with torch.no_grad():
        assert torch.equal(model(ids, lengths, chosen), model(padded, lengths, chosen)), "padding is seen"


# ------------------------------------------------------------------------------------------------------- the whole


def test_log_probabilities_are_fp32_whatever_the_model_computes_in():
    """Rounded to BF16 they would be multiples of 2^-8 or coarser; the exponentials over the vocabulary sum to 1."""
    model = TokenLogProbs(build_model(hidden_size=64, num_layers=2).to(torch.bfloat16))
    ids = torch.full((128, 5), 7)
    ids[:, 4] = torch.arange(128)
    chosen = torch.tensor([[False, False, False, True]]).expand(128, 4)
    made = model(ids, torch.full((128,), 5), chosen)
    assert made.dtype == torch.float32
    assert made.double().exp().sum().item() == pytest.approx(1.0, abs=1e-5)
    assert not torch.equal(made, made.to(torch.bfloat16).float())


def test_a_model_that_changes_its_logits_after_the_head_is_refused():
    class SoftCapped(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = build_model(hidden_size=64, num_layers=2)
            self.inner.get_output_embeddings().weight.data *= 20

        def get_decoder(self):
            return self.inner.get_decoder()

        def get_output_embeddings(self):
            return self.inner.get_output_embeddings()

        def forward(self, **arguments):
            output = self.inner(**arguments)
            output.logits = output.logits.tanh()
            return output

    model = SoftCapped()
    with pytest.raises(ValueError, match="SoftCapped changes its logits"):
        TokenLogProbs(model).check()
    TokenLogProbs(build_model(hidden_size=64, num_layers=2)).check()
