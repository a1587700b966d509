"""log pi of chosen tokens from hidden states, never holding more logits than those of one chunk of tokens.

At 152k words of vocabulary the logits of 16,384 tokens are 5 GB in a half dtype, and every FP32 copy of them twice as
much. Here the product with the vocabulary runs over `CHUNK_TOKENS` tokens at a time, and its logits are widened in
blocks of some rows. What is kept for the backward pass is the hidden states and one number a token; the logits are
computed again there, and the gradient overwrites them in place. A batch of one chunk keeps its logits instead.
"""

from collections.abc import Iterator
from types import MethodType

import torch
from torch import Tensor, nn
from torch.nn import functional

CHUNK_TOKENS = 1024  # at 152k words, 0.3 GB of half logits
BLOCK_ELEMENTS = 2**24  # of logits widened at once: 64 MB


def give_log_probs(head: nn.Linear, temperature: float = 1.0, in_fp32: bool = False) -> None:
    """Let an output head take targets: ``head(hidden, targets)`` then gives their log-probabilities.

    ``head(hidden)`` gives logits as before. The head is a module that is called, once whatever the number of chunks,
    since ZeRO-3 gathers its weight at every call, together with the other processes.

    Args:
        head: changed in place.
        temperature: logits are divided by it.
        in_fp32: compute the product in FP32, so that logits are not rounded to the head's dtype.

    Raises:
        ValueError: the head is more than a product with a matrix (and a bias).
    """
    if type(head).forward is not nn.Linear.forward:
        raise ValueError(f"The model's output head is a {type(head).__name__}, and only a linear layer is supported.")

    def forward(self: nn.Linear, hidden: Tensor, targets: Tensor | None = None) -> Tensor:
        if targets is None:
            return _logits(hidden, self.weight, self.bias, in_fp32)
        return ChosenLogProbs.apply(hidden, self.weight, self.bias, targets, temperature, in_fp32)

    head.forward = MethodType(forward, head)


class ChosenLogProbs(torch.autograd.Function):
    """(N, H) hidden states, (V, H) weight, (V,) bias or None, (N,) int64 targets -> (N,) FP32 log-probabilities.

    log p(y) = z_y - logsumexp(z) with z = logits / temperature in FP32; d log p(y) / d z = onehot(y) - softmax(z).
    """

    @staticmethod
    def forward(ctx, hidden, weight, bias, targets, temperature, in_fp32):
        chosen = hidden.new_empty(len(hidden), dtype=torch.float32)
        normaliser = torch.empty_like(chosen)
        logits = None
        for rows in _slices(len(hidden), CHUNK_TOKENS):
            logits = _logits(hidden[rows], weight, bias, in_fp32)
            for block in _blocks(logits):
                z = _widen(logits[block], temperature)
                place = slice(rows.start + block.start, rows.start + block.stop)
                normaliser[place] = z.logsumexp(1)
                chosen[place] = z.gather(1, targets[place, None]).squeeze(1) - normaliser[place]
        ctx.save_for_backward(hidden, weight, bias, targets, normaliser)
        ctx.temperature, ctx.in_fp32 = temperature, in_fp32
        ctx.logits = logits if len(hidden) <= CHUNK_TOKENS and any(ctx.needs_input_grad) else None
        return chosen

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        hidden, weight, bias, targets, normaliser = ctx.saved_tensors
        of_hidden, of_weight, of_bias = ctx.needs_input_grad[:3]
        kept, ctx.logits = ctx.logits, None
        if len(hidden) <= CHUNK_TOKENS and kept is None and len(hidden):
            raise RuntimeError("This gradient can be computed once: the logits were overwritten by the first.")
        matrix = weight.float() if ctx.in_fp32 else weight
        hidden_gradient = torch.empty_like(hidden) if of_hidden else None
        weight_gradient = bias_gradient = None
        for rows in _slices(len(hidden), CHUNK_TOKENS):
            states = hidden[rows]
            logits = kept if kept is not None else _logits(states, weight, bias, ctx.in_fp32)
            _to_gradient(logits, targets[rows], normaliser[rows], gradient[rows], ctx.temperature)
            if of_hidden:
                hidden_gradient[rows] = logits @ matrix
            if of_weight:
                part = logits.t() @ states.to(logits.dtype)
                weight_gradient = part if weight_gradient is None else weight_gradient.float().add_(part)
            if of_bias:
                part = logits.sum(0, dtype=torch.float32)
                bias_gradient = part if bias_gradient is None else bias_gradient + part
        if of_weight:
            weight_gradient = torch.zeros_like(weight) if weight_gradient is None else weight_gradient.to(weight.dtype)
        if of_bias:
            bias_gradient = torch.zeros_like(bias) if bias_gradient is None else bias_gradient.to(bias.dtype)
        return hidden_gradient, weight_gradient, bias_gradient, None, None, None


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, in_fp32: bool) -> Tensor:
    if in_fp32:
        hidden, weight, bias = hidden.float(), weight.float(), None if bias is None else bias.float()
    return functional.linear(hidden, weight, bias)


def _widen(logits: Tensor, temperature: float) -> Tensor:
    wide = logits.float()
    return wide if temperature == 1 else wide / temperature


def _to_gradient(logits: Tensor, targets: Tensor, normaliser: Tensor, gradient: Tensor, temperature: float) -> None:
    """Overwrite logits by the loss's gradient with respect to them, rounded once to their dtype."""
    scale = (gradient / temperature)[:, None]
    for block in _blocks(logits):
        z = _widen(logits[block], temperature)
        part = z.sub_(normaliser[block, None]).exp_().mul_(-scale[block])
        part.scatter_add_(1, targets[block, None], scale[block])
        if part.data_ptr() != logits[block].data_ptr():
            logits[block] = part


def _slices(count: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, count)) for start in range(0, count, size))


def _blocks(logits: Tensor) -> Iterator[slice]:
    return _slices(len(logits), max(1, BLOCK_ELEMENTS // logits.shape[1]))
