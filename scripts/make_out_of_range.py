"""Make a model that leaves FP16's range: `python scripts/make_out_of_range.py --power 12 --output-dir DIR`.

What writes into the residual stream (embedding, attention's and MLP's output projections) is multiplied by a power of
two. Every layer reads the stream through an RMS norm, which divides by its size, so the model computes the same
function as before, in a dtype that has the range for it. BF16 and FP32 have; FP16's largest number is 65,504. Real
models have such numbers too ("massive activations", arXiv 2402.17762). A negative power makes the stream small, and the
gradients that go through it as much larger: its activations fit FP16, and its gradients do not, at a loss scale that
serves other models. docs/fp16-limits.md shows what becomes of both.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import tyro

from scripts.parts.program import run_program
from tasks.errors import UsageError, require


@dataclass
class Arguments:
    """Write a copy of a model with a larger or smaller residual stream, which computes the same function."""

    output_dir: Path
    """folder to write; must not exist, or be empty"""
    model: str = "embedded"
    """a Hugging Face model of the Llama or Qwen family: local folder or hub id; "embedded" is this repository's"""
    power: int = 12
    """the residual stream becomes 2^POWER times as large; below 0 smaller"""


def enlarge_stream(causal_lm, factor: float) -> None:
    """Multiply the residual stream of a decoder with pre-norms by ``factor``, in place; the function stays.

    Exact for a power of two, but for the norms' epsilon, which matters ``factor``^2 times less; below 1 it shrinks with
    the stream.

    Raises:
        UsageError: the model has no such parts.
    """
    import torch

    decoder = causal_lm.get_decoder()
    try:
        writers = [decoder.embed_tokens]
        for layer in decoder.layers:
            writers += [layer.self_attn.o_proj, layer.mlp.down_proj]
        last_norm = decoder.norm
    except AttributeError as error:
        raise UsageError(f"{type(causal_lm).__name__} has no Llama-like layers ({error}); name another.") from error
    if factor < 1:
        causal_lm.config.rms_norm_eps *= factor**2
        for module in decoder.modules():
            if hasattr(module, "variance_epsilon"):
                module.variance_epsilon *= factor**2
    with torch.no_grad():
        for parameter in {id(p): p for module in writers for p in module.parameters()}.values():
            parameter.mul_(factor)
        if causal_lm.get_output_embeddings().weight is decoder.embed_tokens.weight:  # tied, so logits grew too
            last_norm.weight.div_(factor)


def main(arguments: Arguments) -> int:
    folder = arguments.output_dir
    require(0 < abs(arguments.power) < 100, f"--power is {arguments.power}; it lies between -99 and 99, and is not 0.")
    require(
        not folder.exists() or (folder.is_dir() and not any(folder.iterdir())),
        f"{folder} is not empty; name a new folder.",
    )
    from actors import runtime

    runtime.prepare(set(), "stock")
    import torch
    from transformers import AutoTokenizer

    from learners.command_line import parse
    from learners.model.loading import load_model
    from learners.options.precision import Precision

    config = parse([f"--model={arguments.model}", "--dtype=fp32", "--wandb=disabled"])
    model = load_model(config, Precision.of(config.precision))
    ids = torch.arange(8)[None] + 3
    with torch.no_grad():
        before = model(input_ids=ids).logits
        enlarge_stream(model, 2.0**arguments.power)
        same = torch.allclose(model(input_ids=ids).logits, before, rtol=0.02, atol=0.02 * before.abs().max().item())
    require(same, f"{arguments.model} has other norms than a Llama, so that a larger stream changes it; name another.")
    model.to(torch.bfloat16).save_pretrained(folder)
    AutoTokenizer.from_pretrained(config.model_path).save_pretrained(folder)
    print(f"{folder}: residual stream 2^{arguments.power} times that of {arguments.model}, in BF16")
    return 0


if __name__ == "__main__":
    run_program(lambda: main(tyro.cli(Arguments)))
