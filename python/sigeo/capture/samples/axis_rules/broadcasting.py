"""Rules of broadcasting operations, copies and new values."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from sigeo.capture.samples.axis import Axis, Lost, Where
from sigeo.capture.samples.axis_rules.registry import first, rule
from sigeo.capture.samples.functions import tensors_in


def pointwise(given: list[Where], dims: list[int], out_dims: int) -> Where:
    """The rule of broadcasting operations: dimensions are counted from the last."""
    found: Axis | None = None
    for axis, dim in zip(given, dims, strict=True):
        if not isinstance(axis, Axis):
            continue
        moved = axis.at(axis.dim + out_dims - dim)
        if found is not None and found != moved:
            return Lost("two tensors with their samples in different places were combined")
        found = moved
    return found


@rule("_prelu_kernel", "copy")
def broadcast(given: list[Where], args: Any, kwargs: Any, result: Tensor) -> Where:
    """`pointwise` of all the tensors that an operation was given."""
    return pointwise(given, [t.dim() for t in tensors_in(*args, *kwargs.values())], result.dim())


@rule("clone", "contiguous", "detach", "alias", "_to_copy", "lift_fresh", "native_dropout")
def _same(given: list[Where], args: Any, kwargs: Any, result: Tensor) -> Where:
    return first(given)


@rule(
    "zeros_like", "ones_like", "empty_like", "full_like", "rand_like", "randn_like", "bernoulli",
    "zero", "fill", "uniform", "normal",
)  # fmt: skip
def _made_alike(given: list[Where], args: Any, kwargs: Any, result: Tensor) -> Where:
    """New values with a place for each of the old."""
    return first(given)


@rule("new_zeros", "new_ones", "new_empty", "new_full", "new_empty_strided", "scalar_tensor")
def _made(given: list[Where], args: Any, kwargs: Any, result: Tensor) -> Where:
    """New values in a shape: what they are does not depend on the samples."""
    return None
