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

import torch

NATIVE_SUPPORT = {
    torch.float16: lambda: torch.ops.mkldnn._is_mkldnn_fp16_supported(),
    torch.bfloat16: lambda: torch.ops.mkldnn._is_mkldnn_bf16_supported(),
}


def is_native(dtype: torch.dtype) -> bool:
    """Whether torch has a fast kernel for products of this dtype on this CPU; always true of FP32 and FP64."""
    return dtype not in NATIVE_SUPPORT or bool(NATIVE_SUPPORT[dtype]())


class Fp32Accumulate:
    """The override, while it is held; ``remove()`` brings torch's kernels back. A process holds at most one.

    Args:
        dtypes: among ``torch.float16`` and ``torch.bfloat16``; only products of operands of these are changed.
    """

    def __init__(self, dtypes: set[torch.dtype]):
        assert dtypes and dtypes <= set(NATIVE_SUPPORT), dtypes
        self.dtypes = frozenset(dtypes)
        self._library = torch.library.Library("aten", "IMPL")
        with warnings.catch_warnings():  # that a kernel is overridden is the purpose
            warnings.filterwarnings("ignore", message=".*other operators may also be overridden.*")
            for name in ("mm", "addmm", "bmm", "baddbmm"):
                self._library.impl(name, getattr(self, f"_{name}"), "CPU", allow_override=True)

    def remove(self) -> None:
        self._library._destroy()

    # The ``out=`` variants are operators of their own, which are not overridden: they are the way to torch's kernels.

    def _mm(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        if a.dtype not in self.dtypes:
            return torch.mm(a, b, out=a.new_empty(0))
        return torch.mm(a.float(), b.float(), out=a.new_empty(0, dtype=torch.float32)).to(a.dtype)

    def _bmm(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        if a.dtype not in self.dtypes:
            return torch.bmm(a, b, out=a.new_empty(0))
        return torch.bmm(a.float(), b.float(), out=a.new_empty(0, dtype=torch.float32)).to(a.dtype)

    def _addmm(self, bias, a, b, *, beta=1, alpha=1) -> torch.Tensor:
        if a.dtype not in self.dtypes:
            return torch.addmm(bias, a, b, beta=beta, alpha=alpha, out=a.new_empty(0))
        result = a.new_empty(0, dtype=torch.float32)
        return torch.addmm(bias.float(), a.float(), b.float(), beta=beta, alpha=alpha, out=result).to(a.dtype)

    def _baddbmm(self, bias, a, b, *, beta=1, alpha=1) -> torch.Tensor:
        if a.dtype not in self.dtypes:
            return torch.baddbmm(bias, a, b, beta=beta, alpha=alpha, out=a.new_empty(0))
        result = a.new_empty(0, dtype=torch.float32)
        return torch.baddbmm(bias.float(), a.float(), b.float(), beta=beta, alpha=alpha, out=result).to(a.dtype)


def install(dtypes: set[torch.dtype], mode: str = "auto") -> Fp32Accumulate | None:
    """Give this process practical half-precision products, where the CPU has none.

    Args:
        dtypes: the dtypes that the two engines compute in.
        mode: ``"auto"`` overrides what is not native (and nothing where there is a GPU), ``"stock"`` leaves torch's
            kernels, ``"fp32-accumulate"`` overrides every half dtype, native or not.

    Returns:
        The override, to be removed by the caller if it wants to (a process keeps it as a rule); None if there is none.
    """
    chosen = set(NATIVE_SUPPORT) & dtypes
    if mode == "stock" or (mode == "auto" and torch.cuda.is_available()):
        return None
    if mode == "auto":
        chosen = {dtype for dtype in chosen if not is_native(dtype)}
    return Fp32Accumulate(chosen) if chosen else None
