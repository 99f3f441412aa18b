"""Slices on lists of places: those that ascend go eight words at a time, where the CPU can."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from sigeo_ext.gather import slices
from sigeo_ext.testing import assert_close, poison_empty
from tests.slices import (
    MODES,
    TOLERANCE,
    WIDE,
    agree,
    chosen,
    convolution_case,
    linear_case,
    randn,
)

pytestmark = pytest.mark.usefixtures("small_weights_through_ops")


@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("kernel", [1, 3])
@MODES
@WIDE
def test_convolutions_on_lists_that_ascend(last, kernel, masked, dtype, device):
    leaves, given, expected = convolution_case(
        "", "ascending", "ascending", masked, dtype, device,
        kernel=kernel, last=last, into=((33, 30, 3, 3), 1, {}),
    )  # fmt: skip
    agree(slices.convolution(*leaves, **given), expected, leaves, dtype)


@pytest.mark.parametrize("case", [linear_case, convolution_case], ids=["linear", "convolution"])
@pytest.mark.parametrize(
    ("outputs", "inputs"),
    [("empty list", "all"), ("all", "empty list"), ("list", "empty list"), ("empty list",) * 2],
)
@MODES
@WIDE
def test_lists_without_places(case, outputs, inputs, masked, dtype, device):
    layer, name = (slices.linear, []) if case is linear_case else (slices.convolution, ["2d"])
    leaves, given, expected = case(*name, outputs, inputs, masked, dtype, device)
    with poison_empty():
        agree(layer(*leaves, **given), expected, leaves, dtype)


@pytest.mark.parametrize("outputs", ["chunk", "list", "ascending"])
@pytest.mark.parametrize("inputs", ["chunk", "list", "ascending"])
def test_a_transposed_weight(outputs, inputs, device):
    (x, _, bias), given, _ = linear_case(
        outputs, inputs, False, torch.float64, device, size=(40, 30)
    )
    weight = randn(30, 40, seed=5, device=device).t().requires_grad_()
    rows, columns = chosen(outputs, 40, device)[1], chosen(inputs, 30, device)[1]
    expected = F.linear(x, weight[rows][:, columns], bias[rows])
    with poison_empty():
        agree(slices.linear(x, weight, bias, **given), expected, [x, weight, bias], torch.float64)


@pytest.mark.parametrize("inputs", ["all", "chunk", "list", "ascending"])
@pytest.mark.parametrize("accumulate", [False, True], ids=["anew", "in place"])
@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str
)
def test_a_transposed_table(inputs, accumulate, dtype, device):
    tokens = torch.randint(40, (50,), generator=torch.Generator().manual_seed(0)).to(device)
    columns, places = chosen(inputs, 30, device)
    table = randn(30, 40, dtype=dtype, seed=1, device=device).t().requires_grad_()
    plain = table.detach().clone(memory_format=torch.contiguous_format).requires_grad_()
    d = randn(50, len(places), dtype=dtype, seed=2, device=device)
    if accumulate:
        table.grad, plain.grad = torch.ones_like(table), torch.ones_like(plain)
    slices.embedding(tokens, table, columns=columns, accumulate=accumulate).backward(d)
    F.embedding(tokens, plain[:, places]).backward(d)
    assert_close(table.grad, plain.grad)


@pytest.mark.parametrize("inputs", ["list", "ascending"])
@WIDE
def test_a_gradient_is_added_in_place_and_the_rest_of_it_stays(inputs, dtype, device):
    tokens = torch.randint(40, (50,), generator=torch.Generator().manual_seed(0)).to(device)
    columns, places = chosen(inputs, 30, device)
    weight = randn(40, 30, dtype=dtype, seed=1, device=device).requires_grad_()
    x = randn(6, len(places), dtype=dtype, seed=2, device=device)

    def ours():
        y = slices.linear(x, weight, outputs=columns, inputs=columns, accumulate=True)
        rows = slices.embedding(tokens, weight, columns=columns, accumulate=True)
        return y.square().sum() + rows.square().sum()

    plain = (
        F.linear(x, weight[places][:, places]).square().sum()
        + F.embedding(tokens, weight[:, places]).square().sum()
    )
    (expected,) = torch.autograd.grad(plain, weight)
    weight.grad = randn(40, 30, dtype=dtype, seed=3, device=device)
    before, kept = weight.grad.clone(), weight.grad
    ours().backward()
    assert weight.grad is kept
    assert_close(weight.grad, before + expected, tolerance=TOLERANCE[dtype])
    rest = torch.ones(30, dtype=torch.bool, device=device)
    rest[places] = False
    assert torch.equal(weight.grad[:, rest], before[:, rest])
