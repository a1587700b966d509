"""Row blocks on the CPU: a row's product does not depend on how many rows there are."""

import pytest
import torch

from actors.batch_invariant import RowBlocks
from actors.cpu_half import Fp32Accumulate

SHAPES = [(96, 40), (576, 192)]


@pytest.fixture(params=["stock", "fp32-accumulate"])
def row_blocks(request):
    half = Fp32Accumulate({torch.float16}) if request.param == "fp32-accumulate" else None
    override = RowBlocks(half)
    yield override
    override.remove()
    if half is not None:
        half.remove()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("inner", "outer"), SHAPES)
def test_a_row_is_the_same_in_any_batch(row_blocks, dtype, inner, outer):
    torch.manual_seed(0)
    rows, weight = torch.randn(150, inner).to(dtype), torch.randn(outer, inner).to(dtype)
    bias = torch.randn(outer).to(dtype)
    whole = torch.nn.functional.linear(rows, weight)
    with_bias = torch.nn.functional.linear(rows, weight, bias)
    for count in (1, 2, 7, 16, 17, 149):
        picked = torch.randperm(150)[:count]
        assert torch.equal(torch.nn.functional.linear(rows[picked], weight), whole[picked])
        assert torch.equal(torch.nn.functional.linear(rows[picked], weight, bias), with_bias[picked])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_products_stay_right(row_blocks, dtype):
    torch.manual_seed(1)
    rows, weight = torch.randn(37, 64).to(dtype), torch.randn(64, 24).to(dtype)
    bias = torch.randn(24).to(dtype)
    exact = rows.double() @ weight.double()
    tolerance = {torch.float32: 1e-5, torch.float16: 2e-2, torch.bfloat16: 2e-1}[dtype]
    assert (torch.mm(rows, weight).double() - exact).abs().max() < tolerance
    added = torch.addmm(bias, rows, weight, beta=2, alpha=0.5)
    assert (added.double() - (2 * bias.double() + 0.5 * exact)).abs().max() < tolerance
    assert torch.mm(rows[:0], weight).shape == (0, 24)


def test_the_kernels_come_back(row_blocks):
    rows = torch.randn(3, 8)
    row_blocks.remove()
    assert torch.equal(torch.mm(rows, rows.T), torch.mm(rows, rows.T, out=torch.empty(0)))
    row_blocks._library = torch.library.Library("aten", "IMPL")  # for the fixture to remove
