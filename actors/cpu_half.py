"""Half-precision matrix products on CPUs that have none: accumulate in FP32, round the result to half.

That is the contract of a GPU's tensor cores, and it is what this module gives ATen's ``mm``, ``addmm``, ``bmm`` and
``baddbmm`` for FP16 or BF16 operands on the CPU: each operand is widened (exactly) to FP32, the product is computed by
the FP32 BLAS, bias and scaling are applied in FP32, and the sum is rounded once, to nearest even. Both engines and both
directions, forward and backward, go through these four operators, so one override serves the whole process.

Without it, torch falls back to a scalar loop on such CPUs, some ten to fifty times slower than FP32. It is switched on
only for a dtype for which the CPU has no native product (FP16 almost everywhere, BF16 before AVX-512), and never
touches a GPU: the override is registered for the CPU dispatch key alone. Operands of any other dtype pass through to
torch's own kernels.
"""

import warnings
from functools import partial

import torch

NATIVE_SUPPORT = {  # whether torch has a fast kernel for products of a half dtype on this CPU
    torch.float16: lambda: torch.ops.mkldnn._is_mkldnn_fp16_supported(),
    torch.bfloat16: lambda: torch.ops.mkldnn._is_mkldnn_bf16_supported(),
}


class CpuProducts:
    """``product(operator, *operands, **scaling)`` in the place of some of ATen's products on the CPU, while it is held;
    ``remove()`` brings torch's kernels back. Of each kind a process holds at most one.

    Args:
        names: of operators such as "mm"; ``product`` gets ``torch.mm``, the operands, a bias first, and the bias's
            ``beta`` and ``alpha``.
    """

    def __init__(self, *names: str):
        self._library = torch.library.Library("aten", "IMPL")
        with warnings.catch_warnings():  # that a kernel is overridden is the purpose
            warnings.filterwarnings("ignore", message=".*overrid.*")
            for name in names:
                kernel = partial(self.product, getattr(torch, name))
                self._library.impl(name, kernel, "CPU", allow_override=True)

    def remove(self) -> None:
        self._library._destroy()


class Fp32Accumulate(CpuProducts):
    """Half products, accumulated in FP32.

    Args:
        dtypes: among ``torch.float16`` and ``torch.bfloat16``; only products of operands of these are changed.
    """

    def __init__(self, dtypes: set[torch.dtype]):
        assert dtypes and dtypes <= set(NATIVE_SUPPORT), dtypes
        self.dtypes = frozenset(dtypes)
        super().__init__("mm", "addmm", "bmm", "baddbmm")

    def product(self, operator, *operands: torch.Tensor, **scaling) -> torch.Tensor:
        # The ``out=`` variants are operators of their own, which are not overridden: the way to torch's kernels.
        a = operands[-2]
        if a.dtype not in self.dtypes:
            return operator(*operands, **scaling, out=a.new_empty(0))
        result = a.new_empty(0, dtype=torch.float32)
        return operator(*(operand.float() for operand in operands), **scaling, out=result).to(a.dtype)


def install(dtypes: set[torch.dtype], mode: str = "auto") -> Fp32Accumulate | None:
    """Give this process practical half-precision products, where the CPU has none.

    Args:
        dtypes: the dtypes that the two engines compute in.
        mode: ``"auto"`` overrides what is not native (and nothing where there is a GPU), ``"stock"`` leaves torch's
            kernels, ``"fp32-accumulate"`` overrides every half dtype, native or not.

    Returns:
        The override, which a process keeps as a rule; None if there is none.
    """
    chosen = set(NATIVE_SUPPORT) & dtypes
    if mode == "stock" or (mode == "auto" and torch.cuda.is_available()):
        return None
    if mode == "auto":
        chosen = {dtype for dtype in chosen if not NATIVE_SUPPORT[dtype]()}
    return Fp32Accumulate(chosen) if chosen else None
