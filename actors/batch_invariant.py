"""A response that is a function of its prompt, its seed and the weights, whatever is sampled beside it.

A matrix product may sum in another order when its left operand has another number of rows, as many as there are tokens
in the batch; the last bits of the logits then depend on who else is in the batch, and now and then a near tie is drawn
the other way. Where that must not be (an evaluation that goes on after a kill, a set built with and without early
stopping), the batch is taken out of the arithmetic:

- on a CPU, every product is computed in blocks of ``ROWS`` rows, the last one filled up with zeros. The other parts of
  vLLM's CPU backend (attention, normalisation, the seeded sampler) work row by row already.
- on a GPU, by vLLM's own batch-invariant kernels (``VLLM_BATCH_INVARIANT=1``, compute capability 8.0 and up).
"""

import os
import warnings

import torch

from actors.cpu_half import Fp32Accumulate

ROWS = 16


class RowBlocks:
    """The override for the CPU, while it is held; ``remove()`` takes it back. A process holds at most one.

    Args:
        half: the half-precision products of this process (actors/cpu_half.py), which then compute the blocks of the
            dtypes they serve; torch's own kernels compute the others.
    """

    def __init__(self, half: Fp32Accumulate | None = None):
        self.half = half
        self._library = torch.library.Library("aten", "IMPL")
        with warnings.catch_warnings():  # that a kernel is overridden is the purpose
            warnings.filterwarnings("ignore", message=".*overrid.*")
            self._library.impl("mm", self._mm, "CPU", allow_override=True)
            self._library.impl("addmm", self._addmm, "CPU", allow_override=True)

    def remove(self) -> None:
        self._library._destroy()

    def _mm(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        blocks = [self._block_mm(block, b) for block in _row_blocks(a)]
        return torch.cat(blocks)[: len(a)] if blocks else a.new_zeros(0, b.shape[1])

    def _addmm(self, bias, a, b, *, beta=1, alpha=1) -> torch.Tensor:
        bias = bias.expand(len(a), b.shape[1])
        pairs = zip(_row_blocks(bias), _row_blocks(a), strict=True)
        blocks = [self._block_addmm(*pair, b, beta, alpha) for pair in pairs]
        return torch.cat(blocks)[: len(a)] if blocks else a.new_zeros(0, b.shape[1])

    # The ``out=`` variants are operators of their own, which are not overridden: they are the way to torch's kernels.

    def _block_mm(self, a, b):
        if self.half is not None and a.dtype in self.half.dtypes:
            return self.half._mm(a, b)
        return torch.mm(a, b, out=a.new_empty(0))

    def _block_addmm(self, bias, a, b, beta, alpha):
        if self.half is not None and a.dtype in self.half.dtypes:
            return self.half._addmm(bias, a, b, beta=beta, alpha=alpha)
        return torch.addmm(bias, a, b, beta=beta, alpha=alpha, out=a.new_empty(0))


def _row_blocks(matrix: torch.Tensor) -> list[torch.Tensor]:
    """Blocks of exactly ``ROWS`` rows, the last filled up with zeros."""
    missing = -len(matrix) % ROWS
    if missing:
        matrix = torch.cat([matrix, matrix.new_zeros(missing, matrix.shape[1])])
    return list(matrix.split(ROWS)) if len(matrix) else []


def is_supported() -> bool:
    """Whether this device has what it takes."""
    return not torch.cuda.is_available() or torch.cuda.get_device_capability() >= (8, 0)


def enable(half: Fp32Accumulate | None) -> RowBlocks | None:
    """Make what vLLM samples in this process independent of the batch; comes before vLLM is imported.

    Args:
        half: what `runtime.prepare` returned.

    Returns:
        The override of a CPU; None on a GPU, where vLLM does it.
    """
    if torch.cuda.is_available():
        os.environ["VLLM_BATCH_INVARIANT"] = "1"
        return None
    return RowBlocks(half)
