"""The Triton kernels of the family; `sigeo_ext.sample_moments.triton` launches them.

Every program owns a tile of the weight and a run of units. It forms the tile of one unit's gradient
in registers, updates the statistics there, and goes on to the next unit; at the end it writes them.
Where a segment's units are spread over several programs, `combine_kernel` puts their results
together in a fixed order. There are no atomics: the same input gives the same bits.

Names: ``results`` are the pointers of sum, abs_sum, sq_sum, m2, sign_sum and of the mean that m2
belongs to, None where ``WANT`` does not have the bit; a *part* is one program's run of units,
``length`` of a segment's ``units``; ``norms`` takes one number a program and unit.
"""

import triton
import triton.language as tl

# Bits of ``WANT``; always on the left, where the interpreter has them meet a plain integer.
SUM = tl.constexpr(1)
ABS_SUM = tl.constexpr(2)
SQ_SUM = tl.constexpr(4)
M2 = tl.constexpr(8)
SIGN_SUM = tl.constexpr(16)
SQ_NORM = tl.constexpr(32)


@triton.jit
def _update(g, count, total, absolute, square, m2, sign, mean, WANT: tl.constexpr):
    """The statistics with one more unit's gradient, which is number ``count``; a NaN stays one."""
    if SUM & WANT:
        total += g
    if ABS_SUM & WANT:
        absolute += tl.abs(g)
    if SQ_SUM & WANT:
        square += g * g
    if M2 & WANT:  # Welford: the first unit is the first mean
        delta = g - mean
        mean += delta * (1.0 / count)
        m2 += delta * (g - mean)
    if SIGN_SUM & WANT:
        one = tl.full(g.shape, 1, g.dtype)
        zero = tl.zeros(g.shape, g.dtype)
        sign += tl.where(g > 0, one, zero) - tl.where(g < 0, one, zero) + tl.where(g != g, g, zero)
    return total, absolute, square, m2, sign, mean


@triton.jit
def _write(
    results, at, mask, total, absolute, square, m2, sign, mean, factor, WANT: tl.constexpr
):  # fmt: skip
    """Store the statistics of gradients times ``factor``."""
    if SUM & WANT:
        tl.store(results[0] + at, total, mask)
    if ABS_SUM & WANT:
        tl.store(results[1] + at, absolute * factor, mask)
    if SQ_SUM & WANT:
        tl.store(results[2] + at, square * (factor * factor), mask)
    if M2 & WANT:
        tl.store(results[3] + at, m2 * (factor * factor), mask)
        if results[5] is not None:
            tl.store(results[5] + at, mean * factor, mask)
    if SIGN_SUM & WANT:
        tl.store(results[4] + at, sign, mask)


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


@triton.jit
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
        total, absolute, square, m2, sign, mean = _update(
            g, count, total, absolute, square, m2, sign, mean, WANT
        )
        if SQ_NORM & WANT:
            place = tile.to(tl.int64) * (tl.num_programs(0) // tiles // parts * units)
            tl.store(norms + place + segment * units + u, tl.sum(tl.sum(g * g, 1), 0))

    at = part.to(tl.int64) * outputs * taps * in_group
    at += output[:, None].to(tl.int64) * (taps * in_group) + column
    mask = is_output[:, None] & is_column
    scale = tl.full((), factor, tl.float32)
    _write(results, at, mask, total, absolute, square, m2, sign, mean, scale, WANT)


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


@triton.jit
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
        total, absolute, square, m2, sign, mean = _update(
            g, count, total, absolute, square, m2, sign, mean, WANT
        )
        if SQ_NORM & WANT:
            place = tile.to(tl.int64) * (tl.num_programs(0) // tiles // parts * units)
            tl.store(norms + place + segment * units + u, tl.sum(g * g, 0))

    at = part.to(tl.int64) * outputs * taps * in_group
    at += (output.to(tl.int64) * taps + tap) * in_group + pair % in_group
    scale = tl.full((), factor, DTYPE)
    _write(results, at, is_pair, total, absolute, square, m2, sign, mean, scale, WANT)


@triton.jit
def rows_kernel(
    rows, results, norms, factor: tl.float64, unit, units, length, parts, size,
    WANT: tl.constexpr, DTYPE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Statistics of gradients that are there, rows [samples, size]."""
    tiles = tl.cdiv(size, BLOCK)
    tile = tl.program_id(0) % tiles
    part = tl.program_id(0) // tiles
    segment = part // parts
    column = tile * BLOCK + tl.arange(0, BLOCK)
    mask = column < size

    total = tl.zeros((BLOCK,), DTYPE)
    absolute, square, m2, sign, mean = total, total, total, total, total
    count = tl.full((), 0, DTYPE)
    first = part % parts * length
    for u in range(first, tl.minimum(first + length, units)):
        sample = (segment * units + u).to(tl.int64) * unit
        g = tl.zeros((BLOCK,), DTYPE)
        for b in range(0, unit):
            g += tl.load(rows + (sample + b) * size + column, mask, 0.0).to(DTYPE)
        count += 1.0
        total, absolute, square, m2, sign, mean = _update(
            g, count, total, absolute, square, m2, sign, mean, WANT
        )
        if SQ_NORM & WANT:
            place = tile.to(tl.int64) * (tl.num_programs(0) // tiles // parts * units)
            tl.store(norms + place + segment * units + u, tl.sum(g * g, 0))

    at = part.to(tl.int64) * size + column
    scale = tl.full((), factor, DTYPE)
    _write(results, at, mask, total, absolute, square, m2, sign, mean, scale, WANT)


@triton.jit
def combine_kernel(
    partial, results, size, units, length, parts,
    WANT: tl.constexpr, DTYPE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The statistics of a segment from those of its parts, [segments, parts, size] each."""
    tiles = tl.cdiv(size, BLOCK)
    segment = (tl.program_id(0) // tiles).to(tl.int64)
    column = tl.program_id(0) % tiles * BLOCK + tl.arange(0, BLOCK)
    mask = column < size

    total = tl.zeros((BLOCK,), DTYPE)
    absolute, square, m2, sign, mean = total, total, total, total, total
    seen = tl.full((), 0, DTYPE)
    for part in range(0, parts):
        at = (segment * parts + part) * size + column
        if SUM & WANT:
            total += tl.load(partial[0] + at, mask, 0.0)
        if ABS_SUM & WANT:
            absolute += tl.load(partial[1] + at, mask, 0.0)
        if SQ_SUM & WANT:
            square += tl.load(partial[2] + at, mask, 0.0)
        if M2 & WANT:  # between two sets of units lies also the distance of their means
            more = tl.minimum(length, units - part * length).to(DTYPE)
            delta = tl.load(partial[5] + at, mask, 0.0) - mean
            share = more / (seen + more)
            m2 += tl.load(partial[3] + at, mask, 0.0) + delta * delta * (seen * share)
            mean += delta * share
            seen += more
        if SIGN_SUM & WANT:
            sign += tl.load(partial[4] + at, mask, 0.0)
    one = tl.full((), 1, DTYPE)
    _write(
        results, segment * size + column, mask, total, absolute, square, m2, sign, mean, one, WANT
    )  # fmt: skip


@triton.jit
def scale_kernel(
    x, d, mean, rstd, factor, dx, scale, shift, positions, channels, length, parts,
    sample_step, position_step, channel_step,
    SCALE: tl.constexpr, SHIFT: tl.constexpr, DX: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    DTYPE: tl.constexpr, BLOCK_POSITIONS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr,
):  # fmt: skip
    """Sums over ``length`` positions of d (x - mean) rstd and of d, and d * factor.

    mean and rstd lie the three steps apart from one sample, position and channel to the next; scale
    and shift are [parts, samples, channels].
    """
    tiles = tl.cdiv(channels, BLOCK_CHANNELS)
    channel = tl.program_id(0) % tiles * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)[None, :]
    row = tl.program_id(0) // tiles
    part = row % parts
    sample = (row // parts).to(tl.int64)
    is_channel = channel < channels

    of_scale = tl.zeros((BLOCK_POSITIONS, BLOCK_CHANNELS), DTYPE)
    of_shift = of_scale
    begin = part * length
    end = tl.minimum(begin + length, positions)
    for block in range(begin, end, BLOCK_POSITIONS):
        position = block + tl.arange(0, BLOCK_POSITIONS)[:, None]
        mask = (position < end) & is_channel
        if CHANNELS_LAST:
            at = (sample * positions + position) * channels + channel
        else:
            at = (sample * channels + channel) * positions + position
        ds = tl.load(d + at, mask, 0.0).to(DTYPE)
        if SCALE:
            of = sample * sample_step + position * position_step + channel * channel_step
            xs = tl.load(x + at, mask, 0.0).to(DTYPE)
            xs = xs - tl.load(mean + of, mask, 0.0).to(DTYPE)
            of_scale += ds * xs * tl.load(rstd + of, mask, 0.0).to(DTYPE)
        if SHIFT:
            of_shift += ds
        if DX:
            tl.store(dx + at, ds * tl.load(factor + channel, is_channel, 0.0).to(DTYPE), mask)
    samples = tl.num_programs(0) // tiles // parts
    at = (part * samples + sample) * channels + channel
    if SCALE:
        tl.store(scale + at, tl.sum(of_scale, 0)[None, :], is_channel)
    if SHIFT:
        tl.store(shift + at, tl.sum(of_shift, 0)[None, :], is_channel)


@triton.jit
def embedding_kernel(
    gradients, places, pairs, rows, results, norms, factor: tl.float64, count, width, pair_count,
    WANT: tl.constexpr, DTYPE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Statistics of the touched rows of an embedding table, [rows, width].

    ``rows`` says where each row's pairs of a row and a unit begin, ``pairs`` where each pair's
    entries do, ``places`` which of the gradients they are; ``norms`` is [tiles, pairs].
    """
    tiles = tl.cdiv(width, BLOCK)
    tile = tl.program_id(0) % tiles
    row = tl.program_id(0) // tiles
    column = tile * BLOCK + tl.arange(0, BLOCK)
    mask = column < width

    total = tl.zeros((BLOCK,), DTYPE)
    absolute, square, m2, sign, mean = total, total, total, total, total
    seen = tl.full((), 0, DTYPE)
    for pair in range(tl.load(rows + row), tl.load(rows + row + 1)):
        g = tl.zeros((BLOCK,), DTYPE)
        for entry in range(tl.load(pairs + pair), tl.load(pairs + pair + 1)):
            place = tl.load(places + entry)
            g += tl.load(gradients + place * width + column, mask, 0.0).to(DTYPE)
        seen += 1.0
        total, absolute, square, m2, sign, mean = _update(
            g, seen, total, absolute, square, m2, sign, mean, WANT
        )
        if SQ_NORM & WANT:
            tl.store(norms + tile.to(tl.int64) * pair_count + pair, tl.sum(g * g, 0))
    if M2 & WANT:  # units that do not touch the row have a gradient of zero
        units = tl.full((), count, DTYPE)
        m2 += mean * mean * (seen * ((units - seen) / units))
    at = row.to(tl.int64) * width + column
    scale = tl.full((), factor, DTYPE)
    _write(results, at, mask, total, absolute, square, m2, sign, mean, scale, WANT)


@triton.jit
def sum_runs_kernel(values, order, begins, sums, BLOCK: tl.constexpr):
    """The sum of values[order[n]] over each run of n, in float64."""
    run = tl.program_id(0)
    total = tl.zeros((BLOCK,), tl.float64)
    end = tl.load(begins + run + 1)
    for block in range(tl.load(begins + run), end, BLOCK):
        n = block + tl.arange(0, BLOCK)
        total += tl.load(values + tl.load(order + n, n < end, 0), n < end, 0.0)
    tl.store(sums + run, tl.sum(total, 0))
