"""The committed checkpoint is what its script makes."""

import json

import pytest
import torch

from scripts.make_tiny_model import Arguments, warm_up
from tasks.arithmetic.model import CHECKPOINT


def test_the_script_makes_the_committed_checkpoint():
    """The first updates are repeated: same weights at the start, same data, same losses as when it was made."""
    record = json.loads((CHECKPOINT / "warm_up.json").read_text())
    made_with = {key: value for key, value in record.items() if key != "losses_of_every_tenth_update"}
    arguments = Arguments(**made_with)
    assert made_with == {key: value for key, value in vars(Arguments()).items() if key != "output_dir"}
    model, tokenizer, losses = warm_up(arguments, stop_after=11)
    assert [losses[0], losses[10]] == pytest.approx(record["losses_of_every_tenth_update"][:2], abs=2e-3)
    assert (
        model.config.to_diff_dict()["hidden_size"]
        == json.loads((CHECKPOINT / "config.json").read_text())["hidden_size"]
    )
    assert json.loads(tokenizer.backend_tokenizer.to_str()) == json.loads((CHECKPOINT / "tokenizer.json").read_text())


def test_the_checkpoint_is_small_and_exact_in_every_precision():
    from transformers import AutoModelForCausalLM

    assert sum(file.stat().st_size for file in CHECKPOINT.iterdir()) < 2_000_000
    model = AutoModelForCausalLM.from_pretrained(CHECKPOINT, dtype=torch.bfloat16)
    for parameter in model.parameters():
        whole = parameter.float()
        exact_in_fp16 = (whole.half().float() == whole) | (whole.abs() < 2.0**-16)
        assert exact_in_fp16.all()
