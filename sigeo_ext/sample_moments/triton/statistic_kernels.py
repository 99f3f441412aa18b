"""Kernels that keep statistics over units, of gradients that are there; and what all share.

Every program owns a tile of the weight and a run of units. It has one unit's gradient of the tile
in registers, updates the statistics there, goes on to the next unit, and writes them at the end.
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

# One compiled kernel for whatever values these have; they say nothing of alignment.
_ANY = ["unit", "units", "length", "parts"]


@triton.jit
def update(g, count, total, absolute, square, m2, sign, mean, WANT: tl.constexpr):
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
def write(
    results, at, mask, total, absolute, square, m2, sign, mean, factor, WANT: tl.constexpr
):  # fmt: skip
    """Store the statistics of gradients times ``factor``."""
    if SUM & WANT:
        tl.store(results[0] + at, total, mask)
    if ABS_SUM & WANT:
        tl.store(results[1] + at, absolute * tl.abs(factor), mask)
    if SQ_SUM & WANT:
        tl.store(results[2] + at, square * (factor * factor), mask)
    if M2 & WANT:
        tl.store(results[3] + at, m2 * (factor * factor), mask)
        if results[5] is not None:
            tl.store(results[5] + at, mean * factor, mask)
    if SIGN_SUM & WANT:
        tl.store(results[4] + at, sign, mask)


@triton.jit(do_not_specialize=_ANY)
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
        total, absolute, square, m2, sign, mean = update(
            g, count, total, absolute, square, m2, sign, mean, WANT
        )
        if SQ_NORM & WANT:
            place = tile.to(tl.int64) * (tl.num_programs(0) // tiles // parts * units)
            tl.store(norms + place + segment * units + u, tl.sum(g * g, 0))

    at = part.to(tl.int64) * size + column
    scale = tl.full((), factor, DTYPE)
    write(results, at, mask, total, absolute, square, m2, sign, mean, scale, WANT)


@triton.jit(do_not_specialize=_ANY)
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
    write(
        results, segment * size + column, mask, total, absolute, square, m2, sign, mean, one, WANT
    )  # fmt: skip


@triton.jit(do_not_specialize=["count", "pair_count"])
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
        total, absolute, square, m2, sign, mean = update(
            g, seen, total, absolute, square, m2, sign, mean, WANT
        )
        if SQ_NORM & WANT:
            tl.store(norms + tile.to(tl.int64) * pair_count + pair, tl.sum(g * g, 0))
    if M2 & WANT:  # units that do not touch the row have a gradient of zero
        units = tl.full((), count, DTYPE)
        m2 += mean * mean * (seen * ((units - seen) / units))
    at = row.to(tl.int64) * width + column
    scale = tl.full((), factor, DTYPE)
    write(results, at, mask, total, absolute, square, m2, sign, mean, scale, WANT)


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
