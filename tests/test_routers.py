"""FP32 routers of a mixture of experts, on a tiny random Qwen3-MoE."""

import copy

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

from learners.model.routers import route_in_fp32

LAYERS, EXPERTS, HIDDEN = 2, 8, 32


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = Qwen3MoeConfig(
        vocab_size=64, hidden_size=HIDDEN, moe_intermediate_size=16, num_experts=EXPERTS, num_experts_per_tok=2,
        num_hidden_layers=LAYERS, num_attention_heads=2, num_key_value_heads=1, head_dim=16, norm_topk_prob=True,
        initializer_range=0.2,
    )  # fmt: skip
    return Qwen3MoeForCausalLM(config)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_logits_and_choice_are_those_of_the_product_in_fp32(model, dtype):
    half = copy.deepcopy(model).to(dtype)
    router = half.model.layers[0].mlp.gate
    hidden = torch.randn(4096, HIDDEN, generator=torch.Generator().manual_seed(1)).to(dtype)
    expected = hidden.float() @ router.weight.float().T
    scores = expected.softmax(-1).topk(2).values
    scores = scores / scores.sum(-1, keepdim=True)
    rounded, _, chosen_before = router(hidden)
    assert route_in_fp32(half) == LAYERS
    logits, made, chosen = router(hidden)
    assert torch.equal(logits, expected) and not torch.equal(rounded.float(), expected)
    assert torch.equal(chosen, expected.topk(2).indices)
    assert not torch.equal(chosen, chosen_before), "rounding chose no expert, so this test shows nothing"
    assert made.dtype == dtype and torch.equal(made, scores.to(dtype))


def test_in_fp32_nothing_changes_and_the_gradient_arrives(model):
    ids = torch.arange(24)[None]
    plain, widened = copy.deepcopy(model), copy.deepcopy(model)
    route_in_fp32(widened)
    for each in (plain, widened):
        each(ids).logits.logsumexp(-1).sum().backward()
    for (name, p), q in zip(plain.named_parameters(), widened.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad), name
    half = copy.deepcopy(model).to(torch.bfloat16)
    route_in_fp32(half)
    half(ids).logits.float().logsumexp(-1).sum().backward()
    gradient = half.model.layers[0].mlp.gate.weight.grad
    assert gradient.dtype == torch.bfloat16 and gradient.abs().sum() > 0


def test_a_dense_model_has_no_router():
    dense = LlamaForCausalLM(LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
                                         num_attention_heads=1))  # fmt: skip
    with pytest.raises(ValueError, match="leave --router-fp32 out"):
        route_in_fp32(dense)
