"""The family's ops on Triton kernels: checks, choice of tiles, launches.

`sigeo_ext.sample_moments.op` registers these functions for CUDA; they are the reference's, argument
for argument. Importing this module imports Triton.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from sigeo_ext import _check
from sigeo_ext.sample_moments import reference, tiles, triton_kernels
from sigeo_ext.sample_moments.precision import matmul_precision

# Positions added up before the sum goes to a second one: bounds the growth of rounding errors.
_RUN = 2048
_LAST_INT32 = 2**31 - 1
_SQ_NORM = 1 << reference.STATISTICS.index("sq_norm")
_M2 = reference.STATISTICS.index("m2")


class _Results:
    """Memory for one op's statistics, and for those of the parts of its segments.

    Attributes:
        programs: Of the launch that fills it.
        parts: Runs of units a segment.
        length: Units of a run, but the last.
    """

    def __init__(
        self, like: Tensor, shape: Sequence[int], blocks: int, units: int, segments: int, want: int
    ):
        self.units, self.segments, self.want = units // segments, segments, want
        self.size = math.prod(shape)
        least = tiles.shipped().programs
        self.parts, self.length = tiles.parts(blocks * segments, self.units, least)
        self.programs = blocks * segments * self.parts
        self.norms = None
        if want & _SQ_NORM:
            self.norms = like.new_empty(blocks, units, dtype=torch.float64)
        self.final = _empty(like, (segments, *shape), want)
        self._partial = None
        if self.parts > 1:
            sizes = (segments, self.parts, self.size)
            mean = _empty(like, sizes, want >> _M2 & 1)[0]
            self._partial = (*_empty(like, sizes, want), mean)

    @property
    def pointers(self) -> tuple[Tensor | None, ...]:
        """Where the launch writes."""
        return self._partial or (*self.final, None)

    def collect(self, factor: float) -> list[Tensor]:
        """The op's results once the launch has been made."""
        found: list[Tensor] = [result for result in self.final if result is not None]
        if self._partial is not None and found:
            block = tiles.shipped().rows
            triton_kernels.combine_kernel[(-(-self.size // block) * self.segments,)](
                self._partial, (*self.final, None), self.size, self.units, self.length, self.parts,
                WANT=self.want, DTYPE=_dtype(found[0]), BLOCK=block, **_OPTIONS,
            )  # fmt: skip
        if self.norms is not None:
            found.append(self.norms.sum(0) * factor**2)
        return found


# Products and sums in one instruction, whatever Triton's default. All the registers there are: the
# compiler would spill to have more programs on a multiprocessor.
_OPTIONS = {"enable_fp_fusion": True, "maxnreg": 255}


def _empty(like: Tensor, sizes: Sequence[int], want: int) -> list[Tensor | None]:
    """Memory for each of the statistics over units, None for one that is not in ``want``."""
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    return [like.new_empty(sizes, dtype=dtype) if want >> bit & 1 else None for bit in range(5)]


def _dtype(tensor: Tensor) -> Any:
    """What the kernel computes in."""
    return tl.float64 if tensor.dtype == torch.float64 else tl.float32


def _zeros(
    like: Tensor, shape: Sequence[int], units: int, segments: int, want: int
) -> list[Tensor]:
    """The results where there is nothing to add up."""
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    return [
        like.new_zeros(units, dtype=torch.float64)
        if name == "sq_norm"
        else like.new_zeros(segments, *shape, dtype=dtype)
        for name in reference.wanted(want)
    ]


def convolution(
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
    """Statistics [segments, O, *kernel, I/groups] and sq_norm [units] of a convolution's weight."""
    op = "sample_moments_convolution"
    reference.check_convolution(op, x, d, kernel, stride, padding, dilation, groups)
    reference.check_units(op, x.shape[0], unit, segments, want)
    in_size, out_size = x.shape[1:-1], d.shape[1:-1]
    inputs, outputs = x.shape[-1], d.shape[-1]
    in_group, of_group = inputs // groups, outputs // groups
    taps, positions, units = math.prod(kernel), math.prod(out_size), x.shape[0] // unit
    shape = (outputs, *kernel, in_group)
    if 0 in (units, taps * outputs * in_group, positions):
        return _zeros(x, shape, units, segments, want)
    values = max(x[0].numel(), d[0].numel()) * unit
    _check.require(
        values <= _LAST_INT32, op, f"a unit must have at most {_LAST_INT32} values, got {values}"
    )
    x, d = x.contiguous(), d.contiguous()

    folded = taps > 1 and in_group < tiles.FOLDED_CHANNELS
    columns = taps * in_group if folded else in_group
    narrow = min(of_group, columns) < tiles.FEWEST_CHANNELS
    few = unit * positions < tiles.FEWEST_POSITIONS
    constants: dict[str, Any] = {
        "WANT": want,
        "DIMS": len(kernel),
        "PLAIN": taps == 1 and set(stride) == {1} and set(padding) == {0},
        "RUN": _RUN,
    }
    if x.dtype == torch.float64 or narrow or few:
        most_pairs, most_positions = tiles.shipped().pairs
        pairs = tiles.power_of_two(outputs * in_group, most_pairs, 16)
        constants["DTYPE"] = _dtype(x)
        constants["BLOCK_PAIRS"] = pairs
        constants["BLOCK_POSITIONS"] = tiles.power_of_two(unit * positions, most_positions)
        run, blocks = triton_kernels.pairs_kernel, -(-outputs * in_group // pairs) * taps
    else:
        tile = tiles.shipped().tiles[tiles.class_of(of_group, columns, want)]
        constants |= tile_constants(tile, matmul_precision())
        constants["FOLD"] = folded
        run = triton_kernels.convolution_kernel
        blocks = -(-columns // tile.columns) * (1 if folded else taps)
        blocks *= -(-of_group // tile.outputs) * groups
    results = _Results(x, shape, blocks, units, segments, want)
    with torch.cuda.device_of(x):
        run[(results.programs,)](
            x, d, results.pointers, results.norms, factor, unit, results.units, results.length,
            results.parts, positions, math.prod(in_size), inputs, outputs, groups,
            (tuple(in_size), tuple(out_size), tuple(kernel)),
            (tuple(stride), tuple(padding), tuple(dilation)), taps, **constants, **_OPTIONS,
        )  # fmt: skip
        return results.collect(factor)


def tile_constants(tile: tiles.Tile, precision: str) -> dict[str, Any]:
    """What `convolution_kernel` is compiled for."""
    return {
        "PRECISION": precision,
        "BLOCK_OUTPUTS": tile.outputs,
        "BLOCK_COLUMNS": tile.columns,
        "BLOCK_POSITIONS": tile.positions,
        "num_warps": tile.warps,
        "num_stages": tile.stages,
    }


def rows(rows: Tensor, unit: int, segments: int, want: int, factor: float) -> list[Tensor]:
    """Statistics [segments, size] and sq_norm [units] of gradients that are there."""
    op = "sample_moments_rows"
    message = f"rows must be [samples, size], got {rows.dim()} dimensions"
    _check.require(rows.dim() == 2, op, message)
    reference.check_units(op, len(rows), unit, segments, want)
    units, size = len(rows) // unit, rows.shape[1]
    if 0 in (units, size):
        return _zeros(rows, (size,), units, segments, want)
    block = tiles.power_of_two(size, tiles.shipped().rows, 16)
    results = _Results(rows, (size,), -(-size // block), units, segments, want)
    with torch.cuda.device_of(rows):
        triton_kernels.rows_kernel[(results.programs,)](
            rows.contiguous(), results.pointers, results.norms, factor, unit, results.units,
            results.length, results.parts, size, WANT=want, DTYPE=_dtype(rows), BLOCK=block,
            **_OPTIONS,
        )  # fmt: skip
        return results.collect(factor)


def scale(
    x: Tensor,
    d: Tensor,
    mean: Tensor | None,
    rstd: Tensor | None,
    factor: Tensor | None,
    channels_last: bool,
    shift: bool,
) -> list[Tensor]:
    """Sums over positions of d * (x - mean) * rstd and of d [samples, channels], and d * factor."""
    op = "sample_moments_scale"
    _check.require(x.dim() == 3, op, f"x must have 3 dimensions, got {x.dim()}")
    _check.require(x.shape == d.shape, op, "d must have the shape of x, got another")
    together = "mean and rstd must be given together"
    _check.require((mean is None) == (rstd is None), op, together)
    samples = x.shape[0]
    positions, channels = x.shape[1:] if channels_last else (x.shape[2], x.shape[1])
    steps = (0, 0, 1)
    if mean is not None and rstd is not None:
        shapes = {(channels,): steps, (samples, channels): (channels, 0, 1)}
        if channels_last:
            shapes[samples, positions, 1] = (positions, 1, 0)
        forms = "[channels], [samples, channels] or, channels last, [samples, positions, 1]"
        alike = f"mean and rstd must both be {forms}"
        fits = mean.shape == rstd.shape and tuple(mean.shape) in shapes
        _check.require(fits, op, alike)
        steps = shapes[tuple(mean.shape)]
        mean, rstd = mean.contiguous(), rstd.contiguous()
    if factor is not None:
        _check.require(factor.shape == (channels,), op, "factor must be [channels]")
        factor = factor.contiguous()

    most_channels, most_positions = tiles.shipped().scale
    if channels_last:
        block_channels = tiles.power_of_two(channels, most_channels)
        block_positions = tiles.power_of_two(
            positions, most_channels * most_positions // block_channels
        )
    else:
        block_positions = tiles.power_of_two(positions, most_channels)
        block_channels = tiles.power_of_two(
            channels, most_channels * most_positions // block_positions
        )
    blocks = -(-channels // block_channels) * samples
    steps_of_positions = -(-positions // block_positions)
    parts, length = 1, positions
    if blocks and positions:
        parts, length = tiles.parts(blocks, steps_of_positions, tiles.shipped().programs)
        length *= block_positions
    dx = torch.empty_like(x, memory_format=torch.contiguous_format) if factor is not None else None
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    sums = [
        x.new_empty(parts, samples, channels, dtype=wide) if asked else None
        for asked in (mean is not None, shift)
    ]
    with torch.cuda.device_of(x):
        if blocks:
            triton_kernels.scale_kernel[(blocks * parts,)](
                x.contiguous(), d.contiguous(), mean, rstd, factor, dx, *sums, positions, channels,
                length, parts, *steps, SCALE=mean is not None, SHIFT=shift, DX=dx is not None,
                CHANNELS_LAST=channels_last, DTYPE=_dtype(x), BLOCK_POSITIONS=block_positions,
                BLOCK_CHANNELS=block_channels, **_OPTIONS,
            )  # fmt: skip
        found = [
            (value[0] if parts == 1 else value.sum(0)).to(x.dtype)
            for value in sums
            if value is not None
        ]
    return found if dx is None else [*found, dx]


def embedding(
    rows: Tensor,
    units: Tensor | None,
    gradients: Tensor,
    count: int,
    entries: int,
    skipped: int,
    want: int,
    factor: float,
) -> list[Tensor]:
    """The touched rows [R], statistics [R, E] of them, and sq_norm [count]."""
    op = "sample_moments_embedding"
    reference.check_units(op, count, 1, 1, want)
    units = reference.check_entries(op, rows, units, gradients, count, entries)
    kept = (rows != skipped).nonzero().flatten()
    # By row, within it by unit, within that as they came: sums have the same bits every time.
    places = kept[units[kept].argsort(stable=True)]
    places = places[rows[places].argsort(stable=True)]
    row, unit = rows[places], units[places]
    begins = torch.ones_like(row, dtype=torch.bool)
    begins[1:] = (row[1:] != row[:-1]) | (unit[1:] != unit[:-1])
    pairs = begins.nonzero().flatten()
    touched, pairs_of_row = row[pairs].unique_consecutive(return_counts=True)
    width = gradients.shape[1]
    if 0 in (len(touched), width):
        empty = _zeros(gradients, (width,), count, len(touched), want)
        return [touched, *empty]
    block = tiles.power_of_two(width, tiles.shipped().rows, 16)
    blocks = -(-width // block)
    results = _empty(gradients, (len(touched), width), want)
    norms = None
    if want & _SQ_NORM:
        norms = gradients.new_empty(blocks, len(pairs), dtype=torch.float64)
    with torch.cuda.device_of(gradients):
        triton_kernels.embedding_kernel[(len(touched) * blocks,)](
            gradients.contiguous(), places, _bounds(pairs, len(places)),
            _bounds(pairs_of_row.cumsum(0) - pairs_of_row, len(pairs)), (*results, None), norms,
            factor, count, width, len(pairs), WANT=want, DTYPE=_dtype(gradients), BLOCK=block,
            **_OPTIONS,
        )  # fmt: skip
        found = [result for result in results if result is not None]
        if norms is not None:
            found.append(_sums_of_units(norms.sum(0), unit[pairs], count) * factor**2)
    return [touched, *found]


def _bounds(begins: Tensor, end: int) -> Tensor:
    """Where runs begin, and where the last one ends."""
    return torch.cat([begins, begins.new_tensor([end])])


def _sums_of_units(values: Tensor, units: Tensor, count: int) -> Tensor:
    """The sum of each unit's values, in the order they come in."""
    order = units.argsort(stable=True)
    begins = torch.searchsorted(units[order], torch.arange(count + 1, device=units.device))
    sums = values.new_empty(count)
    triton_kernels.sum_runs_kernel[(count,)](
        values, order, begins, sums, BLOCK=tiles.shipped().rows, **_OPTIONS
    )
    return sums
