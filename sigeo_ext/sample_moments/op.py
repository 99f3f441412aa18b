"""Registration of the sample_moments ops; `sigeo_ext.sample_moments` documents them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sigeo_ext._op import define
from sigeo_ext.sample_moments import reference

# Beside the multiply-add of the gradient itself, for each statistic of each unit.
_STATISTIC_FLOPS = 2
_TRITON = "sigeo_ext.sample_moments.triton"


def _new(like: Tensor, shape: Sequence[int], units: int, segments: int, want: int) -> list[Tensor]:
    """Empty results of the statistics in ``want``."""
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    return [
        like.new_empty(units, dtype=torch.float64)
        if name == "sq_norm"
        else like.new_empty(segments, *shape, dtype=dtype)
        for name in reference.wanted(want)
    ]


def _convolution_fake(
    x: Tensor,
    d: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    unit: int,
    segments: int,
    want: int,
    factor: float,
) -> list[Tensor]:
    shape = (d.shape[-1], *kernel, x.shape[-1] // groups)
    return _new(x, shape, x.shape[0] // unit, segments, want)


def _scale_fake(
    x: Tensor,
    d: Tensor,
    mean: Tensor | None,
    rstd: Tensor | None,
    factor: Tensor | None,
    channels_last: bool,
    shift: bool,
) -> list[Tensor]:
    sums = (x.shape[0], x.shape[2 if channels_last else 1])
    shapes = [sums] * ((mean is not None) + shift) + [x.shape] * (factor is not None)
    return [x.new_empty(shape) for shape in shapes]


sample_moments_scale = define(
    "sample_moments_scale(Tensor x, Tensor d, Tensor? mean, Tensor? rstd, Tensor? factor, "
    "bool channels_last, bool shift) -> Tensor[]",
    reference.scale,
    fake=_scale_fake,
    flops=lambda x, *_, **__: 5 * math.prod(x),
    triton=f"{_TRITON}:scale",
)


def _convolution_flops(
    x: Sequence[int],
    d: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    unit: int,
    segments: int,
    want: int,
    factor: float,
    **_: object,
) -> int:
    weight = d[-1] * math.prod(kernel) * (x[-1] // groups)
    statistics = len(reference.wanted(want))
    return weight * (2 * math.prod(d[:-1]) + _STATISTIC_FLOPS * statistics * (x[0] // unit))


sample_moments_convolution = define(
    "sample_moments_convolution(Tensor x, Tensor d, SymInt[] kernel, SymInt[] stride, "
    "SymInt[] padding, SymInt[] dilation, SymInt groups, SymInt unit, SymInt segments, int want, "
    "float factor) -> Tensor[]",
    reference.convolution,
    fake=_convolution_fake,
    flops=_convolution_flops,
    triton=f"{_TRITON}:convolution",
)


sample_moments_rows = define(
    "sample_moments_rows(Tensor rows, SymInt unit, SymInt segments, int want, float factor) "
    "-> Tensor[]",
    reference.rows,
    fake=lambda rows, unit, segments, want, factor: _new(
        rows, rows.shape[1:], rows.shape[0] // unit, segments, want
    ),
    flops=lambda rows, unit, segments, want, *_, **__: (
        _STATISTIC_FLOPS * len(reference.wanted(want)) * math.prod(rows)
    ),
    triton=f"{_TRITON}:rows",
)


def _embedding_fake(
    rows: Tensor,
    units: Tensor | None,
    gradients: Tensor,
    count: int,
    entries: int,
    skipped: int,
    want: int,
    factor: float,
) -> list[Tensor]:
    touched = torch.library.get_ctx().new_dynamic_size()
    return [
        rows.new_empty(touched),
        *(
            gradients.new_empty(count, dtype=torch.float64)
            if name == "sq_norm"
            else gradients.new_empty(touched, gradients.shape[1])
            for name in reference.wanted(want)
        ),
    ]


sample_moments_embedding = define(
    "sample_moments_embedding(Tensor rows, Tensor? units, Tensor gradients, SymInt count, "
    "SymInt entries, int skipped, int want, float factor) -> Tensor[]",
    reference.embedding,
    fake=_embedding_fake,
    flops=lambda rows, units, gradients, *_, **__: 6 * math.prod(gradients),
    triton=f"{_TRITON}:embedding",
)


def _tables_fake(
    rows: Tensor, gradients: Tensor, unit: int, want: int, factor: float
) -> list[Tensor]:
    touched = torch.library.get_ctx().new_dynamic_size()
    samples, tables = rows.shape
    return [
        rows.new_empty(tables + 1),
        rows.new_empty(touched),
        *(
            gradients.new_empty(tables, samples // unit, dtype=torch.float64)
            if name == "sq_norm"
            else gradients.new_empty(touched, gradients.shape[2])
            for name in reference.wanted(want)
        ),
    ]


sample_moments_tables = define(
    "sample_moments_tables(Tensor rows, Tensor gradients, SymInt unit, int want, float factor) "
    "-> Tensor[]",
    reference.tables,
    fake=_tables_fake,
    triton=f"{_TRITON}:tables",
    flops=lambda rows, gradients, *_, **__: 6 * math.prod(gradients),
)
