"""The model as it is loaded, whole or cut up while it is made."""

import pytest
import torch

from tasks.arithmetic.model import build_model, build_tokenizer
from tasks.errors import NonFiniteError
from tests.engines.fixed_batch import learner_alone

pytestmark = pytest.mark.engines


@pytest.mark.parametrize("stage", [2, 3])
def test_a_weight_out_of_range_is_named(tmp_path, stage):
    model = build_model(num_layers=1)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[3, 5] = 1e5  # FP16 ends at 65,504
    model.save_pretrained(tmp_path / "model")
    build_tokenizer().save_pretrained(tmp_path / "model")
    options = [f"--model={tmp_path / 'model'}", "--task=arithmetic", "--prompt-template=no", "--dtype=fp16"]
    lengths = ["--prompt-max-length=32", "--generate-max-length=24", "--micro-batch-size=8"]
    with (
        pytest.raises(NonFiniteError, match=r"The weight model\.layers\.0\.mlp\.up_proj\.weight .* not finite in fp16"),
        learner_alone(tmp_path / "run", *options, *lengths, f"--zero-stage={stage}"),
    ):
        pass
