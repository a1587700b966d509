"""Random models for tests: of any size, with the embedded model's tokenizer."""

import shutil
from pathlib import Path

import torch

from tasks.arithmetic.model import CHECKPOINT


def random_qwen2(folder: Path, hidden_size: int = 64, vocab_size: int = 128, **options) -> Path:
    """Write a Qwen2 of two layers with random BF16 weights; further options are its configuration's."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        vocab_size=vocab_size, hidden_size=hidden_size, intermediate_size=2 * hidden_size, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512, eos_token_id=1, pad_token_id=0,
        bos_token_id=None,
    )  # fmt: skip
    config.update(options)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Qwen2ForCausalLM(config)
    model.to(torch.bfloat16).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(CHECKPOINT / name, folder / name)
    return folder
