"""The FP32-accumulate products against FP64, bit for bit against their definition, forward and backward."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from actors import cpu_half

HALVES = [torch.float16, torch.bfloat16]


@pytest.fixture
def override():
    held = cpu_half.install(set(HALVES), "fp32-accumulate")
    yield held
    held.remove()


def rounded(exact: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return exact.to(dtype)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("operation", ["mm", "addmm", "bmm", "baddbmm"])
def test_result_is_the_rounded_fp32_product(override, operation, dtype):
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator).to(dtype)

    batch = (3,) if "b" in operation.removeprefix("add")[:1] or operation == "baddbmm" else ()
    a, b, bias = draw(*batch, 5, 70), draw(*batch, 70, 6), draw(*batch, 5, 6)
    function = getattr(torch, operation)
    if operation.endswith("addmm") or operation == "baddbmm":
        ours = function(bias, a, b, beta=0.5, alpha=2.0)
        wide = function(bias.float(), a.float(), b.float(), beta=0.5, alpha=2.0)
        exact = 0.5 * bias.double() + 2.0 * (a.double() @ b.double())
    else:
        ours, wide, exact = function(a, b), function(a.float(), b.float()), a.double() @ b.double()
    assert ours.dtype == dtype
    assert torch.equal(ours, rounded(wide, dtype))
    # Rounded once: within half a unit in the last place of the exact value, but for FP32's own accumulation error.
    unit = torch.finfo(dtype).eps * exact.abs().clamp(min=2.0**-6)
    assert ((ours.double() - exact).abs() <= 0.5 * unit + 1e-5).all()


@settings(max_examples=30, deadline=None)
@given(
    rows=st.integers(0, 9), inner=st.integers(0, 40), columns=st.integers(1, 9),
    scale=st.sampled_from([1e-3, 1.0, 30.0]), transposed=st.booleans(), seed=st.integers(0, 2**20),
)  # fmt: skip
def test_linear_layers_of_any_shape(rows, inner, columns, scale, transposed, seed):
    held = cpu_half.install({torch.float16}, "fp32-accumulate")
    try:
        generator = torch.Generator().manual_seed(seed)
        x = (torch.randn(2, rows, inner, generator=generator) * scale).half()
        weight = torch.randn(columns, inner, generator=generator).half()
        if transposed:
            weight = weight.t().contiguous().t()
        ours = torch.nn.functional.linear(x, weight)
        assert torch.equal(ours, (x.float() @ weight.float().t()).half())
    finally:
        held.remove()


@pytest.mark.parametrize("dtype", HALVES)
def test_backward_products_are_rounded_fp32_products_too(override, dtype):
    x, weight = torch.randn(4, 7, 33).to(dtype).requires_grad_(), torch.randn(5, 33).to(dtype).requires_grad_()
    upstream = torch.randn(4, 7, 5).to(dtype)
    torch.nn.functional.linear(x, weight).backward(upstream)
    flat = upstream.reshape(-1, 5).float()
    assert torch.equal(weight.grad, (flat.t() @ x.detach().reshape(-1, 33).float()).to(dtype))
    assert torch.equal(x.grad.reshape(-1, 33), (flat @ weight.detach().float()).to(dtype))


def test_other_dtypes_pass_through(override):
    a, b = torch.randn(4, 5, dtype=torch.float64), torch.randn(5, 6, dtype=torch.float64)
    assert torch.equal(a @ b, torch.einsum("ik,kj->ij", a, b))
    whole = torch.arange(6).reshape(2, 3)
    assert torch.equal(whole @ whole.t(), torch.tensor([[5, 14], [14, 50]]))


def test_overflow_becomes_infinite_as_on_a_tensor_core(override):
    a = torch.full((1, 2), 300.0).half()
    assert torch.isinf(a @ a.t()).all()  # 180,000 exceeds FP16's 65,504 only when it is rounded


def test_stock_leaves_torch_alone():
    assert cpu_half.install(set(HALVES), "stock") is None
    assert cpu_half.install({torch.float32}, "fp32-accumulate") is None


def test_auto_overrides_exactly_what_is_not_native(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setitem(cpu_half.NATIVE_SUPPORT, torch.bfloat16, lambda: True)
    monkeypatch.setitem(cpu_half.NATIVE_SUPPORT, torch.float16, lambda: False)
    held = cpu_half.install(set(HALVES), "auto")
    assert held.dtypes == {torch.float16}
    held.remove()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert cpu_half.install(set(HALVES), "auto") is None
