"""Does a model fit FP16? `python scripts/check_range.py --model M --task math --data D`, with the options of train.py.

The model runs over some of the prompts in FP32, and the largest number that each kind of layer reads or writes is
held against FP16's largest, 65,504. What is larger becomes infinite there, and loss scaling does not mend it: that is
about gradients. Weights are looked at too: those below FP16's smallest normal number lose digits, or vanish.

Not seen: the inside of attention and of experts that are fused into one tensor, the stream between attention and MLP,
adapters (the model below them is checked), and what training will do.
"""

import math
import re
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import tyro

from scripts.parts.program import run_program
from tasks.errors import require

LITTLE_ROOM = 8  # times; training moves activations


@dataclass
class Arguments:
    """Compare a model's activations and weights with FP16's range. Takes the options of train.py too."""

    prompts: int = 32
    """how many of the training prompts"""
    tokens: int = 16
    """how many tokens the model goes on with each; 0 for the prompts alone"""


@dataclass
class Largest:
    """The largest magnitude that a kind of module has read or written."""

    value: float = 0.0
    where: str = ""
    """name of the module it was in"""

    def see(self, tensor, where: str) -> None:
        value = tensor.abs().max().item() if tensor.numel() else 0.0
        value = value if math.isfinite(value) else math.inf
        if value > self.value:
            self.value, self.where = value, where


def kind_of(name: str) -> str:
    """A module's name without the number of its layer: ``layers.3.mlp.down_proj`` -> ``mlp.down_proj``."""
    return re.sub(r"^.*layers\.\d+\.?", "", name) or "residual stream"


def largest_activations(causal_lm, prompts: list[list[int]], tokens: int = 0) -> dict[str, Largest]:
    """What linear layers read and write, and what decoder layers leave in the residual stream.

    Args:
        causal_lm: a Hugging Face model with ``layers`` in its decoder.
        prompts: token ids; each passes alone.
        tokens: how many the model goes on with each, the likeliest ones.

    Returns:
        By kind of module (`kind_of`), the largest magnitude; infinite if one was not finite.

    Raises:
        UsageError: the model has no ``layers``.
    """
    import torch
    from tqdm import tqdm

    found: dict[str, Largest] = {}
    decoder = causal_lm.get_decoder()
    require(hasattr(decoder, "layers"), f"{type(causal_lm).__name__} has no Llama-like layers; name another model.")
    decoder_layers = set(decoder.layers)
    hooks = []

    def watch(name: str, module, reads: bool) -> None:
        largest = found.setdefault(kind_of(name), Largest())

        def look(module, inputs, named, output):
            read = [x for x in (*inputs, *named.values()) if torch.is_tensor(x)] if reads else []
            for tensor in [output[0] if isinstance(output, tuple) else output, *read]:
                largest.see(tensor, name)

        hooks.append(module.register_forward_hook(look, with_kwargs=True))

    for name, module in causal_lm.named_modules():
        if module in decoder_layers:
            watch(name, module, reads=False)
        elif isinstance(module, torch.nn.Linear):
            watch(name, module, reads=True)
    try:
        with torch.no_grad():
            for ids in tqdm(prompts, unit="prompt", leave=False):
                input_ids = torch.tensor([ids], device=causal_lm.device)
                if tokens:
                    causal_lm.generate(
                        input_ids=input_ids,
                        attention_mask=torch.ones_like(input_ids),
                        max_new_tokens=tokens,
                        do_sample=False,
                        use_cache=True,
                    )
                else:
                    causal_lm(input_ids=input_ids)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def weights_below_normal(causal_lm) -> tuple[float, float]:
    """Shares of the non-zero weights that FP16 holds with fewer digits, and that it rounds to 0."""
    import torch

    smallest = torch.finfo(torch.float16).smallest_normal
    counts = torch.zeros(3, dtype=torch.float64)
    for weight in causal_lm.parameters():
        size = weight.detach().abs()
        vanishing = (size > 0) & (size.half() == 0)
        counts += torch.stack([(size > 0).sum(), ((size > 0) & (size < smallest)).sum(), vanishing.sum()]).cpu()
    total, subnormal, vanished = counts.tolist()
    return (subnormal - vanished) / total, vanished / total


def print_table(found: dict[str, Largest], limit: float) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("where", "largest", "times below FP16's largest", title="activations")
    passed = {kind: largest for kind, largest in found.items() if largest.value > 0}
    for kind, largest in sorted(passed.items(), key=lambda item: -item[1].value):
        table.add_row(kind, f"{largest.value:,.4g}", f"{limit / largest.value:,.3g}")
    Console(width=100).print(table)


def main(arguments: Arguments, options: list[str]) -> int:
    """Returns the exit code: 0 fits, 1 does not."""
    require(arguments.prompts >= 1, f"--prompts is {arguments.prompts}; it must be at least 1.")
    require(arguments.tokens >= 0, f"--tokens is {arguments.tokens}; it must be at least 0.")
    import train
    from learners.command_line import parse

    # Nothing is sampled or trained here: what those options would ask of the data and of each other does not matter.
    batches = ["--rollout-batch-size=1", "--num-samples=2", "--train-batch-size=2", "--micro-batch-size=1"]
    lengths = [f"--generate-max-length={max(1, arguments.tokens)}"]
    config = parse([*options, *batches, *lengths, "--train-dtype=fp32", "--sample-dtype=fp32"])
    task, prompts, _ = train.load_task(config)
    task.close()
    from actors import runtime

    runtime.prepare(set(), "stock")
    import torch

    from learners.model.loading import load_model
    from learners.options.precision import Precision

    model = load_model(config, Precision.of(config.precision)).to(runtime.device()).eval()
    limit = torch.finfo(torch.float16).max
    largest_weight = max(parameter.abs().max().item() for parameter in model.parameters())
    subnormal, vanished = weights_below_normal(model)
    found = largest_activations(model, [p.token_ids for p in prompts[: arguments.prompts]], arguments.tokens)
    print_table(found, limit)
    print(f"weights: the largest is {largest_weight:.4g}; {subnormal:.2%} lose digits in FP16, {vanished:.2%} become 0")
    peak = max([*found.values(), Largest(largest_weight, "a weight")], key=lambda largest: largest.value)
    room = limit / peak.value
    if room <= 1:
        print(f"does not fit FP16: {peak.where} reaches {peak.value:,.4g}; use --dtype bf16 or fp32")
        return 1
    remark = "" if room > LITTLE_ROOM else ", which is little: watch for a run that stops, or use --dtype bf16"
    print(f"fits FP16: {peak.where} is the largest, {room:,.3g} times below {limit:,.0f}{remark}")
    return 0


if __name__ == "__main__":
    run_program(lambda: main(*tyro.cli(Arguments, return_unknown_args=True)))
