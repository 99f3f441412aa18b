"""Kernels that form gradients from inputs and output gradients, for a tile of the weight.

The names are those of `statistic_kernels`.
"""

import triton
import triton.language as tl

from sigeo_ext.sample_moments.triton.statistic_kernels import SQ_NORM, update, write

# One compiled kernel for whatever values these have; they say nothing of alignment.
_ANY = ["unit", "units", "length", "parts", "positions", "in_rows", "sizes", "strides", "taps"]


@triton.jit
def _rows_of_x(position, tap, sizes, strides, DIMS: tl.constexpr):
    """The row of a sample of x that each position meets at ``tap``, and whether there is one."""
    in_size, out_size, kernel = sizes
    stride, padding, dilation = strides
    row = position * 0
    inside = position >= 0
    step = 1
    for dim in tl.static_range(DIMS - 1, -1, -1):
        at = (position % out_size[dim]) * stride[dim] - padding[dim]
        at += (tap % kernel[dim]) * dilation[dim]
        inside = inside & (at >= 0) & (at < in_size[dim])
        row += at * step
        step = step * in_size[dim]
        position = position // out_size[dim]
        tap = tap // kernel[dim]
    return row, inside


@triton.jit
def _tile_gradient(
    x, d, begin, end, tap, column_of_x, is_column, output, is_output,
    positions, in_rows, inputs, outputs, sizes, strides,
    DIMS: tl.constexpr, PLAIN: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_OUTPUTS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr, BLOCK_POSITIONS: tl.constexpr,
):  # fmt: skip
    """The sum of d x over rows ``begin`` to ``end`` of a unit, [BLOCK_OUTPUTS, BLOCK_COLUMNS]."""
    g = tl.zeros((BLOCK_OUTPUTS, BLOCK_COLUMNS), tl.float32)
    for block in range(begin, end, BLOCK_POSITIONS):
        row = block + tl.arange(0, BLOCK_POSITIONS)[:, None]
        there = row < end
        ds = tl.load(d + row * outputs + output[None, :], there & is_output[None, :], 0.0)
        if PLAIN:
            xs = tl.load(x + row * inputs + column_of_x, there & is_column, 0.0)
        else:
            row_of_x, inside = _rows_of_x(row % positions, tap, sizes, strides, DIMS)
            base = (row // positions) * in_rows
            xs = tl.load(
                x + (base + row_of_x) * inputs + column_of_x, there & inside & is_column, 0.0
            )
        g = tl.dot(tl.trans(ds).to(tl.float32), xs.to(tl.float32), g, input_precision=PRECISION)
    return g


@triton.jit(do_not_specialize=_ANY)
def convolution_kernel(
    x, d, results, norms, factor: tl.float64,
    unit, units, length, parts, positions, in_rows, inputs, outputs, groups, sizes, strides, taps,
    WANT: tl.constexpr, DIMS: tl.constexpr, PLAIN: tl.constexpr, FOLD: tl.constexpr,
    RUN: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_OUTPUTS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr, BLOCK_POSITIONS: tl.constexpr,
):  # fmt: skip
    """Statistics of a tile of outputs by columns: an implicit matrix product for each unit.

    A column is an input channel of one tap, or, with ``FOLD``, any tap and input channel. ``PLAIN``
    says that a position meets the same row of x: one tap, no stride, no padding.
    """
    of_group, in_group = outputs // groups, inputs // groups
    output_tiles = tl.cdiv(of_group, BLOCK_OUTPUTS)
    if FOLD:
        column_tiles = tl.cdiv(taps * in_group, BLOCK_COLUMNS)
    else:
        tap_tiles = tl.cdiv(in_group, BLOCK_COLUMNS)
        column_tiles = taps * tap_tiles
    tiles = output_tiles * column_tiles * groups
    tile = tl.program_id(0) % tiles
    part = tl.program_id(0) // tiles
    segment = part // parts
    group = tile // (output_tiles * column_tiles)
    column_tile = tile // output_tiles % column_tiles

    output = tile % output_tiles * BLOCK_OUTPUTS + tl.arange(0, BLOCK_OUTPUTS)
    is_output = output < of_group
    output += group * of_group
    lane = tl.arange(0, BLOCK_COLUMNS)[None, :]
    if FOLD:
        column = column_tile * BLOCK_COLUMNS + lane
        tap = column // in_group
        channel = column % in_group
        is_column = column < taps * in_group
    else:
        tap = column_tile // tap_tiles
        channel = column_tile % tap_tiles * BLOCK_COLUMNS + lane
        column = tap * in_group + channel
        is_column = channel < in_group
    column_of_x = group * in_group + channel

    total = tl.zeros((BLOCK_OUTPUTS, BLOCK_COLUMNS), tl.float32)
    absolute, square, m2, sign, mean = total, total, total, total, total
    count = tl.full((), 0, tl.float32)
    first = part % parts * length
    rows = unit * positions
    for u in range(first, tl.minimum(first + length, units)):
        sample = (segment * units + u).to(tl.int64) * unit
        xu = x + sample * in_rows * inputs
        du = d + sample * positions * outputs
        g = tl.zeros((BLOCK_OUTPUTS, BLOCK_COLUMNS), tl.float32)
        for begin in range(0, rows, RUN):
            g += _tile_gradient(
                xu, du, begin, tl.minimum(begin + RUN, rows), tap, column_of_x, is_column, output,
                is_output, positions, in_rows, inputs, outputs, sizes, strides, DIMS, PLAIN,
                PRECISION, BLOCK_OUTPUTS, BLOCK_COLUMNS, BLOCK_POSITIONS,
            )  # fmt: skip
        count += 1.0
        total, absolute, square, m2, sign, mean = update(
            g, count, total, absolute, square, m2, sign, mean, WANT
        )
        if SQ_NORM & WANT:
            place = tile.to(tl.int64) * (tl.num_programs(0) // tiles // parts * units)
            tl.store(norms + place + segment * units + u, tl.sum(tl.sum(g * g, 1), 0))

    at = part.to(tl.int64) * outputs * taps * in_group
    at += output[:, None].to(tl.int64) * (taps * in_group) + column
    mask = is_output[:, None] & is_column
    scale = tl.full((), factor, tl.float32)
    write(results, at, mask, total, absolute, square, m2, sign, mean, scale, WANT)


@triton.jit
def _pair_gradient(
    x, d, begin, end, tap, channel, output, is_pair,
    positions, in_rows, inputs, outputs, sizes, strides,
    DIMS: tl.constexpr, PLAIN: tl.constexpr, DTYPE: tl.constexpr,
    BLOCK_PAIRS: tl.constexpr, BLOCK_POSITIONS: tl.constexpr,
):  # fmt: skip
    """The sum of d x over rows ``begin`` to ``end`` of a unit, [BLOCK_PAIRS]."""
    g = tl.zeros((BLOCK_POSITIONS, BLOCK_PAIRS), DTYPE)
    for block in range(begin, end, BLOCK_POSITIONS):
        row = block + tl.arange(0, BLOCK_POSITIONS)[:, None]
        there = (row < end) & is_pair
        ds = tl.load(d + row * outputs + output, there, 0.0)
        if PLAIN:
            xs = tl.load(x + row * inputs + channel, there, 0.0)
        else:
            row_of_x, inside = _rows_of_x(row % positions, tap, sizes, strides, DIMS)
            base = (row // positions) * in_rows
            xs = tl.load(x + (base + row_of_x) * inputs + channel, there & inside, 0.0)
        g += ds.to(DTYPE) * xs.to(DTYPE)
    return tl.sum(g, 0)


@triton.jit(do_not_specialize=_ANY)
def pairs_kernel(
    x, d, results, norms, factor: tl.float64,
    unit, units, length, parts, positions, in_rows, inputs, outputs, groups, sizes, strides, taps,
    WANT: tl.constexpr, DIMS: tl.constexpr, PLAIN: tl.constexpr, RUN: tl.constexpr,
    DTYPE: tl.constexpr, BLOCK_PAIRS: tl.constexpr, BLOCK_POSITIONS: tl.constexpr,
):  # fmt: skip
    """Statistics of single pairs of an output and an input channel at one tap, of any dtype.

    For depthwise convolutions and groups of few channels, where a matrix product would be padding,
    for units of a position or two, and for float64.
    """
    of_group, in_group = outputs // groups, inputs // groups
    pair_tiles = tl.cdiv(outputs * in_group, BLOCK_PAIRS)
    tiles = pair_tiles * taps
    tile = tl.program_id(0) % tiles
    part = tl.program_id(0) // tiles
    segment = part // parts
    tap = tile // pair_tiles
    pair = tile % pair_tiles * BLOCK_PAIRS + tl.arange(0, BLOCK_PAIRS)
    is_pair = pair < outputs * in_group
    output = pair // in_group
    channel = output // of_group * in_group + pair % in_group

    total = tl.zeros((BLOCK_PAIRS,), DTYPE)
    absolute, square, m2, sign, mean = total, total, total, total, total
    count = tl.full((), 0, DTYPE)
    first = part % parts * length
    rows = unit * positions
    for u in range(first, tl.minimum(first + length, units)):
        sample = (segment * units + u).to(tl.int64) * unit
        xu = x + sample * in_rows * inputs
        du = d + sample * positions * outputs
        g = tl.zeros((BLOCK_PAIRS,), DTYPE)
        for begin in range(0, rows, RUN):
            g += _pair_gradient(
                xu, du, begin, tl.minimum(begin + RUN, rows), tap, channel[None, :],
                output[None, :], is_pair[None, :], positions, in_rows, inputs, outputs, sizes,
                strides, DIMS, PLAIN, DTYPE, BLOCK_PAIRS, BLOCK_POSITIONS,
            )  # fmt: skip
        count += 1.0
        total, absolute, square, m2, sign, mean = update(
            g, count, total, absolute, square, m2, sign, mean, WANT
        )
        if SQ_NORM & WANT:
            place = tile.to(tl.int64) * (tl.num_programs(0) // tiles // parts * units)
            tl.store(norms + place + segment * units + u, tl.sum(g * g, 0))

    at = part.to(tl.int64) * outputs * taps * in_group
    at += (output.to(tl.int64) * taps + tap) * in_group + pair % in_group
    scale = tl.full((), factor, DTYPE)
    write(results, at, is_pair, total, absolute, square, m2, sign, mean, scale, WANT)
