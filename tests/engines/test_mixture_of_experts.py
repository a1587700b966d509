"""A tiny random mixture of experts (Qwen3-MoE) through both real engines: does the sampler get the experts' weights?"""

import shutil

import pytest
import torch

from tasks.arithmetic.model import CHECKPOINT
from tests.engines.conftest import built_learner

pytestmark = pytest.mark.engines


@pytest.fixture(scope="module")
def learner(tmp_path_factory):
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    folder = tmp_path_factory.mktemp("mixture")
    torch.manual_seed(0)
    config = Qwen3MoeConfig(
        vocab_size=128, hidden_size=64, moe_intermediate_size=64, num_experts=8, num_experts_per_tok=2,
        num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, head_dim=32, norm_topk_prob=True,
        max_position_embeddings=512, initializer_range=0.1, eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    Qwen3MoeForCausalLM(config).to(torch.bfloat16).save_pretrained(folder / "model")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(CHECKPOINT / name, folder / "model" / name)
    sizes = "--prompt-max-length=32 --generate-max-length=24 --rollout-batch-size=16 --micro-batch-size=32 --max-eval=8"
    with built_learner(
        folder / "out", f"--model={folder / 'model'}", "--dtype=fp32", "--router-fp32=True", "--learning-rate=3e-3",
        "--train-batch-size=64", *sizes.split(),
    ) as learner:  # fmt: skip
        # A random model adds no numbers; what it can learn is to say more or fewer of one digit.
        learner.actor.grade = lambda responses, references: [float(r.count("1") % 2) for r in responses]
        yield learner


def test_the_sampler_follows_the_learners_experts(learner):
    """Fused names in transformers, packed weights in vLLM: a mistake in either would show as a mismatch."""
    before = learner.causal_lm.model.layers[0].mlp.experts.gate_up_proj.detach().clone()
    mismatch = []
    for number in (1, 2, 3):
        mismatch.append(learner.learn(learner.collect(number))["mismatch/kl_k3"])
        if number < 3:
            learner.sync_params_to_actors()
    assert (learner.causal_lm.model.layers[0].mlp.experts.gate_up_proj - before).abs().max() > 1e-3
    assert max(mismatch) < 1e-8, mismatch  # in FP32, so that a mistake is not taken for rounding
    assert learner.learn(learner.collect(4))["mismatch/kl_k3"] > 1e-4, "a dropped synchronisation shows"
