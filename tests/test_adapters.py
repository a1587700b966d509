"""Adapters on a random model: what is put in, what is trained, and the sum that the sampler gets."""

import pytest
import torch

from learners.model import lora
from learners.options.groups import LoraOptions
from tasks.arithmetic.model import build_model


def adapted(rank: int, alpha: float, targets: tuple[str, ...] = (), dtype=torch.float32):
    """(the model with random adapters, without them) in eval mode."""
    torch.manual_seed(0)
    plain, model = (build_model(hidden_size=32, num_layers=2) for _ in range(2))
    model.load_state_dict(plain.state_dict())
    peft = lora.add_adapters(model.to(dtype), LoraOptions(lora_rank=rank, lora_alpha=alpha, lora_targets=targets))
    with torch.no_grad():
        for name, parameter in peft.named_parameters():
            if lora.is_adapter(name):
                parameter.copy_(torch.randn(parameter.shape) * 0.1)
    return peft.eval(), plain.eval()


def master(parameter):
    return parameter.detach().float()


@pytest.mark.parametrize(("rank", "alpha"), [(1, 2.0), (4, 1.0), (4, 12.0)])
def test_an_adapted_layer_is_w_plus_alpha_over_rank_ba(rank, alpha):
    """By the formula, by peft's own forward pass, and by a plain model that has the sums for weights."""
    peft, plain = adapted(rank, alpha)
    layers = lora.adapted_layers(peft.base_model.model)
    state = plain.state_dict()
    for name, layer in layers.items():
        down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        assert down.shape[0] == up.shape[1] == rank
        by_hand = layer.base_layer.weight.double() + alpha / rank * (up.double() @ down.double())
        made = lora.merged(layer, layer.base_layer.weight, master)
        torch.testing.assert_close(made.double(), by_hand, rtol=1e-5, atol=1e-6)
        state[name] = made.detach()
    plain.load_state_dict(state)
    ids = torch.arange(3, 15)[None]
    with torch.no_grad():
        torch.testing.assert_close(plain(input_ids=ids).logits, peft(input_ids=ids).logits, rtol=1e-4, atol=1e-4)


def test_by_default_every_linear_layer_but_the_head_gets_one_and_nothing_else_is_trained():
    peft, plain = adapted(2, 4.0)
    linear = {n for n, m in plain.named_modules() if isinstance(m, torch.nn.Linear) and not n.endswith("lm_head")}
    assert set(lora.adapted_layers(peft.base_model.model)) == {f"{name}.weight" for name in linear}
    trained = {name for name, parameter in peft.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, _ in peft.named_parameters() if lora.is_adapter(name)}
    assert len(trained) == 2 * len(linear)
    assert not any(name.endswith("bias") for name in trained)
    assert not any(isinstance(m, torch.nn.Dropout) and m.p > 0 for m in peft.modules())


def test_chosen_layers_alone_get_one_in_the_models_own_dtype():
    peft, _ = adapted(2, 4.0, ("q_proj", "v_proj"), torch.float16)
    names = lora.adapted_layers(peft.base_model.model)
    assert {name.split(".")[-2] for name in names} == {"q_proj", "v_proj"}
    assert {p.dtype for name, p in peft.named_parameters() if lora.is_adapter(name)} == {torch.float16}
    with pytest.raises(ValueError, match="no_such_layer"):
        adapted(2, 4.0, ("no_such_layer",))


def test_what_is_sent_and_saved(tmp_path):
    peft, _ = adapted(2, 4.0, ("q_proj",))
    tensors = dict(lora.adapter_tensors(peft.base_model.model, master, torch.bfloat16))
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    assert set(tensors) == {n for n, _ in peft.base_model.model.named_parameters() if lora.is_adapter(n)}
    lora.save_adapter(peft, tensors, tmp_path / "adapter")
    from safetensors.torch import load_file

    saved = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    strip = lambda name: name.removeprefix("base_model.model.").replace(".default.", ".")
    assert {strip(name) for name in saved} == {strip(name) for name in tensors}
    by_name = {strip(name): tensor for name, tensor in tensors.items()}
    assert all(torch.equal(tensor, by_name[strip(name)]) for name, tensor in saved.items())


def test_names():
    assert lora.is_adapter("model.q_proj.lora_A.default.weight") and lora.is_adapter(
        "model.q_proj.lora_B.default.weight"
    )
    assert not lora.is_adapter("model.q_proj.base_layer.weight")
    assert lora.plain_name("model.q_proj.base_layer.weight") == "model.q_proj.weight"
    assert lora.plain_name("model.norm.weight") == "model.norm.weight"
