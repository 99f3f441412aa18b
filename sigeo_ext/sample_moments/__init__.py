"""Statistics over the gradients of single samples, without one of them ever being stored.

A layer whose weight is shared over ``T`` positions has, for a *unit* u of one or more consecutive
samples, the gradient::

    g_u[o, i] = sum over the unit's samples b and positions t of  d[b, t, o] * x[b, t, i]

with x the layer's input and d the gradient of its output. The kernels form a tile of g_u in
registers, update the statistics over units there, and go on to the next unit: as many operations as
the ordinary weight gradient, which is one of the statistics (``sum``), and no memory for B x P.

Statistics: ``sum`` g, ``abs_sum`` |g|, ``sq_sum`` g^2, ``m2`` the sum of squared deviations from
the mean (from deviations from the first unit, never a difference of large sums), ``sign_sum`` the
sum of signs; and ``sq_norm``, each unit's sum of g^2 over the weight. All have at least float32;
sq_norm is float64.

A *segment* is a run of consecutive units with statistics of its own, one subnet's samples, say.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sigeo_ext.sample_moments import op, patches
from sigeo_ext.sample_moments.precision import matmul_precision, set_matmul_precision
from sigeo_ext.sample_moments.reference import STATISTICS

__all__ = [
    "STATISTICS",
    "SampleMoments",
    "Scaled",
    "Tables",
    "convolution",
    "embedding",
    "linear",
    "matmul_precision",
    "rows",
    "scale",
    "set_matmul_precision",
    "tables",
]


class SampleMoments(NamedTuple):
    """Statistics over units; None where not asked for.

    All but ``sq_norm`` have the weight's shape, behind [segments] if segments were asked for.
    """

    sum: Tensor | None = None
    abs_sum: Tensor | None = None
    sq_sum: Tensor | None = None
    m2: Tensor | None = None
    sign_sum: Tensor | None = None
    sq_norm: Tensor | None = None
    """Sum of g_u^2 over the weight, [units]."""


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
    segments: int | None = None,
    want: Iterable[str] = ("sum", "abs_sum", "sq_sum", "sq_norm"),
    factor: float = 1.0,
) -> SampleMoments:
    """Statistics of the weight ``[O, I/groups, *kernel]`` of a 1-, 2- or 3-d convolution.

    Args:
        x: Its input ``[B, I, *size]``, float32, float64, bfloat16 or float16; fastest in
            channels_last memory.
        d: The gradient of its output ``[B, O, *size]``, like ``x``.
        kernel_size: Of the weight.
        stride: As the layer's; one number for all dimensions.
        padding: Likewise, in zeros.
        dilation: Likewise.
        groups: As the layer's.
        transposed: Whether the layer is a transposed convolution; its weight is
            ``[I, O/groups, *kernel]``.
        unit: Consecutive samples whose gradients are added up before anything else.
        segments: Equal runs of samples with statistics of their own.
        want: Which of `STATISTICS`.
        factor: All but ``sum``, which is the ordinary gradient, are those of g_u times this.

    Raises:
        RuntimeError: Shapes that do not fit together, or samples that are not whole units.
        ValueError: An unknown statistic.
    """
    dims = len(kernel_size)
    spread = [each_dimension(value, dims) for value in (stride, padding, dilation)]
    if transposed:
        x, d = patches.exchanged(x, d, kernel_size, *spread)
    bits = bits_of(want)
    if bits == _SQ_NORM and groups == 1 and dims < 3 and patches.fit(x, d, unit, segments):
        axes = patches.axes_of(x.shape[2:], d.shape[2:], kernel_size, *spread)
        inputs = x.shape[1] * math.prod(axis.taps for axis in axes)
        if axes and _few(unit * math.prod(d.shape[2:]), inputs, d.shape[1]):
            return _norms_by_positions(x, d, unit, factor, axes)
    results = op.sample_moments_convolution(
        as_channels_last(x),
        as_channels_last(d),
        list(kernel_size),
        *spread,
        groups,
        unit,
        segments or 1,
        bits,
        factor,
    )
    statistics = [
        result if result.dtype == torch.float64 and result.dim() == 1 else result.movedim(-1, 2)
        for result in results
    ]
    return named(bits, statistics, segments)


def linear(
    x: Tensor,
    d: Tensor,
    *,
    unit: int = 1,
    segments: int | None = None,
    want: Iterable[str] = ("sum", "abs_sum", "sq_sum", "sq_norm"),
    factor: float = 1.0,
) -> SampleMoments:
    """Statistics of the weight [O, I] of a linear layer.

    Args:
        x: Its input [B, I], or [B, T, I] with T positions that share the weight.
        d: The gradient of its output, [B, O] or [B, T, O].
        unit: As in `convolution`.
        segments: As in `convolution`.
        want: As in `convolution`.
        factor: As in `convolution`.

    Raises:
        RuntimeError: Shapes that do not fit together, or samples that are not whole units.
        ValueError: An unknown statistic.
    """
    bits = bits_of(want)
    if x.dim() == 2:
        if unit == 1 and segments is None and not bits & _NEEDS_EACH:
            return _separable(widened(x), widened(d), bits, factor)
        x, d = x[:, None], d[:, None]
    by_positions = (
        bits == _SQ_NORM and patches.fit(x, d, unit, segments) and x.shape[1] == d.shape[1]
    )
    if by_positions and _few(unit * x.shape[1], x.shape[2], d.shape[2]):
        return _norms_by_positions(x, d, unit, factor)
    results = op.sample_moments_convolution(
        widened(x).contiguous(),
        widened(d).contiguous(),
        [1],
        [1],
        [0],
        [1],
        1,
        unit,
        segments or 1,
        bits,
        factor,
    )
    statistics = [result if result.dim() == 1 else result.squeeze(2) for result in results]
    return named(bits, statistics, segments)


# Values that the products of positions hold at once.
_AT_ONCE = 1 << 22

# The one statistic of units rather than of the weight.
_SQ_NORM = 1 << STATISTICS.index("sq_norm")


def _few(positions: int, inputs: int, outputs: int) -> bool:
    """Whether products of positions cost less than a unit's gradient, by multiply-adds.

    They are taken in float64, at half the speed: where contributions of positions cancel, squares
    of the large ones must too.
    """
    return 2 * positions * (inputs + outputs) < inputs * outputs


def _norms_by_positions(
    x: Tensor, d: Tensor, unit: int, factor: float, axes: Sequence[patches.Axis] = ()
) -> SampleMoments:
    """||g||^2 = sum over t, s of (x_t . x_s)(d_t . d_s): no gradient is formed.

    A few units at a time; of a convolution if there are ``axes``.
    """
    units = len(x) // unit
    seen = math.prod(d.shape[2:]) if axes else d.shape[1]
    inputs = x.shape[1] * math.prod(axis.taps for axis in axes) if axes else x.shape[2]
    at_once = max(1, _AT_ONCE // max(1, unit * seen * (unit * seen + inputs)))
    norms = x.new_empty(units, dtype=torch.float64)
    for begin in range(0, units, at_once):
        part = slice(begin * unit, (begin + at_once) * unit)
        a, b = widened(x[part]), widened(d[part])
        if axes:
            a, b = patches.seen_by_positions(a, axes), b.flatten(2).transpose(1, 2)
        a, b = (patches.of_units(t, unit).double() for t in (a, b))
        products = torch.bmm(a, a.mT).mul_(torch.bmm(b, b.mT))
        norms[begin : begin + at_once] = products.sum((1, 2))
    return SampleMoments(sq_norm=norms.clamp_min_(0) * factor**2)


def bits_of(want: Iterable[str]) -> int:
    """The statistics as bits, in the order of `STATISTICS`.

    Raises:
        ValueError: An unknown statistic.
    """
    return _bits(tuple(want))


@functools.cache
def _bits(want: tuple[str, ...]) -> int:
    bits = 0
    for name in want:
        if name not in STATISTICS:
            raise ValueError(f"want: must be of {', '.join(STATISTICS)}, got {name!r}")
        bits |= 1 << STATISTICS.index(name)
    return bits


# Of one position, all but these are products of what x and d give alone: |d x| = |d| |x|.
_NEEDS_EACH = 1 << STATISTICS.index("m2") | 1 << STATISTICS.index("sign_sum")


def _separable(x: Tensor, d: Tensor, bits: int, factor: float) -> SampleMoments:
    """A linear layer of one position: a matrix product for each statistic."""
    results: dict[str, Tensor] = {}
    if bits & 1:
        results["sum"] = d.t() @ x
    if bits & 2:
        results["abs_sum"] = (d.abs() * abs(factor)).t() @ x.abs()
    if bits & (4 | 32):
        dd, xx = (d * factor).square_(), x.square()
        if bits & 4:
            results["sq_sum"] = dd.t() @ xx
        if bits & 32:
            wide = torch.float64
            results["sq_norm"] = dd.sum(1, dtype=wide) * xx.sum(1, dtype=wide)
    return SampleMoments(**results)


def named(bits: int, results: list[Tensor], segments: int | None) -> SampleMoments:
    """Results in the order of their bits, by name; of the only segment if none were asked for."""
    values: list[Tensor | None] = [None] * len(STATISTICS)
    given = iter(results)
    for bit, name in enumerate(STATISTICS):
        if bits >> bit & 1:
            result = next(given)
            values[bit] = result[0] if segments is None and name != "sq_norm" else result
    return SampleMoments(*values)


def each_dimension(value: int | Sequence[int], dims: int) -> list[int]:
    return [value] * dims if isinstance(value, int) else list(value)


def widened(tensor: Tensor) -> Tensor:
    """At least float32."""
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor


def as_channels_last(tensor: Tensor) -> Tensor:
    """[B, channels, *size] as [B, *size, channels] in memory, without a copy where it is so."""
    return widened(tensor).movedim(1, -1).contiguous()


def rows(
    gradients: Tensor,
    *,
    unit: int = 1,
    segments: int | None = None,
    want: Iterable[str] = ("sum", "abs_sum", "sq_sum", "sq_norm"),
    factor: float = 1.0,
) -> SampleMoments:
    """Statistics of samples' gradients that are there, ``[samples, *shape]``, of small parameters.

    Args:
        gradients: One a sample.
        unit: As in `convolution`.
        segments: As in `convolution`.
        want: As in `convolution`.
        factor: As in `convolution`.

    Raises:
        RuntimeError: Samples that are not whole units.
        ValueError: An unknown statistic.
    """
    bits = bits_of(want)
    flat = widened(
        gradients[:, None] if gradients.dim() == 1 else gradients.flatten(1)
    ).contiguous()
    results = op.sample_moments_rows(flat, unit, segments or 1, bits, factor)
    shape = gradients.shape[1:]
    statistics = [r if r.dim() == 1 else r.view(r.shape[0], *shape) for r in results]
    return named(bits, statistics, segments)


def embedding(
    rows: Tensor,
    gradients: Tensor,
    *,
    count: int,
    units: Tensor | None = None,
    skipped: int = -1,
    want: Iterable[str] = ("sum", "abs_sum", "sq_sum", "sq_norm"),
    factor: float = 1.0,
) -> tuple[Tensor, SampleMoments]:
    """Statistics of the touched rows of an embedding table.

    Entry n of the input looked row ``rows[n]`` up and got the output gradient ``gradients[n]``; a
    unit's gradient of a row is the sum over its entries. Rows that no entry touches have statistics
    of zero and are not among the results.

    Args:
        rows: int64 [N].
        gradients: [N, E].
        count: Number of units, those without entries among them.
        units: The unit of each entry, int64 [N]; without it every unit has N / ``count`` entries,
            one unit's after another's.
        skipped: A row whose entries do not count, such as the padding.
        want: Which of `STATISTICS`.
        factor: As in `convolution`.

    Returns:
        The touched rows, rising, int64 [R], and statistics [R, E]; sq_norm [count].

    Raises:
        RuntimeError: Tensors that do not fit together, or an index out of its range.
        ValueError: An unknown statistic, or units that do not have equally many entries.
    """
    bits = bits_of(want)
    if units is None and count > 0 and len(rows) % count:
        raise ValueError(f"rows: expected as many for each of {count} units, got {len(rows)}")
    entries = max(1, len(rows) // max(1, count))
    touched, *results = op.sample_moments_embedding(
        rows.contiguous(),
        units,
        widened(gradients).contiguous(),
        count,
        entries,
        skipped,
        bits,
        factor,
    )
    return touched, named(bits, [r if r.dim() == 1 else r[None] for r in results], None)


class Tables(NamedTuple):
    """What `tables` computes."""

    first: Tensor
    """Where each table's rows begin among all of them, and their end; int64 [tables + 1]."""
    rows: Tensor
    """The touched rows of one table after another's, rising within a table; int64 [R]."""
    moments: SampleMoments
    """Statistics of them [R, E]; sq_norm [tables, units]."""


def tables(
    rows: Tensor,
    gradients: Tensor,
    *,
    unit: int = 1,
    want: Iterable[str] = ("sum", "abs_sum", "sq_sum", "sq_norm"),
    factor: float = 1.0,
) -> Tables:
    """Statistics of the touched rows of many embedding tables, one look-up a sample in each.

    `embedding` for each of them in one call.

    Args:
        rows: The row that each sample looked up in each table, int64 [B, tables].
        gradients: Of what it got, [B, tables, E].
        unit: As in `convolution`.
        want: Which of `STATISTICS`.
        factor: As in `convolution`.

    Raises:
        RuntimeError: Tensors that do not fit together, a negative row, samples that are not whole
            units, or no table.
        ValueError: An unknown statistic.
    """
    bits = bits_of(want)
    values = widened(gradients).contiguous()
    first, touched, *results = op.sample_moments_tables(
        rows.contiguous(), values, unit, bits, factor
    )
    names = [name for bit, name in enumerate(STATISTICS) if bits >> bit & 1]
    return Tables(first, touched, SampleMoments(**dict(zip(names, results, strict=True))))


class Scaled(NamedTuple):
    """What `scale` computes; None where not asked for."""

    scale: Tensor | None
    """sum over positions of d * (x - mean) * rstd, [samples, channels]."""
    shift: Tensor | None
    """sum over positions of d, [samples, channels]."""
    dx: Tensor | None
    """d * factor, like x."""


def scale(
    x: Tensor,
    d: Tensor,
    *,
    mean: Tensor | None = None,
    rstd: Tensor | None = None,
    factor: Tensor | None = None,
    channels_last: bool = True,
    shift: bool = True,
) -> Scaled:
    """Each sample's gradient of a norm's weight and bias, in one pass; and a frozen norm's dx.

    Args:
        x: The norm's input [samples, positions, channels], or [samples, channels, positions].
        d: The gradient of its output, like ``x``.
        mean: What was subtracted: [channels], [samples, channels], or [samples, positions, 1] with
            channels last. Without it there is no ``scale``.
        rstd: What it was then multiplied by, like ``mean``.
        factor: [channels]; asks for ``dx``.
        channels_last: Which of the two forms ``x`` has.
        shift: Whether ``shift`` is wanted.

    Raises:
        RuntimeError: Shapes or dtypes that do not fit together.
    """
    results = iter(
        op.sample_moments_scale(
            x.contiguous(), d.contiguous(), mean, rstd, factor, channels_last, shift
        )
    )
    return Scaled(
        next(results) if mean is not None else None,
        next(results) if shift else None,
        next(results) if factor is not None else None,
    )
