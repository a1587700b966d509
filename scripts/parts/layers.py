"""Where the mismatch arises: the hidden states of the two engines after each layer, on the same tokens."""

import csv
from collections.abc import Callable, Iterable, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from scripts.parts import style

COLUMNS = {
    "engines": "vLLM against the trainer's model, both in this dtype",
    "sampler": "vLLM in this dtype against the trainer's model in FP32",
    "trainer": "the trainer's model in this dtype against itself in FP32",
}


@contextmanager
def recorded(layers: Iterable[nn.Module]):
    """Collects what every layer puts out while it is open: a list, over the layers, of lists over the calls."""
    records: list[list[Tensor]] = []
    hooks = []
    for layer in layers:
        outputs: list[Tensor] = []
        records.append(outputs)

        def keep(module, arguments, output, outputs=outputs):
            outputs.append(layer_output(output).detach().cpu())

        hooks.append(layer.register_forward_hook(keep))
    try:
        yield records
    finally:
        for hook in hooks:
            hook.remove()


def layer_output(output) -> Tensor:
    """The hidden states that a layer leaves, whatever its engine calls them.

    vLLM's layers carry the residual beside them, (hidden, residual), and add the two in the next layer's norm, in the
    engine's dtype; a Hugging Face layer gives the sum.
    """
    if not isinstance(output, tuple):
        return output
    hidden, *rest = output
    return hidden + rest[0] if rest and isinstance(rest[0], Tensor) and rest[0].shape == hidden.shape else hidden


def states_of_sampler(engine, sequences: Sequence[Sequence[int]]) -> list[Tensor]:
    """Hidden states after each layer of vLLM's prefill, a (layers, tokens, width) tensor for each sequence."""
    import vllm

    one_token = vllm.SamplingParams(max_tokens=1, temperature=0.0)

    def run(ids: Sequence[int]) -> None:
        engine.generate([list(ids)], one_token)

    return _states(engine.model.model.layers, run, sequences)


@torch.no_grad()
def states_of_trainer(causal_lm: nn.Module, sequences: Sequence[Sequence[int]]) -> list[Tensor]:
    """The same of a Hugging Face model."""
    device = next(causal_lm.parameters()).device

    def run(ids: Sequence[int]) -> None:
        causal_lm.get_decoder()(input_ids=torch.tensor([list(ids)], device=device), use_cache=False)

    return _states(causal_lm.get_decoder().layers, run, sequences)


def _states(layers, run: Callable[[Sequence[int]], None], sequences) -> list[Tensor]:
    made = []
    for ids in sequences:
        with recorded(layers) as records:
            run(ids)
        # A long prompt may pass in several parts; what comes after the prompt's tokens is padding or a decode step.
        states = [torch.cat([part.flatten(0, -2) for part in parts])[: len(ids)] for parts in records]
        made.append(torch.stack(states))
        assert made[-1].shape[1] == len(ids), f"{made[-1].shape[1]} states of {len(ids)} tokens"
    return made


def relative_difference(ours: Sequence[Tensor], reference: Sequence[Tensor]) -> np.ndarray:
    """||a - b|| / ||b|| of a token's hidden state, averaged over the tokens of all sequences, for each layer.

    Token by token, because in a language model a few tokens (the first, as a rule) have states a thousand times longer
    than the others and would alone decide a norm over all of them.

    Args:
        ours, reference: (layers, tokens, width) for each sequence, any dtype.

    Returns:
        (layers,) FP64.
    """
    sums, tokens = 0.0, 0
    for a, b in zip(ours, reference, strict=True):
        a, b = a.double(), b.double()
        sums = sums + ((a - b).norm(dim=-1) / b.norm(dim=-1)).sum(1)
        tokens += a.shape[1]
    return (sums / tokens).numpy()


def write_table(differences: dict[str, dict[str, np.ndarray]], file: Path) -> None:
    """A line for each dtype and layer, as CSV; layers count from 1."""
    with file.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["dtype", "layer", *COLUMNS])
        for dtype, columns in differences.items():
            for layer, values in enumerate(zip(*(columns[name] for name in COLUMNS), strict=True), start=1):
                writer.writerow([dtype, layer, *(f"{value:.6e}" for value in values)])


def draw(differences: dict[str, dict[str, np.ndarray]], title: str):
    """Three panels, one for each of `COLUMNS`; a line for each dtype."""
    made, axes = style.figure(1, 3, (9.6, 3.2), sharey=True)
    made.suptitle(title)
    headings = {"engines": "vLLM against trainer", "sampler": "vLLM against FP32", "trainer": "trainer against FP32"}
    for axis, (name, heading) in zip(axes[0], headings.items(), strict=True):
        for dtype, columns in differences.items():
            layers, colour = np.arange(1, len(columns[name]) + 1), style.COLORS[dtype]
            axis.semilogy(
                layers, columns[name], style.LINES[dtype], color=colour, marker="o", markersize=4,
                markevery=max(1, len(layers) // 6), markerfacecolor=colour if dtype == "fp16" else "white",
                label=style.short(dtype),
            )  # fmt: skip
        axis.set(title=heading, xlabel="layer")
        axis.xaxis.get_major_locator().set_params(integer=True)
    axes[0, 0].set_ylabel("relative difference of\na token's hidden state")
    axes[0, 0].legend(loc="upper left")
    low, high = axes[0, 0].get_ylim()
    axes[0, 0].set_ylim(low, high * 3)  # room for the legend
    return made
