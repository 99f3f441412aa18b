"""Parts of super-weights as data, and plain torch's answers, for the tests of slices."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sigeo_ext.testing import assert_close

WIDE = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}
MODES = pytest.mark.parametrize("masked", [False, True], ids=["clean", "masked"])
# By name: the selection of n places.
SELECTIONS = {
    "all": lambda n: None,
    "prefix": lambda n: (n + 1) // 2,
    "none": lambda n: 0,
    "chunk": lambda n: slice(n // 3, n),
    "list": lambda n: torch.randperm(n, generator=torch.Generator().manual_seed(n))[: n // 2 + 1],
    "ascending": lambda n: SELECTIONS["list"](n).sort().values,
    "empty list": lambda n: torch.zeros(0, dtype=torch.int64),
}
_FIVE = [name for name in SELECTIONS if name not in ("ascending", "empty list")]
OUTPUTS = pytest.mark.parametrize("outputs", _FIVE)
INPUTS = pytest.mark.parametrize("inputs", _FIVE)


def randn(*shape, dtype=torch.float64, seed=0, device="cpu"):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator).to(device, dtype)


def chosen(name, size, device="cpu"):
    """A selection for the function under test, and the list of its places."""
    selection = SELECTIONS[name](size)
    places = torch.arange(size)
    if isinstance(selection, int):
        places = places[:selection]
    elif selection is not None:
        places = places[selection]
    if isinstance(selection, Tensor):
        selection = selection.to(device)
    return selection, places.to(device)


def hidden(y, dim, places):
    """Zeros where a place is not listed."""
    mask = torch.zeros(y.shape[dim], dtype=torch.bool, device=y.device)
    mask[places] = True
    shape = [1] * y.dim()
    shape[dim] = -1
    return torch.where(mask.view(shape), y, torch.zeros_like(y))


def agree(got, expected, leaves, dtype):
    """Outputs and gradients."""
    assert got.shape == expected.shape and got.dtype == dtype
    assert_close(got, expected, tolerance=TOLERANCE[dtype])
    d = randn(*expected.shape, dtype=dtype, seed=99, device=expected.device)
    found = torch.autograd.grad((got * d).sum(), leaves)
    judge = torch.autograd.grad((expected * d).sum(), leaves, allow_unused=True)
    for leaf, a, b in zip(leaves, found, judge, strict=True):
        assert a.shape == leaf.shape
        assert_close(a, torch.zeros_like(leaf) if b is None else b, tolerance=TOLERANCE[dtype])


def linear_case(outputs, inputs, masked, dtype, device, size=(7, 6), batch=(3, 4), bias=True):
    rows, o = chosen(outputs, size[0], device)
    columns, i = chosen(inputs, size[1], device)
    weight = randn(*size, dtype=dtype, seed=1, device=device).requires_grad_()
    shift = randn(size[0], dtype=dtype, seed=2, device=device).requires_grad_() if bias else None
    width = size[1] if masked else len(i)
    x = randn(*batch, width, dtype=dtype, seed=3, device=device).requires_grad_()
    if masked:
        whole = F.linear(hidden(x, -1, i), weight, shift)
        expected = hidden(whole, -1, o)
    else:
        expected = F.linear(x, weight[o][:, i], shift[o] if bias else None)
    leaves = [x, weight, shift] if bias else [x, weight]
    given = {"outputs": rows, "inputs": columns, "masked": masked}
    return leaves, given, expected


CONVOLUTIONS = {
    "1d": ((4, 6, 5), 1, {"padding": 1}),
    "2d": ((5, 4, 3, 3), 1, {"padding": 1, "stride": 2}),
    "2d, dilated": ((5, 4, 3, 3), 1, {"padding": (2, 1), "dilation": (2, 1)}),
    "3d": ((4, 3, 3, 1, 2), 1, {}),
    "depthwise": ((6, 1, 3, 3), 6, {"padding": 1}),
    "depthwise, doubled": ((12, 1, 3), 6, {}),
}


def convolution_case(
    name, outputs, inputs, masked, dtype, device, *, kernel=None, last=False, into=None
):
    shape, groups, options = CONVOLUTIONS[name] if into is None else into
    rows, o = chosen(outputs, shape[0], device)
    columns, i = chosen(inputs, shape[1] * groups, device)
    if groups > 1:
        each, rows = shape[0] // groups, None
        first = i[:: shape[1]] // shape[1] if len(i) else i
        o = (first[:, None] * each + torch.arange(each, device=device)).flatten()
    weight = randn(*shape, dtype=dtype, seed=1, device=device).requires_grad_()
    bias = randn(shape[0], dtype=dtype, seed=2, device=device).requires_grad_()
    size = [7, 6, 5][: len(shape) - 2]
    width = shape[1] * groups if masked else len(i)
    x = randn(2, width, *size, dtype=dtype, seed=3, device=device)
    if last:
        x = x.contiguous(memory_format=torch.channels_last)
        weight = weight.detach().contiguous(memory_format=torch.channels_last).requires_grad_()
    x.requires_grad_()
    function = (F.conv1d, F.conv2d, F.conv3d)[len(size) - 1]
    cut = weight
    if kernel is not None:
        for dim in range(2, len(shape)):
            cut = cut.narrow(dim, (shape[dim] - kernel) // 2, kernel)
    if masked:
        whole = function(hidden(x, 1, i), cut, bias, groups=groups, **options)
        expected = hidden(whole, 1, o)
    else:
        part = cut[o] if groups > 1 else cut[o][:, i]
        selected = len(i) // shape[1] if groups > 1 else 1
        if len(o) == 0:
            size = function(randn(2, shape[1] * groups, *size), cut.double(), None, groups=groups,
                            **options).shape[2:]  # fmt: skip
            expected = x.sum() * 0 + x.new_zeros(2, 0, *size)
        elif len(i) == 0:
            whole = function(x.new_zeros(2, shape[1], *size), cut[o], bias[o], **options)
            expected = whole
        else:
            expected = function(x, part, bias[o], groups=selected, **options)
    given = {"outputs": rows, "inputs": columns, "kernel": kernel, "groups": groups, **options}
    return [x, weight, bias], {**given, "masked": masked}, expected
