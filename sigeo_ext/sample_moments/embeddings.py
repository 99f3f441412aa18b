"""Statistics of embedding tables, one or many at a time."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from torch import Tensor

from sigeo_ext._kinds import named_arguments
from sigeo_ext.sample_moments import op
from sigeo_ext.sample_moments.layout import entries_of_unit, widened
from sigeo_ext.sample_moments.statistics import SampleMoments, bits_of, named


@named_arguments("sample_moments.embedding")
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
    entries = entries_of_unit("sample_moments.embedding", rows, count, units)
    touched, *results = op.sample_moments_embedding(
        rows.contiguous(),
        None if units is None else units.contiguous(),
        widened(gradients.detach()).contiguous(),
        count,
        entries,
        skipped,
        bits,
        factor,
    )
    return touched, named(bits, results)


class Tables(NamedTuple):
    """What `tables` computes."""

    first: Tensor
    """Where each table's rows begin among all of them, and their end; int64 [tables + 1]."""
    rows: Tensor
    """The touched rows of one table after another's, rising within a table; int64 [R]."""
    moments: SampleMoments
    """Statistics of them [R, E]; sq_norm [tables, units]."""


@named_arguments("sample_moments.tables")
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
    values = widened(gradients.detach()).contiguous()
    first, touched, *results = op.sample_moments_tables(
        rows.contiguous(), values, unit, bits, factor
    )
    return Tables(first, touched, named(bits, results))
