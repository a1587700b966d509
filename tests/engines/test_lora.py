"""Adapters on both real engines in this process: the base stays as it is, and every export is the same policy."""

import pytest
import torch

from tests.engines.conftest import built_learner

pytestmark = pytest.mark.engines


@pytest.fixture(scope="module")
def learner(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lora")
    arguments = ["--dtype=fp16", "--lora-rank=4", "--lora-alpha=8", "--eval-steps=0", "--lr-warmup-ratio=0"]
    with built_learner(folder / "out", *arguments, f"--export={folder / 'merged'}", "--export-dtype=fp32") as learner:
        for number in (1, 2):
            learner.learn(learner.collect(number))
        learner.sync_params_to_actors()
        learner.save_models()
        yield learner


def loaded(dtype):
    from transformers import AutoModelForCausalLM

    from tasks.arithmetic.model import CHECKPOINT

    return AutoModelForCausalLM.from_pretrained(CHECKPOINT, dtype=dtype)


def test_only_the_adapters_are_trained_with_fp32_masters(learner):
    from learners.model.weights import master

    trained = {name: p for name, p in learner.causal_lm.named_parameters() if p.requires_grad}
    assert trained and all("lora_" in name for name in trained)
    assert {p.dtype for p in trained.values()} == {torch.float16}
    assert {master(p).dtype for p in trained.values()} == {torch.float32}
    assert any((p != 0).any() for name, p in trained.items() if "lora_B" in name), "nothing was learned"


def test_after_50_synchronisations_the_base_is_bitwise_untouched(learner):
    for _ in range(50):
        learner.sync_params_to_actors()
    present = {name.replace(".base_layer.", "."): p for name, p in learner.causal_lm.named_parameters()}
    for name, parameter in loaded(torch.float16).named_parameters():
        assert torch.equal(parameter, present[name]), name


def test_the_sampler_has_the_sum_in_fp32_cast_once(learner):
    from learners.model.weights import master

    layer = learner.causal_lm.get_decoder().layers[1].mlp.down_proj
    down, up = (master(part["default"].weight).double() for part in (layer.lora_A, layer.lora_B))
    expected = layer.base_layer.weight.double() + 8 / 4 * up @ down
    sampled = dict(learner.actor.engine.model.named_parameters())["model.layers.1.mlp.down_proj.weight"]
    assert (sampled.double() - expected).abs().max() <= 1.001 * (expected.half().double() - expected).abs().max()
    assert not torch.equal(sampled, layer.base_layer.weight)


def greedy(model) -> list[str]:
    from tasks.arithmetic.model import build_tokenizer
    from tasks.arithmetic.problems import generate

    tokenizer = build_tokenizer()
    texts = []
    for problem in generate(12, 3, "test"):
        ids = tokenizer(problem.question, return_tensors="pt")["input_ids"]
        texts.append(tokenizer.decode(model.float().generate(ids, max_new_tokens=24, do_sample=False)[0]))
    return texts


def test_adapter_and_merged_exports_give_the_same_samples(learner):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    folder = learner.log.folder
    adapted = greedy(PeftModel.from_pretrained(loaded(torch.float32), folder / "adapter"))
    merged = greedy(AutoModelForCausalLM.from_pretrained(folder.parent / "merged", dtype=torch.float32))
    assert adapted == merged
    assert adapted != greedy(loaded(torch.float32)), "the adapters change nothing, so this test shows nothing"


def test_what_is_exported_has_the_dtype_that_was_asked_for(learner):
    from safetensors.torch import load_file

    tensors = load_file(learner.log.folder.parent / "merged" / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    assert not any("lora" in name or "base_layer" in name for name in tensors)
