"""What the grouped ops compute, in plain torch: one subnet after another.

The windows [begin, length] of all subnets lie end to end in one list.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from operator import add

import torch
import torch.nn.functional as F
from torch import Tensor

from sigeo_ext import _check
from sigeo_ext.gather.selection import check_dtypes, check_width, select
from sigeo_ext.gather.slices_checks import check_bias
from sigeo_ext.gather.slices_reference import rows_of
from sigeo_ext.sample_moments.reference import check_units, of_units

Windows = Sequence[int]


def window(windows: Windows, subnet: int) -> list[int]:
    """The window of one subnet."""
    return list(windows[2 * subnet : 2 * subnet + 2])


def part_of(weight: Tensor, outputs: Windows, inputs: Windows, subnet: int) -> Tensor:
    """A subnet's part of the weight, a view."""
    rows = select(weight, 0, window(outputs, subnet), None)
    return select(rows, 1, window(inputs, subnet), None)


def check_subnets(
    op: str, x: Sequence[Tensor], weight: Tensor, outputs: Windows, inputs: Windows
) -> None:
    """Require inputs that fit the subnets' windows of the weight."""
    if weight.dim() != 2:
        got = f"got {list(weight.shape)}"
        _check.require(False, op, f"weight must be [outputs, inputs], {got}")
    if len(outputs) != 2 * len(x) or len(inputs) != 2 * len(x):
        expected = f"outputs and inputs must be a window each for {len(x)} subnets"
        _check.require(False, op, f"{expected}, got {len(outputs)} and {len(inputs)} numbers")
    sizes, dtype = weight.shape, weight.dtype
    for subnet, rows in enumerate(x):
        (o, width), (i, length) = window(outputs, subnet), window(inputs, subnet)
        fits = 0 <= o <= sizes[0] - width and 0 <= i <= sizes[1] - length
        whole = fits and width >= 0 and length >= 0
        if not (whole and rows.dim() and rows.shape[-1] == length and rows.dtype == dtype):
            _refuse(op, subnet, rows, weight, outputs, inputs)


def _refuse(
    op: str, subnet: int, x: Tensor, weight: Tensor, outputs: Windows, inputs: Windows
) -> None:
    """Say what does not fit."""
    for name, windows, size in (
        ("outputs", outputs, weight.shape[0]),
        ("inputs", inputs, weight.shape[1]),
    ):
        begin, length = window(windows, subnet)
        fits = begin >= 0 and length >= 0 and begin + length <= size
        _check.require(fits, op, f"{name}[{subnet}] must be a window of {size} places")
    check_width(op, f"x[{subnet}]", x, -1, 0, False, window(inputs, subnet), None)
    check_dtypes(op, x, weight)


def check_gradients(op: str, d: Sequence[Tensor], x: Sequence[Tensor], outputs: Windows) -> None:
    """Require gradients of the outputs that such inputs give."""
    expected = f"d must hold one tensor a subnet, {len(x)}, got {len(d)}"
    _check.require(len(d) == len(x), op, expected)
    for subnet, (gradient, rows) in enumerate(zip(d, x, strict=True)):
        check_width(op, f"d[{subnet}]", gradient, -1, 0, False, window(outputs, subnet), None)
        if gradient.dtype != rows.dtype:
            expected = f"d[{subnet}] must be {_check.dtype_of(rows)} like x[{subnet}]"
            _check.require(False, op, f"{expected}, got {_check.dtype_of(gradient)}")
        count, got = (math.prod(t.shape[:-1]) for t in (rows, gradient))
        if got != count:
            expected = f"d[{subnet}] must have the {count} rows of x[{subnet}], got {got}"
            _check.require(False, op, expected)


def linear(
    x: Sequence[Tensor],
    weight: Tensor,
    bias: Tensor | None,
    outputs: Windows,
    inputs: Windows,
    accumulate: bool,
) -> list[Tensor]:
    """Each subnet's layer on its part of the weight; differentiable as it stands.

    Raises:
        RuntimeError: Windows or inputs that do not fit.
    """
    every, whole = weight.shape if weight.dim() == 2 else (-1, -1)
    fits = len(outputs) == len(inputs) == 2 * len(x) and min(*outputs, *inputs, 0) >= 0
    fits = fits and max(map(add, outputs[::2], outputs[1::2]), default=0) <= every
    fits = fits and max(map(add, inputs[::2], inputs[1::2]), default=0) <= whole
    if not fits:
        check_subnets("gather_grouped_linear", x, weight, outputs, inputs)
    return in_windows(x, weight, bias, outputs, inputs)


def in_windows(
    x: Sequence[Tensor], weight: Tensor, bias: Tensor | None, outputs: Windows, inputs: Windows
) -> list[Tensor]:
    """As `linear`, where the weight is known to have the windows.

    Raises:
        RuntimeError: Inputs or a bias that do not fit.
    """
    op = "gather_grouped_linear"
    check_bias(op, bias, weight)
    windows = (outputs[::2], outputs[1::2], inputs[::2], inputs[1::2])
    try:
        # Slices in one call a tensor: `narrow`, one a dimension, takes half as long again.
        return [
            F.linear(
                rows,
                weight[o : o + height, i : i + width],
                None if bias is None else bias[o : o + height],
            )
            for rows, o, height, i, width in zip(x, *windows, strict=True)
        ]
    except RuntimeError:
        # Only now: for a few small layers the checks would take a tenth of the time.
        check_subnets(op, x, weight, outputs, inputs)
        raise


def linear_backward(
    d: Sequence[Tensor],
    x: Sequence[Tensor],
    weight: Tensor,
    outputs: Windows,
    inputs: Windows,
    need: Sequence[bool],
) -> tuple[list[Tensor], Tensor, Tensor]:
    """Gradients of the inputs, the super-weight and its bias, as far as needed."""
    op = "gather_grouped_linear_backward"
    check_subnets(op, x, weight, outputs, inputs)
    check_gradients(op, d, x, outputs)
    into_x: list[Tensor] = []
    if need[0]:
        into_x = [
            torch.mm(rows_of(gradient), part_of(weight, outputs, inputs, s)).view(x[s].shape)
            for s, gradient in enumerate(d)
        ]
    into_weight = weight.new_empty(0)
    if need[1]:
        into_weight = torch.zeros_like(weight, memory_format=torch.preserve_format)
        _add(d, x, into_weight, outputs, inputs)
    return into_x, into_weight, bias_gradient(d, weight, outputs, need[2])


def bias_gradient(d: Sequence[Tensor], weight: Tensor, outputs: Windows, needed: bool) -> Tensor:
    """[outputs], each subnet's sum over rows in its window; empty if not needed."""
    into = weight.new_zeros(len(weight) if needed else 0)
    for subnet, gradient in enumerate(d if needed else ()):
        into.narrow(0, *window(outputs, subnet)).add_(rows_of(gradient).sum(0))
    return into


def linear_accumulate(
    d: Sequence[Tensor], x: Sequence[Tensor], into: Tensor, outputs: Windows, inputs: Windows
) -> None:
    """Add the weight's gradient to ``into``, the gradient of the whole super-weight."""
    op = "gather_grouped_linear_accumulate"
    check_subnets(op, x, into, outputs, inputs)
    check_gradients(op, d, x, outputs)
    _add(d, x, into, outputs, inputs)


def _add(
    d: Sequence[Tensor], x: Sequence[Tensor], into: Tensor, outputs: Windows, inputs: Windows
) -> None:
    for subnet, (gradient, rows) in enumerate(zip(d, x, strict=True)):
        part = part_of(into, outputs, inputs, subnet)
        part.addmm_(rows_of(gradient).t(), rows_of(rows))


def moments(
    x: Sequence[Tensor],
    d: Sequence[Tensor],
    size: Sequence[int],
    outputs: Windows,
    inputs: Windows,
    want: int,
) -> list[Tensor]:
    """Statistics over the subnets' gradients [outputs, inputs], and sq_norm [subnets]."""
    op = "gather_grouped_moments"
    _check.require(len(x) > 0, op, "x must hold at least one subnet, got none")
    sized = len(size) == 2 and min(size) >= 0
    _check.require(sized, op, "size must be that of the weight, [outputs, inputs]")
    for subnet, rows in enumerate(x):
        fits = rows.dtype == x[0].dtype and rows.dtype in (torch.float32, torch.float64)
        if not fits:
            expected = f"x[{subnet}] must be float32 or float64 and like x[0]"
            _check.require(False, op, f"{expected}, got {_check.dtype_of(rows)}")
    check_subnets(op, x, x[0].new_empty(1).expand(*size), outputs, inputs)
    check_gradients(op, d, x, outputs)
    check_units(op, len(x), 1, 1, want)
    gradients = _gradients(x, d, size, outputs, inputs)
    results = of_units(gradients, x[0], size, len(x), 1, want, 1.0)
    return [result if result.dim() == 1 else result[0] for result in results]


def _gradients(
    x: Sequence[Tensor],
    d: Sequence[Tensor],
    size: Sequence[int],
    outputs: Windows,
    inputs: Windows,
) -> Iterator[Tensor]:
    """Each subnet's gradient of the whole weight.

    Yields:
        [outputs, inputs], float64, zero outside the subnet's windows.
    """
    for subnet, (gradient, rows) in enumerate(zip(d, x, strict=True)):
        whole = rows.new_zeros(*size, dtype=torch.float64)
        part = part_of(whole, outputs, inputs, subnet)
        part.addmm_(rows_of(gradient).double().t(), rows_of(rows).double())
        yield whole
