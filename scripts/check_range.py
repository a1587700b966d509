"""Does a model fit FP16? `python scripts/check_range.py --model M --task math --data D`, with the options of train.py.

The model runs over some of the prompts in FP32, and the largest number that each kind of layer reads or writes is
held against FP16's largest, 65,504. What is larger becomes infinite there, and loss scaling does not mend it: that is
about gradients. Weights are looked at too: those below FP16's smallest normal number lose digits, or vanish.

Then gradients: the run's loss of a few responses goes backwards in FP16 as the learner computes it, at loss scales from
2^0 to 2^24, and in FP32. It is told which kinds of parameters overflow and which vanish, and between which scales
neither happens.

Not seen: the inside of attention and of experts that are fused into one tensor, the stream between attention and MLP,
adapters (the model below them is checked), and what training will do.
"""

import math
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import tyro

from scripts.parts.program import run_program
from tasks.errors import NonFiniteError, require

LITTLE_ROOM = 8  # times; training moves activations


@dataclass
class Arguments:
    """Compare a model's activations and weights with FP16's range. Takes the options of train.py too."""

    prompts: int = 32
    """how many of the training prompts"""
    tokens: int = 16
    """how many tokens the model goes on with each; 0 for the prompts alone"""
    responses: int = 8
    """how many responses of so many tokens have their gradients looked at; 0 for none"""


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

    from scripts.parts.loss_scales import kind_of

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


def print_scales(ladder: list) -> None:
    """A row a kind of parameter, a column a scale: how much of the gradient's norm vanishes, or that it overflows."""
    from rich.console import Console
    from rich.table import Table

    say = lambda share: "0" if share < 1e-6 else f"{100 * share:.2g}%"
    of = lambda fate, name="vanished": "overflows" if fate.overflows else say(fate.share(name))
    title = "what vanishes of the gradients' norm, by loss scale"
    table = Table("parameters of", *(f"2^{at.power}" for at in ladder), title=title)
    for kind in ladder[0].by_kind:
        table.add_row(kind, *(of(at.by_kind[kind]) for at in ladder))
    table.add_section()
    table.add_row("all", *(of(at.whole) for at in ladder))
    table.add_row("all: distance from FP32's", *(of(at.whole, "apart") for at in ladder))
    Console(width=130).print(table)


def check_gradients(arguments: Arguments, config, model, prompts: list[list[int]]) -> bool:
    """Print which loss scales a run of FP16 has to choose from; returns whether there is one.

    Args:
        config: of the run, whose objective, batch and lengths decide what a token weighs in the loss.
        model: in FP32; it is taken apart.
        prompts: token ids.
    """

    from learners.model.loading import load_model
    from learners.model.log_probs import TokenLogProbs
    from learners.options.precision import Precision
    from scripts.parts import loss_scales

    of_run = (config.sampling.temperature, config.precision.lm_head_fp32)
    batch = loss_scales.sampled(model, prompts, arguments.tokens, config)
    exact = loss_scales.gradients(TokenLogProbs(model, *of_run), batch, config)
    model.to("meta")  # its memory is needed
    half = load_model(config, Precision.of(config.precision)).to(batch.input_ids.device)
    policy = TokenLogProbs(half, *of_run)
    try:
        policy.check()
    except NonFiniteError as error:
        print(f"no gradient can be looked at: {error}")
        return False
    backward = lambda scale: loss_scales.gradients(policy, batch, config, scale)
    ladder, safe = loss_scales.climb(lambda power: loss_scales.compared(power, exact, backward(2.0**power)))
    print_scales(ladder)
    if (lost := next((at for at in ladder if at.first), None)) is not None:
        print(f"at 2^{lost.power} the gradient of {lost.first} is the first to overflow on the way back")
    of = f"{len(batch)} responses, {int(batch.response_mask.sum())} tokens in one micro-batch"
    if not safe:
        print(f"no loss scale is safe for the gradients ({of}): use --dtype bf16 or fp32")
        return False
    low, high = safe
    above = " and above" if high == loss_scales.LADDER[-1] else ""
    print(
        f"loss scale 2^{low} to 2^{high}{above}: no gradient overflows, and less than {loss_scales.VANISHES:.1%} of "
        f"any kind's norm vanishes ({of})"
    )
    chosen = config.precision.loss_scale
    start = math.log2(chosen) if chosen else config.precision.initial_scale_power
    name = f"--loss-scale {chosen:g}" if chosen else f"--initial-scale-power {start}, where a run starts,"
    if start > high:
        print(f"{name} is above that: " + ("every update will be skipped" if chosen else "its first updates will be "
              f"skipped, until the scale has fallen; give --initial-scale-power {high}"))  # fmt: skip
    elif start < low:
        print(f"{name} is below that: a part of the gradient is lost without a word; give a larger one")
    else:
        print(f"{name} is {high - start:g} powers of two below its end; more tokens in a micro-batch lower the end")
    return not (chosen and start > high)


def main(arguments: Arguments, options: list[str]) -> int:
    """Returns the exit code: 0 fits, 1 does not."""
    require(arguments.prompts >= 1, f"--prompts is {arguments.prompts}; it must be at least 1.")
    require(arguments.tokens >= 0, f"--tokens is {arguments.tokens}; it must be at least 0.")
    require(arguments.responses >= 0, f"--responses is {arguments.responses}; it must be at least 0.")
    import train
    from learners.command_line import parse

    # Nothing is sampled or trained here: what those options would ask of the data and of each other does not matter.
    batches = ["--rollout-batch-size=1", "--num-samples=2", "--train-batch-size=2", "--micro-batch-size=1"]
    lengths = [f"--generate-max-length={max(1, arguments.tokens)}"]
    options = [*options, "--train-dtype=fp16", "--sample-dtype=fp16"]  # which has the options of loss scaling
    run = parse(options) if arguments.responses else None  # what a token weighs in its loss
    config = parse([*options, *batches, *lengths])
    config.precision.train_dtype = "fp32"
    task, prompts, _ = train.load_task(config)
    task.close()
    from actors import cpu_half, runtime

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
    if run is None:
        return 0
    cpu_half.install({torch.float16}, run.precision.cpu_half)
    looked_at = [p.token_ids for p in prompts[: arguments.responses]]
    return 0 if check_gradients(arguments, run, model, looked_at) else 1


if __name__ == "__main__":
    run_program(lambda: main(*tyro.cli(Arguments, return_unknown_args=True)))
