"""Rules of operations that give a tensor another shape."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from sigeo.capture.samples.axis import Axis, Lost, Where
from sigeo.capture.samples.axis_rules.registry import first, mixed, rule


@rule("view", "_unsafe_view", "reshape", "_reshape_alias", "unflatten", "flatten")
def _reshaped(given: list[Where], args: Any, kwargs: Any, result: Tensor) -> Where:
    axis, shape = first(given), args[0].shape
    inside = axis.inner * math.prod(shape[axis.dim + 1 :])  # entries from one sample to the next
    behind = 1
    for dim in reversed(range(result.dim())):
        size = result.shape[dim]
        if inside < behind * size or (dim == 0 and inside == behind * size):
            inner, rest = divmod(inside, behind)
            outer, left = divmod(size, axis.samples * inner) if inner else (0, 1)
            if rest or left or not outer:
                return Lost("a reshape broke the samples up")
            return Axis(dim, axis.samples, outer, inner)
        behind *= size
    return Lost("a reshape broke the samples up")


@rule("permute")
def _permuted(given: list[Where], args: Any, kwargs: Any, result: Tensor) -> Where:
    axis = first(given)
    dims = [d % result.dim() for d in args[1]]
    return axis.at(dims.index(axis.dim))


@rule("transpose", "t")
def _transposed(given: list[Where], args: Any, kwargs: Any, result: Tensor) -> Where:
    axis = first(given)
    dims = args[1:3] if len(args) > 1 else (0, 1)
    a, b = (d % max(1, result.dim()) for d in dims)
    return axis.at({a: b, b: a}.get(axis.dim, axis.dim))


@rule("expand")
def _expanded(given: list[Where], args: Any, kwargs: Any, result: Tensor) -> Where:
    axis = first(given)
    return axis.at(axis.dim + result.dim() - args[0].dim())


@rule("repeat")
def _repeated(given: list[Where], args: Any, kwargs: Any, result: Tensor) -> Where:
    """A dimension that is repeated holds its samples in as many more rounds."""
    axis = first(given)
    dim = axis.dim + result.dim() - args[0].dim()
    return Axis(dim, axis.samples, axis.outer * args[1][dim], axis.inner)


@rule("unsqueeze")
def _unsqueezed(given: list[Where], args: Any, kwargs: Any, result: Tensor) -> Where:
    axis = first(given)
    return axis.at(axis.dim + (args[1] % result.dim() <= axis.dim))


@rule("squeeze")
def _squeezed(given: list[Where], args: Any, kwargs: Any, result: Tensor) -> Where:
    axis, shape = first(given), args[0].shape
    named = args[1] if len(args) > 1 else range(len(shape))
    dims = {d % len(shape) for d in ([named] if isinstance(named, int) else named)}
    gone = {d for d in dims if shape[d] == 1}
    if axis.dim in gone:
        return Lost("a squeeze took the dimension of the samples away")
    return axis.at(axis.dim - sum(d < axis.dim for d in gone))


@rule("view_as_complex", "view_as_real", "_conj", "_neg_view")
def _complex(given: list[Where], args: Any, kwargs: Any, result: Tensor) -> Where:
    """Pairs in the last dimension as complex numbers, and back."""
    return first(given)  # samples in that dimension are none in the result, which is noticed


@rule("im2col", "col2im")
def _patches(given: list[Where], args: Any, kwargs: Any, result: Tensor) -> Where:
    axis = first(given)
    if axis.dim != 0 or result.dim() != args[0].dim() + (1 if args[0].dim() == 3 else -1):
        return mixed("a rearrangement of patches")
    return axis
