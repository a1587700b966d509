"""The embedded model: a Qwen2 of 0.8 M parameters that reads characters, small enough to commit and to train on a CPU.

`scripts/make_tiny_model.py` warms it up; the result lies in `CHECKPOINT` in ordinary Hugging Face format, so it passes
through the same code as any other model.
"""

from pathlib import Path

CHECKPOINT = Path(__file__).parent / "checkpoint"

PAD, EOS, UNKNOWN = "<|pad|>", "<|endoftext|>", "<|unknown|>"
CHARACTERS = [chr(code) for code in range(32, 127)] + ["\n"]


def build_tokenizer():
    """A tokenizer with one token for each printable ASCII character and newline; anything else is `UNKNOWN`.

    Returns:
        A `transformers.PreTrainedTokenizerFast`: 99 tokens, no BOS, `EOS` ends a response.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: index for index, token in enumerate([PAD, EOS, UNKNOWN, *CHARACTERS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, eos_token=EOS, unk_token=UNKNOWN, model_max_length=512
    )


def build_model(hidden_size: int = 128, num_layers: int = 4, seed: int = 0):
    """A Qwen2 with random weights in FP32, for `build_tokenizer`'s vocabulary.

    Args:
        hidden_size: width; four heads, MLP of 2.7 times the width. 128 with 4 layers is 0.8 M parameters.
        num_layers: depth.
        seed: of the initial weights; the caller's random state is left as it was.
    """
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        vocab_size=128,  # 99 tokens, rounded up to a multiple that every kernel likes
        hidden_size=hidden_size,
        intermediate_size=int(hidden_size * 2.7) // 8 * 8,
        num_hidden_layers=num_layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=512,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=True,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Qwen2ForCausalLM(config)
