"""The Triton kernels of grouped against the reference: on a GPU, or else interpreted."""

from __future__ import annotations

import pytest
import torch

from sigeo_ext.gather import grouped_reference as reference
from sigeo_ext.sample_moments import matmul_precision, set_matmul_precision
from sigeo_ext.testing import assert_close, poison_empty
from tests.cases import needs_triton
from tests.grouped import EACH, mapped, op_call, outcome

kernels = pytest.importorskip("sigeo_ext.gather.triton", reason="needs triton")
slices = pytest.importorskip("sigeo_ext.gather.triton.slices", reason="needs triton")
pytestmark = needs_triton

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
OPS = pytest.mark.parametrize("op", ["", "_backward", "_accumulate"])


def agree(op, arguments, tolerance=None):
    """Results of the kernels and of the reference."""
    with poison_empty():
        got = outcome(getattr(kernels, f"linear{op}"), arguments)
    wide = mapped(torch.Tensor.double, arguments)
    expected = outcome(getattr(reference, f"linear{op}"), wide)
    for a, b in zip(got, expected, strict=True):
        assert a.dtype == arguments[1][0].dtype
        assert_close(a, b, tolerance=tolerance)


@EACH
@OPS
def test_equals_the_reference(name, op):
    _, arguments = op_call(name, op, DEVICE, strided=op != "_accumulate")
    agree(op, mapped(torch.Tensor.float, arguments))


@OPS
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_other_dtypes(op, dtype):
    if dtype == torch.bfloat16 and DEVICE == "cpu":
        pytest.skip("Triton's interpreter multiplies the bits of bfloat16 values as integers")
    _, arguments = op_call("many rows", op, DEVICE)
    agree(op, mapped(lambda t: t.to(dtype), arguments))


@pytest.mark.parametrize("need", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 0, 0)], ids=str)
def test_only_what_is_needed(need):
    _, arguments = op_call("prefixes", "_backward", DEVICE)
    arguments = [*mapped(torch.Tensor.float, arguments)[:-1], [bool(n) for n in need]]
    into_x, *rest = kernels.linear_backward(*arguments)
    assert len(into_x) == need[0] * 5
    assert [t.numel() > 0 for t in rest] == [bool(n) for n in need[1:]]
    agree("_backward", arguments)


def test_without_a_bias():
    _, arguments = op_call("many rows", "", DEVICE)
    arguments = mapped(torch.Tensor.float, arguments)
    agree("", [*arguments[:2], None, *arguments[3:]])


class Launches:
    """Stands where a kernel would, and notes the precision of its products."""

    def __init__(self):
        self.precisions = []

    def __getitem__(self, grid):
        return lambda *_, PRECISION, **constants: self.precisions.append(PRECISION)


@OPS
def test_products_are_formed_as_chosen(op, monkeypatch):
    launches = Launches()
    for name in ("rows_kernel", "weight_kernel"):
        monkeypatch.setattr(f"sigeo_ext.gather.triton.grouped.{name}", launches)
    for name in ("product_kernel", "gradient_kernel"):
        monkeypatch.setattr(f"sigeo_ext.gather.triton.slices.{name}", launches)
    _, arguments = op_call("prefixes", op, DEVICE)
    arguments = mapped(torch.Tensor.float, arguments)
    index = torch.arange(4, device=DEVICE)
    x, weight = torch.ones(2, 4, device=DEVICE), torch.ones(5, 5, device=DEVICE)
    listed = ([0, 4], [0, 4], index, index, False)
    before = matmul_precision()
    try:
        for precision in ("tf32", "ieee"):
            set_matmul_precision(precision)
            getattr(kernels, f"linear{op}")(*arguments)
            of_list = {
                "": (x, weight, None, *listed, False),
                "_backward": (x, x, weight, *listed, [True] * 3),
                "_accumulate": (x, x, weight, *listed),
            }
            getattr(slices, f"linear{op}")(*of_list[op])
            count = 4 if op == "_backward" else 2
            assert launches.precisions == [precision] * count
            launches.precisions.clear()
    finally:
        set_matmul_precision(before)


def test_weights_larger_than_a_tile_in_another_memory_order():
    generator = torch.Generator().manual_seed(0)

    def randn(*shape):
        return torch.randn(*shape, generator=generator).to(DEVICE)

    weight = randn(130, 150).t()
    x, d = [randn(70, 100), randn(5, 130)], [randn(70, 149), randn(5, 66)]
    windows = [1, 149, 80, 66], [30, 100, 0, 130]
    agree("", (x, weight, randn(150), *windows, False))
    agree("_backward", (d, x, weight, *windows, [True] * 3))
    agree("_accumulate", (d, x, weight, *windows))


def test_a_wrong_argument_is_named():
    _, arguments = op_call("chunks", "", DEVICE)
    arguments = mapped(torch.Tensor.float, arguments)
    with pytest.raises(RuntimeError, match="window each for 3 subnets, got 2 and 6"):
        kernels.linear(*arguments[:3], [0, 1], *arguments[4:])
