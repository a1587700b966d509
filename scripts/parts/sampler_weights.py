"""Does the sampler have the learner's weights? Both engines must be importable (train.prepare)."""

import torch

from learners.model import lora
from learners.model.weights import master


def unequal_weights(learner) -> list[str]:
    """Names of the sampler's tensors, as vLLM fuses them, that are not bitwise what the learner has: its FP32 masters,
    cast; with adapters the sums (``--lora-sync merge``), or base and adapters each (``adapter``)."""
    sampler, dtype, expected = learner.actor.engine.model, learner.precision.sample, {}
    fused = {part: whole for whole, parts in sampler.packed_modules_mapping.items() for part in parts}

    def expect(name: str, tensor: torch.Tensor) -> None:
        *parents, leaf, kind = name.split(".")
        expected.setdefault(".".join([*parents, fused.get(leaf, leaf), kind]), []).append(tensor.to(dtype))

    have = {name.replace(".base_layer.", "."): p.data for name, p in sampler.named_parameters()}
    if learner.peft is not None and learner.config.lora.lora_sync == "merge":
        for name, tensor in learner.sampler_weights():
            expect(name, tensor)
    else:
        for name, parameter in learner.causal_lm.named_parameters():
            if not lora.is_adapter(name):
                expect(lora.plain_name(name), master(parameter))
        for name, layer in lora.adapted_layers(learner.causal_lm).items():
            down, up = (master(half[lora.ADAPTER].weight) for half in (layer.lora_A, layer.lora_B))
            expect(name.replace(".weight", ".down"), down)
            expect(name.replace(".weight", ".up"), up.to(dtype) * layer.scaling[lora.ADAPTER])
        rank = learner.config.lora.lora_rank
        for name, layer in sampler.named_modules():
            if isinstance(getattr(layer, "lora_a_stacked", None), tuple):
                have[f"{name}.down"] = torch.cat([stacked[0, 0, :rank] for stacked in layer.lora_a_stacked])
                have[f"{name}.up"] = torch.cat([stacked[0, 0, :, :rank] for stacked in layer.lora_b_stacked])
    whole = {name: torch.cat(parts) for name, parts in expected.items()}
    return [n for n, tensor in whole.items() if n not in have or not torch.equal(have[n][: len(tensor)], tensor)]
