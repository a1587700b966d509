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

import torch

from actors.cpu_half import CpuProducts, Fp32Accumulate

ROWS = 16


class RowBlocks(CpuProducts):
    """The override for the CPU.

    Args:
        half: the half-precision products of this process (actors/cpu_half.py), which then compute the blocks; without
            them torch's own kernels do.
    """

    def __init__(self, half: Fp32Accumulate | None = None):
        self.half = half
        super().__init__("mm", "addmm")

    def product(self, operator, *operands: torch.Tensor, **scaling) -> torch.Tensor:
        *bias, a, b = operands
        rows = [*(part.expand(len(a), b.shape[1]) for part in bias), a]
        parts = zip(*map(_row_blocks, rows), strict=True)
        blocks = [self._block(operator, *part, b, **scaling) for part in parts]
        return torch.cat(blocks)[: len(a)] if blocks else a.new_zeros(0, b.shape[1])

    def _block(self, operator, *operands: torch.Tensor, **scaling) -> torch.Tensor:
        if self.half is not None:
            return self.half.product(operator, *operands, **scaling)
        return operator(*operands, **scaling, out=operands[-1].new_empty(0))


def _row_blocks(matrix: torch.Tensor) -> list[torch.Tensor]:
    """Blocks of exactly ``ROWS`` rows, the last filled up with zeros."""
    missing = -len(matrix) % ROWS
    if missing:
        matrix = torch.cat([matrix, matrix.new_zeros(missing, matrix.shape[1])])
    return list(matrix.split(ROWS)) if len(matrix) else []


def enable(half: Fp32Accumulate | None) -> bool:
    """Make what vLLM samples in this process independent of the batch; comes before vLLM is imported.

    Args:
        half: what `runtime.prepare` returned.

    Returns:
        Whether this device has what it takes.
    """
    if not torch.cuda.is_available():
        RowBlocks(half)  # torch holds it
        return True
    if torch.cuda.get_device_capability() < (8, 0):
        return False
    os.environ["VLLM_BATCH_INVARIANT"] = "1"
    return True
