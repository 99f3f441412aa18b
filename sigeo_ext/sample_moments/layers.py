"""Statistics of the weights of convolutions and linear layers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from sigeo_ext import moments
from sigeo_ext._kinds import named_arguments
from sigeo_ext.sample_moments import misfits, op, patches, positions
from sigeo_ext.sample_moments.layout import (
    as_channels_last,
    as_lines,
    each_dimension,
    widened,
    with_positions,
)
from sigeo_ext.sample_moments.reference import ABS_SUM, M2, SIGN_SUM, SQ_NORM, SQ_SUM, SUM
from sigeo_ext.sample_moments.statistics import SampleMoments, bits_of, named


@named_arguments("sample_moments.convolution", misfits.of_convolution)
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
    x, d = x.detach(), d.detach()
    dims = len(kernel_size)
    spread = [each_dimension(value, dims) for value in (stride, padding, dilation)]
    if transposed:
        x, d = patches.exchanged(x, d, kernel_size, *spread)
    bits = bits_of(want)
    if bits == SQ_NORM and groups == 1 and dims < 3 and patches.fit(x, d, unit, segments):
        axes = patches.axes_of(x.shape[2:], d.shape[2:], kernel_size, *spread)
        inputs = x.shape[1] * patches.taps_of(axes)
        if axes and positions.few(unit * math.prod(d.shape[2:]), inputs, d.shape[1]):
            return positions.sq_norms(x, d, unit, factor, axes)
    results = op.sample_moments_convolution(
        as_channels_last(x),
        as_channels_last(d),
        list(kernel_size),
        *spread,
        groups,
        unit,
        1 if segments is None else segments,
        bits,
        factor,
    )
    if segments is None:
        return named(bits, [r if r.dim() == 1 else r[0].movedim(-1, 1) for r in results])
    return named(bits, [r if r.dim() == 1 else r.movedim(-1, 2) for r in results])


@named_arguments("sample_moments.linear", misfits.of_linear)
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
    x, d = x.detach(), d.detach()
    bits = bits_of(want)
    if x.dim() == 2:
        fits = d.dim() == 2 and len(x) == len(d) and x.dtype == d.dtype
        alone = fits and x.is_floating_point() and unit == 1 and segments is None
        if alone and not bits & (M2 | SIGN_SUM):
            return _separable(widened(x), widened(d), bits, factor)
        x, d = x[:, None], d[:, None]
    x, d = with_positions(x, d)
    by_positions = (
        bits == SQ_NORM and patches.fit(x, d, unit, segments) and x.shape[1] == d.shape[1]
    )
    if by_positions and positions.few(unit * x.shape[1], x.shape[2], d.shape[2]):
        return positions.sq_norms(x, d, unit, factor)
    results = op.sample_moments_convolution(
        as_lines(x),
        as_lines(d),
        [1],
        [1],
        [0],
        [1],
        1,
        unit,
        1 if segments is None else segments,
        bits,
        factor,
    )
    shape = (d.shape[2], x.shape[2])
    whole = shape if segments is None else (segments, *shape)
    return named(bits, [r if r.dim() == 1 else r.view(whole) for r in results])


def _separable(x: Tensor, d: Tensor, bits: int, factor: float) -> SampleMoments:
    """A linear layer of one position: a matrix product for each statistic.

    All but m2 and sign_sum are products of what x and d give alone: |d x| = |d| |x|.
    """
    if torch.is_autocast_enabled(x.device.type):  # which leaves the ops' dtypes as they are, too
        with torch.autocast(x.device.type, enabled=False):
            return _separable(x, d, bits, factor)
    results: dict[str, Tensor] = {}
    if bits & SUM:
        results["sum"] = d.t() @ x
    if bits & (ABS_SUM | SQ_SUM):
        scaled = d * factor
    if bits & ABS_SUM:
        results["abs_sum"] = scaled.abs().t() @ x.abs()
    if bits & SQ_SUM:
        results["sq_sum"] = scaled.square_().t() @ x.square()
    if bits & SQ_NORM:
        results["sq_norm"] = moments.row_dots(d, d) * moments.row_dots(x, x) * (factor * factor)
    return SampleMoments(**results)
