"""Subnets of different widths as data, and plain torch's answers, for the tests of grouped."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sigeo_ext import implementations
from sigeo_ext.gather import grouped_op
from tests.slices import randn


class Subnets(NamedTuple):
    """Rows (or a shape of them), outputs and inputs, one a subnet, of a super-weight."""

    size: tuple[int, int]
    rows: list[int | tuple[int, ...]]
    outputs: list[int | slice | None] | None
    inputs: list[int | slice | None] | None


CASES = {
    "one": Subnets((7, 5), [3], [4], [3]),
    "whole": Subnets((7, 5), [3, 2], None, None),
    "duplicates": Subnets((7, 5), [3, 3, 3], [4, 4, 4], [3, 3, 3]),
    "nested": Subnets((9, 6), [3, 1, 2, 4], [9, 2, 5, 2], [4, 4, 4, 4]),
    "prefixes": Subnets((9, 6), [3, 1, 2, 5, 2], [9, 2, 5, 5, 1], [2, 6, 4, 4, 2]),
    "chunks": Subnets(
        (9, 6), [2, 3, 4], [slice(2, 7), slice(2, 5), slice(None, 4)], [slice(1, 4)] * 2 + [3]
    ),
    "apart": Subnets((8, 8), [2, 2], [slice(0, 3), slice(4, 8)], [slice(5, 8), slice(0, 2)]),
    "some empty": Subnets((7, 5), [0, 3, 0, 2], [4, 7, 7, 4], [3, 5, 5, 3]),
    "all empty": Subnets((7, 5), [0, 0], [4, 7], [3, 5]),
    "no width": Subnets((7, 5), [2, 3, 2, 4], [0, 4, 0, 4], [3, 0, 0, 3]),
    "shapes": Subnets((7, 5), [(2, 3), (), (2, 0, 3), (1, 2, 2)], [4, 7, 4, 2], [3, 5, 3, 3]),
    "many rows": Subnets((70, 50), [90, 3, 40, 64, 5], [30, 70, 30, 70, 11], [50, 50, 50, 20, 50]),
    "several stacks": Subnets((20, 10), [50] * 12, [*range(9, 21)], [10] * 12),
}
COMPILED = pytest.mark.skipif(
    implementations()["gather_grouped_linear"]["cpu"] == "reference",
    reason="bits of the library's own threads are the library's",
)
EACH = pytest.mark.parametrize("name", list(CASES))


def places(window, size):
    """Of a window, as a slice."""
    return slice(None, window) if isinstance(window, int) else window or slice(None)


def shape_of(rows):
    return rows if isinstance(rows, tuple) else (rows,)


def parts_of(case: Subnets) -> list[tuple[slice, slice]]:
    """Where each subnet's part of the weight lies."""
    count = len(case.rows)
    return [
        (places(o, case.size[0]), places(i, case.size[1]))
        for o, i in zip(case.outputs or [None] * count, case.inputs or [None] * count, strict=True)
    ]


class Problem(NamedTuple):
    """Leaves, arguments and the answers of plain slices."""

    x: list[Tensor]
    weight: Tensor
    bias: Tensor | None
    given: dict[str, object]
    expected: list[Tensor]

    @property
    def leaves(self) -> list[Tensor]:
        return [*self.x, self.weight, *([] if self.bias is None else [self.bias])]


def problem(name, dtype=torch.float64, device="cpu", bias=True, strided=False) -> Problem:
    """A case with values."""
    case = CASES[name]
    weight = randn(*case.size, dtype=dtype, seed=1, device=device).requires_grad_()
    shift = randn(case.size[0], dtype=dtype, seed=2, device=device) if bias else None
    x = []
    for s, (rows, (_, i)) in enumerate(zip(case.rows, parts_of(case), strict=True)):
        width = len(range(case.size[1])[i])
        values = randn(*shape_of(rows), width, 2, dtype=dtype, seed=3 + s, device=device)
        values = values[..., 0] if strided else values[..., 0].contiguous()
        x.append(values.detach().requires_grad_())
    if shift is not None:
        shift.requires_grad_()
    expected = [
        F.linear(rows, weight[o, i], None if shift is None else shift[o])
        for rows, (o, i) in zip(x, parts_of(case), strict=True)
    ]
    given = {"outputs": case.outputs, "inputs": case.inputs}
    return Problem(x, weight, shift, given, expected)


def op_call(name, op, device="cpu", strided=False):
    """A grouped linear op and its arguments, of all three by the end of its name."""
    case, size = problem(name, device=device, strided=strided), CASES[name].size
    x = [v.detach() for v in case.x]
    d = [randn(*y.shape, 2, seed=9, device=device)[..., 0] for y in case.expected]
    if not strided:
        d = [v.contiguous() for v in d]
    windows = [[], []]
    for places in parts_of(CASES[name]):
        for window, place, count in zip(windows, places, size, strict=True):
            begin, end, _ = place.indices(count)
            window += [begin, end - begin]
    weight, bias = case.weight.detach(), case.bias.detach()
    arguments = {
        "": (x, weight, bias, *windows, False),
        "_backward": (d, x, weight, *windows, [True, True, True]),
        "_accumulate": (d, x, weight, *windows),
    }
    return getattr(grouped_op, f"gather_grouped_linear{op}"), arguments[op]


def mapped(function, arguments):
    """The tensors among arguments, and in lists, through a function."""
    return [
        function(v)
        if isinstance(v, Tensor)
        else [function(t) if isinstance(t, Tensor) else t for t in v]
        if isinstance(v, list)
        else v
        for v in arguments
    ]


def outcome(op, arguments):
    """Results, or what was written, as one list."""
    arguments = mapped(torch.clone, arguments)
    result = op(*arguments)
    if result is None:
        return [arguments[2]]
    if isinstance(result, tuple):
        return [*result[0], *result[1:]]
    return result
