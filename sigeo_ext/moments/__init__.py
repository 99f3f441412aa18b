"""Streamed statistics of gradient vectors, one coordinate at a time.

A *unit* is one gradient vector, say of a mini-batch, given as a list with one tensor a layer. Over
``n`` units ``g``, each coordinate has::

    A1 = sum |g|        mean = sum g / n        M2 = sum (g - mean)^2

and ``S1 = sum g = n * mean``. M2 is centred from the start (Welford), never a difference of two
large sums. From these come the ratio ``(A1/n) / sigma`` that ZiCo and SiGeo sum over a layer,
``sigma^2 = M2 / (n - ddof)``, and the inner product ``<S1, theta>`` of SiGeo's Fisher-Rao term.

Every list holds one tensor a layer, any shape, float32, float64, bfloat16 or float16. ``None`` in
place of a gradient means zeros: the loss did not reach that parameter. Results of reductions are
float64. Tensors may have any order of dimensions in memory; where the order differs between the
tensors of a layer, a copy is made.

`Moments` keeps a whole state; the functions below are the ops it is made of.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor

from sigeo_ext import _check
from sigeo_ext._kinds import named_arguments
from sigeo_ext._lists import OptionalTensorList, TensorList, detached
from sigeo_ext.moments import op
from sigeo_ext.moments.reference import MAX_ROWS

__all__ = [
    "MAX_ROWS",
    "Moments",
    "Summary",
    "dot",
    "fold_rows_",
    "row_dots",
    "rows_summary",
    "summary",
    "update",
    "update_",
]


class Summary(NamedTuple):
    """Sums over each layer's coordinates, float64 tensors of shape [layers]."""

    ratio: Tensor
    """Sum of (A1/n) / sigma over the kept coordinates, those with sigma != 0 (NaN is kept)."""
    kept: Tensor
    """Number of kept coordinates."""
    inner: Tensor
    """<S1, weight>; 0 without weights."""
    abs_sum: Tensor
    """Sum of A1."""
    mean_sq: Tensor
    """Sum of mean^2."""
    m2_sum: Tensor
    """Sum of M2; the sum of g^2 over all units is ``m2_sum + n * mean_sq``."""


@named_arguments("moments.update_")
def update_(
    abs_sum: TensorList, mean: TensorList, m2: TensorList, grads: OptionalTensorList, *, count: int
) -> None:
    """Add one unit to a state, in place.

    Reads 16 and writes 12 bytes a float32 coordinate; one launch for every 512 layers.

    Equivalent to, for each layer::

        delta = g - mean
        abs_sum += g.abs(); mean += delta / (count + 1); m2 += delta * (g - mean)

    Args:
        abs_sum: A1 of the ``count`` units so far, float32 or float64. At ``count`` 0 the whole
            state is only written and may hold anything; at 1 only ``mean`` is read, as then
            ``A1 = |mean|`` and ``M2 = 0``.
        mean: Their mean, like ``abs_sum``.
        m2: Their M2, like ``abs_sum``.
        grads: The unit to add.
        count: Number of units in the state before the call.

    Raises:
        RuntimeError: Lists of different lengths, a shape, dtype or device that does not fit, a
            state whose tensors do not fill one run of memory in one order, one that requires a
            gradient where autograd records, or a tensor at two places of the state.
    """
    _check_apart("moments.update_", abs_sum=abs_sum, mean=mean, m2=m2)
    op.moments_update_(abs_sum, mean, m2, detached(grads), count)


@named_arguments("moments.update")
def update(
    abs_sum: TensorList, mean: TensorList, m2: TensorList, grads: OptionalTensorList, *, count: int
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """`update_`, with the new state returned and the old one left alone.

    Differentiable in the state, and in ``grads`` unless one of them is None.
    """
    result: tuple[list[Tensor], list[Tensor], list[Tensor]] = op.moments_update(
        abs_sum, mean, m2, grads, count
    )
    return result


@named_arguments("moments.fold_rows_")
def fold_rows_(first: TensorList, second: TensorList, third: TensorList) -> None:
    """Turn three units into the state of these three, in their own memory.

    Afterwards ``first`` holds A1, ``second`` the mean and ``third`` M2, each computed in float64
    and rounded once.

    Raises:
        RuntimeError: As `update_`.
    """
    _check_apart("moments.fold_rows_", first=first, second=second, third=third)
    op.moments_fold_rows_(first, second, third)


def _check_apart(name: str, **state: TensorList) -> None:
    """Require that no tensor is at two places of a state, which would be written over itself."""
    if torch.compiler.is_compiling():
        return
    tensors = list(chain.from_iterable(state.values()))
    message = f"{', '.join(state)} must hold a tensor of its own at each place, got one twice"
    _check.require(len(set(map(id, tensors))) == len(tensors), name, message)


@named_arguments("moments.summary")
def summary(
    abs_sum: TensorList,
    mean: TensorList,
    m2: TensorList,
    *,
    count: int,
    grads: OptionalTensorList = (),
    weights: TensorList = (),
    ddof: int = 0,
) -> Summary:
    """Reduce a state to a few sums a layer. Not differentiable.

    Args:
        abs_sum: A1 of the units.
        mean: Their mean.
        m2: Their M2.
        count: Number of units in the state.
        grads: One more unit to take in on the way, in float64, leaving the state alone: the last
            update and the reduction for one read of the state and no write.
        weights: The layers' weights theta, for ``inner``.
        ddof: 0 for the population's standard deviation, 1 for the unbiased one.

    Raises:
        RuntimeError: No unit, ``ddof`` not below their number, or arguments that do not fit.
    """
    lists = [detached(values) for values in (abs_sum, mean, m2, grads, weights)]
    return Summary(*op.moments_summary(*lists, count, ddof).unbind(1))


@named_arguments("moments.rows_summary")
def rows_summary(
    rows: Sequence[OptionalTensorList], *, weights: TensorList = (), ddof: int = 0
) -> Summary:
    """Reduce up to `MAX_ROWS` units, kept as they came, to a few sums a layer. Not differentiable.

    Reads every unit once and writes nothing: 16 bytes a float32 coordinate for four units, where
    four updates and a `summary` move 104. All arithmetic is float64.

    Args:
        rows: The units, each a list with one gradient a layer.
        weights: The layers' weights theta, for ``inner``.
        ddof: As in `summary`.

    Raises:
        RuntimeError: No unit or too many, ``ddof`` not below their number, or tensors of one layer
            that do not fit together.
        ValueError: Units of different lengths.
    """
    if any(len(unit) != len(rows[0]) for unit in rows):
        lengths = ", ".join(str(len(unit)) for unit in rows)
        message = f"rows must each hold one tensor a layer, got {lengths}"
        raise ValueError(f"moments.rows_summary: {message}")
    flat = [g for unit in rows for g in detached(unit)]
    theta = detached(weights)
    return Summary(*op.moments_rows_summary(flat, theta, len(rows), ddof).unbind(1))


@named_arguments("moments.dot")
def dot(a: TensorList, b: TensorList) -> Tensor:
    """Inner product of each pair of tensors, float64 [layers]. Differentiable backwards.

    ``dot(g, g)`` is the sum of squares, its root the norm; ``dot(g, theta)`` is the "plain" proxy
    of each layer.

    Raises:
        RuntimeError: Lists of different lengths, or a pair that does not fit together.
    """
    result: Tensor = op.moments_dot(a, b)
    return result


@named_arguments("moments.row_dots")
def row_dots(a: Tensor, b: Tensor) -> Tensor:
    """Inner product of each row of a with that of b, float64 [rows]. Differentiable backwards.

    With a layer's input and the input's gradient, the inner product of its weight with the gradient
    of each sample, for a layer that is linear in its weight.

    Args:
        a: ``[rows, ...]``.
        b: Of the same shape; any other dtype or memory order (then copied).

    Raises:
        RuntimeError: Shapes that differ, or no dimension.
    """
    result: Tensor = op.moments_row_dots(a, b)
    return result


from sigeo_ext.moments.state import Moments  # noqa: E402  (made of the functions above)
