"""The ops on gradients that are there: of small parameters, and of embeddings' entries."""

from __future__ import annotations

import torch
from torch import Tensor

from sigeo_ext.sample_moments import reference, tiles
from sigeo_ext.sample_moments.reference import SQ_NORM
from sigeo_ext.sample_moments.triton.results import (
    OPTIONS,
    Results,
    dtype_of,
    empty,
    zeros,
)
from sigeo_ext.sample_moments.triton.statistic_kernels import (
    embedding_kernel,
    rows_kernel,
    sum_runs_kernel,
)


def rows(rows: Tensor, unit: int, segments: int, want: int, factor: float) -> list[Tensor]:
    """Statistics [segments, size] and sq_norm [units] of gradients that are there."""
    reference.check_rows(rows, unit, segments, want)
    units, size = len(rows) // unit, rows.shape[1]
    if 0 in (units, size):
        return zeros(rows, (size,), units, segments, want)
    block = tiles.power_of_two(size, tiles.shipped().rows, 16)
    results = Results(rows, (size,), -(-size // block), units, segments, want)
    with torch.cuda.device_of(rows):
        rows_kernel[(results.programs,)](
            rows.contiguous(), results.pointers, results.norms, factor, unit, results.units,
            results.length, results.parts, size, WANT=want, DTYPE=dtype_of(rows), BLOCK=block,
            **OPTIONS,
        )  # fmt: skip
        return results.collect(factor)


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
        return [touched, *zeros(gradients, (width,), count, len(touched), want)]
    block = tiles.power_of_two(width, tiles.shipped().rows, 16)
    blocks = -(-width // block)
    results = empty(gradients, (len(touched), width), want)
    norms = None
    if want & SQ_NORM:
        norms = gradients.new_empty(blocks, len(pairs), dtype=torch.float64)
    with torch.cuda.device_of(gradients):
        embedding_kernel[(len(touched) * blocks,)](
            gradients.contiguous(), places, _bounds(pairs, len(places)),
            _bounds(pairs_of_row.cumsum(0) - pairs_of_row, len(pairs)), (*results, None), norms,
            factor, count, width, len(pairs), WANT=want, DTYPE=dtype_of(gradients), BLOCK=block,
            **OPTIONS,
        )  # fmt: skip
        found = [result for result in results if result is not None]
        if norms is not None:
            found.append(_sums_of_units(norms.sum(0), unit[pairs], count) * factor**2)
    return [touched, *found]


def tables(rows: Tensor, gradients: Tensor, unit: int, want: int, factor: float) -> list[Tensor]:
    """Where each table's rows begin [F + 1], the rows, statistics, and sq_norm [F, units].

    As one large table, in which a table's rows follow another's.
    """
    reference.check_tables(rows, gradients, unit, want)
    samples, count = rows.shape
    units, device = samples // unit, rows.device
    size = int(rows.max()) + 1 if samples else 1
    table = torch.arange(count, device=device)
    row = (rows + table * size).flatten()
    of_sample = torch.arange(samples, device=device).div(unit, rounding_mode="floor")
    values = gradients.flatten(0, 1)
    found: list[Tensor] = []
    if want & ~SQ_NORM:
        of_entry = of_sample[:, None].expand(-1, count).flatten()
        touched, *found = embedding(row, of_entry, values, units, 1, -1, want & ~SQ_NORM, factor)
    if want & SQ_NORM:  # a unit's norm in each table: units of their own
        apart = (of_sample[:, None] + table * units).flatten()
        touched, norms = embedding(row, apart, values, count * units, 1, -1, SQ_NORM, factor)
        found.append(norms.view(count, units))
    first = torch.searchsorted(touched, torch.arange(count + 1, device=device) * size)
    return [first, touched % size, *found]


def _bounds(begins: Tensor, end: int) -> Tensor:
    """Where runs begin, and where the last one ends."""
    return torch.cat([begins, begins.new_tensor([end])])


def _sums_of_units(values: Tensor, units: Tensor, count: int) -> Tensor:
    """The sum of each unit's values, in the order they come in."""
    order = units.argsort(stable=True)
    begins = torch.searchsorted(units[order], torch.arange(count + 1, device=units.device))
    sums = values.new_empty(count)
    sum_runs_kernel[(count,)](values, order, begins, sums, BLOCK=tiles.shipped().rows, **OPTIONS)
    return sums
