"""Gram matrices: of units' gradients (the NTK), of lists of tensors, of activation codes.

The empirical neural tangent kernel of a scalar output f is ``K[u, v] = <g_u, g_v>`` with g_u the
gradient of f(x_u) with respect to the weights (Jacot et al., NeurIPS 2018). It is the sum over
layers of each layer's own Gram matrix, so no Jacobian is ever held. A layer that sees input x
[B, T, I] and output gradient d [B, T, O] offers two routes:

* *gram*: ``K[u, v] = sum over t, s of (d[u, t] . d[v, s]) (x[u, t] . x[v, s])``, about
  ``B^2 T^2 (I + O)`` multiply-adds: best for few positions T;
* *direct*: every unit's gradient, tile by tile, and the products of all pairs while the tile is in
  the cache, about ``B T I O + B^2 I O / 2``.

`convolution` and `linear` take the cheaper one by that count. All results are float64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from sigeo_ext import _check
from sigeo_ext._kinds import named_arguments
from sigeo_ext.gram import op
from sigeo_ext.sample_moments import misfits, patches
from sigeo_ext.sample_moments.layout import (
    as_channels_last,
    as_lines,
    each_dimension,
    entries_of_unit,
    widened,
    with_positions,
)

__all__ = [
    "Spectrum",
    "convolution",
    "cosine",
    "dot",
    "embedding",
    "hamming",
    "linear",
    "pack_signs",
    "route",
    "rows",
    "spectrum",
    "sq_distance",
]

Route = Literal["auto", "gram", "direct"]
Vector = Tensor | Sequence[Tensor | None]

# Products of positions that the gram route holds at once, in values.
_AT_ONCE = 1 << 22


@named_arguments("gram.route")
def route(units: int, positions: int, inputs: int, outputs: int) -> Literal["gram", "direct"]:
    """The cheaper route, by multiply-adds.

    The gram route works in float64, at half the speed: where contributions of positions cancel, its
    products must too.

    Args:
        units: B.
        positions: T of each unit.
        inputs: I, what one output sees: channels times taps.
        outputs: O.

    Raises:
        RuntimeError: One is negative.
    """
    if min(units, positions, inputs, outputs) < 0:
        message = "units, positions, inputs and outputs must be at least 0, got"
        given = f"{units}, {positions}, {inputs} and {outputs}"
        _check.require(False, "gram.route", f"{message} {given}")
    gram = units * units * positions * positions * (inputs + outputs)
    direct = units * positions * inputs * outputs + units * units * inputs * outputs / 2
    return "gram" if 2 * gram < direct else "direct"


@named_arguments("gram.convolution", misfits.of_convolution)
def convolution(
    x: Tensor,
    d: Tensor,
    kernel_size: Sequence[int],
    *,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    transposed: bool = False,
    unit: int = 1,
    route: Route = "auto",
) -> Tensor:
    """<g_u, g_v> of the weight of a 1-, 2- or 3-d convolution, float64 [units, units].

    Args:
        x: Its input ``[B, I, *size]``, float32, float64, bfloat16 or float16; fastest in
            channels_last memory.
        d: The gradient of its output ``[B, O, *size]``, like ``x``.
        kernel_size: Of the weight.
        stride: As the layer's; one number for all dimensions.
        padding: Likewise, in zeros.
        dilation: Likewise.
        groups: As the layer's.
        transposed: Whether the layer is a transposed convolution.
        unit: Consecutive samples whose gradients are added up before anything else.
        route: "gram", "direct" or the cheaper one; groups and three dimensions go direct.

    Raises:
        RuntimeError: Shapes that do not fit together, or samples that are not whole units.
        ValueError: Another word for the route.
    """
    _check_route("gram.convolution", route)
    dims = len(kernel_size)
    spread = [each_dimension(value, dims) for value in (stride, padding, dilation)]
    if transposed:
        x, d = patches.exchanged(x, d, kernel_size, *spread)
    if groups == 1 and dims < 3 and route != "direct" and patches.fit(x, d, unit):
        positions = unit * math.prod(d.shape[2:])
        axes = patches.axes_of(x.shape[2:], d.shape[2:], kernel_size, *spread)
        inputs = x.shape[1] * patches.taps_of(axes)
        units, outputs = x.shape[0] // unit, d.shape[1]
        if axes and _chosen(route, units, positions, inputs, outputs) == "gram":
            seen = patches.seen_by_positions(widened(x), axes)
            gradients = widened(d).flatten(2).transpose(1, 2)
            return _by_positions(patches.of_units(seen, unit), patches.of_units(gradients, unit))
    return op.gram_convolution(
        as_channels_last(x), as_channels_last(d), list(kernel_size), *spread, groups, unit
    )


@named_arguments("gram.linear", misfits.of_linear)
def linear(x: Tensor, d: Tensor, *, unit: int = 1, route: Route = "auto") -> Tensor:
    """<g_u, g_v> of the weight [O, I] of a linear layer, float64 [units, units].

    Args:
        x: Its input [B, I], or [B, T, I] with T positions that share the weight.
        d: The gradient of its output, [B, O] or [B, T, O].
        unit: As in `convolution`.
        route: As in `convolution`.

    Raises:
        RuntimeError: Shapes that do not fit together, or samples that are not whole units.
        ValueError: Another word for the route.
    """
    _check_route("gram.linear", route)
    if x.dim() == 2:
        x, d = x[:, None], d[:, None]
    x, d = with_positions(x, d)
    if route != "direct" and patches.fit(x, d, unit) and x.shape[1] == d.shape[1]:
        chosen = _chosen(route, len(x) // unit, unit * x.shape[1], x.shape[2], d.shape[2])
        if chosen == "gram":
            x, d = (patches.of_units(widened(t), unit) for t in (x, d))
            return _by_positions(x, d)
    geometry = ([1], [1], [0], [1], 1)
    return op.gram_convolution(as_lines(x), as_lines(d), *geometry, unit)


def _check_route(name: str, given: str) -> None:
    if given not in get_args(Route):
        raise ValueError(f"{name}: route must be of {', '.join(get_args(Route))}, got {given!r}")


def _chosen(wanted: Route, units: int, positions: int, inputs: int, outputs: int) -> str:
    return route(units, positions, inputs, outputs) if wanted == "auto" else wanted


def _by_positions(x: Tensor, d: Tensor) -> Tensor:
    """The gram route: x [U, T, I] and d [U, T, O]; a few units at a time against all later ones."""
    count, positions = x.shape[:2]
    x, d = x.double(), d.double()
    if positions == 1:
        return (x[:, 0] @ x[:, 0].t()).mul_(d[:, 0] @ d[:, 0].t())
    out = x.new_zeros(count, count)
    at_once = max(1, min(count // 4, _AT_ONCE // max(1, positions * positions * count)))
    for begin in range(0, count, at_once):
        end = min(count, begin + at_once)
        products = x[begin:end].flatten(0, 1) @ x[begin:].flatten(0, 1).t()
        products *= d[begin:end].flatten(0, 1) @ d[begin:].flatten(0, 1).t()
        block = products.view(end - begin, positions, count - begin, positions).sum((1, 3))
        out[begin:end, begin:] = block
        out[begin:, begin:end] = block.t()
    return out


@named_arguments("gram.rows")
def rows(gradients: Tensor, *, unit: int = 1) -> Tensor:
    """<g_u, g_v> of samples' gradients that are there, ``[samples, *shape]``; float64.

    Args:
        gradients: One a sample, of small parameters.
        unit: As in `convolution`.

    Raises:
        RuntimeError: Samples that are not whole units.
    """
    whole = f"unit must divide the {len(gradients)} samples, got {unit}"
    _check.require(unit > 0 and len(gradients) % unit == 0, "gram.rows", whole)
    flat = (gradients[:, None] if gradients.dim() == 1 else gradients.flatten(1)).double()
    flat = flat if unit == 1 else flat.unflatten(0, (-1, unit)).sum(1)
    return flat @ flat.t()


@named_arguments("gram.embedding")
def embedding(
    rows: Tensor,
    gradients: Tensor,
    *,
    count: int,
    units: Tensor | None = None,
    skipped: int = -1,
) -> Tensor:
    """<g_u, g_v> of an embedding table, over the rows that both units touch; float64.

    Args:
        rows: The row of each entry, int64 [N].
        gradients: The entries' output gradients [N, E].
        count: Number of units, those without entries among them.
        units: The unit of each entry, int64 [N]; without it every unit has N / ``count`` entries,
            one unit's after another's.
        skipped: A row whose entries do not count, such as the padding.

    Returns:
        [count, count].

    Raises:
        RuntimeError: Tensors that do not fit together, or an index out of its range.
        ValueError: Units that do not have equally many entries.
    """
    entries = entries_of_unit("gram.embedding", rows, count, units)
    units = None if units is None else units.contiguous()
    values = widened(gradients).contiguous()
    return op.gram_embedding(rows.contiguous(), units, values, count, entries, skipped)


@named_arguments("gram.dot")
def dot(vectors: Sequence[Vector]) -> Tensor:
    """Dot products of all pairs of vectors, float64 [count, count].

    A vector is a tensor or a list of tensors, the gradients of a model's parameters say; nothing is
    flattened or copied. Equivalent to ``V @ V.t()`` with the flattened vectors as rows.

    Args:
        vectors: All alike in shapes; float32, float64, bfloat16 or float16. None in the place of a
            tensor stands for zeros.

    Raises:
        RuntimeError: Vectors that are not alike.
        ValueError: No vectors, or not equally many tensors in each.
    """
    return _of_lists("gram.dot", vectors, difference=False)


@named_arguments("gram.sq_distance")
def sq_distance(vectors: Sequence[Vector]) -> Tensor:
    """Squared Euclidean distances of all pairs of vectors, float64 [count, count].

    Sums of squared differences, never a difference of squared norms and products: the distances of
    near neighbours keep their digits, as estimates of local intrinsic dimension need. Arguments and
    errors as in `dot`.
    """
    return _of_lists("gram.sq_distance", vectors, difference=True)


@named_arguments("gram.cosine")
def cosine(vectors: Sequence[Vector]) -> Tensor:
    """Cosines of all pairs of vectors, float64 [count, count].

    NaN in the row and column of a vector of zeros. Arguments and errors as in `dot`.
    """
    products = _of_lists("gram.cosine", vectors, difference=False)
    lengths = products.diagonal().sqrt()
    return (products / lengths[:, None] / lengths).clamp(-1, 1)


def _of_lists(name: str, vectors: Sequence[Vector], *, difference: bool) -> Tensor:
    lists = [[v] if isinstance(v, Tensor) else list(v) for v in vectors]
    if not lists:
        raise ValueError(f"{name}: vectors must hold at least one, got none")
    lengths = {len(tensors) for tensors in lists}
    if len(lengths) > 1:
        message = "vectors must hold equally many tensors"
        raise ValueError(f"{name}: {message}, got {min(lengths)} and {max(lengths)}")
    flat = [tensor for tensors in lists for tensor in tensors]
    return op.gram_lists(flat, len(lists), difference)


@named_arguments("gram.pack_signs")
def pack_signs(values: Tensor) -> Tensor:
    """Which values are above zero, a bit each: uint8 [count, ceil(size / 8)].

    Args:
        values: ``[count, *shape]``, a ReLU's outputs say. Bit k of byte j is value 8 j + k.

    Raises:
        RuntimeError: Values without a shape.
    """
    shape = f"values must be [count, *shape], got {list(values.shape)}"
    _check.require(values.dim() > 1, "gram.pack_signs", shape)
    bits = (values.flatten(1) > 0).to(torch.uint8)
    bits = F.pad(bits, (0, -bits.shape[1] % 8)).unflatten(1, (-1, 8))
    weights = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8, device=bits.device)
    packed: Tensor = (bits * weights).sum(2, dtype=torch.uint8)
    return packed


@named_arguments("gram.hamming")
def hamming(codes: Tensor) -> Tensor:
    """How many bits differ between all pairs of codes, int64 [count, count].

    Args:
        codes: uint8 [count, bytes], as `pack_signs` makes them.

    Raises:
        RuntimeError: Codes of another dtype or form.
    """
    return op.gram_hamming(codes)


class Spectrum(NamedTuple):
    """The ends of a Gram matrix's spectrum."""

    smallest: float
    """Its smallest eigenvalue; where it is not resolved, the bound below which it lies."""
    largest: float
    condition: float
    """largest / smallest."""
    trace: float
    resolved: bool
    """Whether the smallest eigenvalue stands above the rounding of the gradients."""


@named_arguments("gram.spectrum")
def spectrum(gram: Tensor, dtype: torch.dtype = torch.float32) -> Spectrum:
    """Extreme eigenvalues of a symmetric positive semi-definite matrix.

    Gradients in ``dtype`` carry errors that move eigenvalues by up to about
    ``count * eps * largest``. A smallest eigenvalue below that is *unresolved*: it is reported as
    that bound.

    Args:
        gram: [count, count].
        dtype: What the gradients were computed in.

    Raises:
        ValueError: No square matrix, or one without rows.
    """
    if gram.dim() != 2 or gram.shape[0] != gram.shape[1] or not len(gram):
        got = list(gram.shape)
        raise ValueError(f"gram.spectrum: gram must be [count, count] with count > 0, got {got}")
    wide = gram.double()
    trace = float(wide.trace())
    if not bool(wide.isfinite().all()):
        return Spectrum(math.nan, math.nan, math.nan, trace, False)
    values = torch.linalg.eigvalsh((wide + wide.t()) / 2)
    largest = float(values[-1])
    bound = len(wide) * torch.finfo(dtype).eps * largest
    smallest = float(values[0])
    resolved = smallest > bound
    smallest = smallest if resolved else bound
    condition = largest / smallest if smallest > 0 else math.inf
    return Spectrum(smallest, largest, condition, trace, resolved)
