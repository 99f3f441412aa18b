"""The slice ops beside plain torch: transforms, autocast, small weights."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from sigeo_ext.gather import slices
from sigeo_ext.testing import assert_close
from tests.slices import (
    MODES,
    convolution_case,
    linear_case,
)

pytestmark = pytest.mark.usefixtures("small_weights_through_ops")


@pytest.mark.parametrize("outputs", ["prefix", "list"])
@MODES
def test_transforms_of_functions_see_through(outputs, masked, device):
    leaves, given, _ = linear_case(outputs, "prefix", masked, torch.float64, device)
    x, *rest = (v.detach() for v in leaves)

    def loss(weight, bias, x):
        return (slices.linear(x, weight, bias, **given) ** 2).sum()

    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, None, 0))(*rest, x)
    for row, got in zip(x, each, strict=True):
        weight = rest[0].clone().requires_grad_()
        (expected,) = torch.autograd.grad(loss(weight, rest[1], row), weight)
        assert_close(got, expected)


@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
@MODES
def test_transforms_see_through_convolutions(last, masked, device):
    leaves, given, _ = convolution_case(
        "2d", "prefix", "chunk", masked, torch.float64, device, last=last
    )
    x, weight, bias = (v.detach() for v in leaves)

    def loss(weight, x):
        return (slices.convolution(x[None], weight, bias, **given) ** 2).sum()

    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(weight, x)
    for row, got in zip(x, each, strict=True):
        leaf = weight.clone().requires_grad_()
        (expected,) = torch.autograd.grad(loss(leaf, row), leaf)
        assert_close(got, expected)


@pytest.mark.parametrize("outputs", ["all", "prefix", "chunk"])
def test_small_weights_go_through_plain_slices_to_the_same_bits(outputs, monkeypatch, device):
    for case in (linear_case, partial(convolution_case, "2d")):
        function = slices.linear if case is linear_case else slices.convolution
        found = []
        for limit in (-1, 1 << 18):
            monkeypatch.setattr(slices, "SMALL", limit)
            leaves, given, _ = case(outputs, "chunk", False, torch.float64, device)
            y = function(*leaves, **given)
            found.append([y, *torch.autograd.grad((y**2).sum(), leaves)])
        for a, b in zip(*found, strict=True):
            assert_close(a, b)


@pytest.mark.parametrize("outputs", ["prefix", "list"])
@MODES
def test_autocast_converts(outputs, masked, device):
    leaves, given, expected = linear_case(outputs, "prefix", masked, torch.float32, device)
    with torch.autocast(device, torch.bfloat16):
        got = slices.linear(*leaves, **given)
    assert got.dtype == torch.bfloat16
    assert_close(got, expected, tolerance=2e-2)
