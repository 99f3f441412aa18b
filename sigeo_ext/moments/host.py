"""The moments kernels on NumPy arrays, for code that holds gradients without torch.

The same cores as the ops, one thread, no tensors. Arrays are C-contiguous; gradients and weights
float16, float32 or float64, a state float32 or float64. `sigeo_ext.moments` says what the
functions compute. Needs the compiled package.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sigeo_ext import _host
from sigeo_ext._kinds import named_arguments
from sigeo_ext.moments.reference import MAX_ROWS

__all__ = ["Summary", "rows_summary", "summary", "update_"]

Arrays = Sequence[NDArray[np.floating]]


class Summary(NamedTuple):
    """`sigeo_ext.moments.Summary` as float64 arrays of shape [layers]."""

    ratio: NDArray[np.float64]
    kept: NDArray[np.float64]
    inner: NDArray[np.float64]
    abs_sum: NDArray[np.float64]
    mean_sq: NDArray[np.float64]
    m2_sum: NDArray[np.float64]


def _check_units(units: int, ddof: int) -> None:
    if not 0 <= ddof < units:
        raise ValueError(
            f"moments: ddof must be at least 0 and below the {units} units, got {ddof}"
        )


@named_arguments("moments.host.update_")
def update_(abs_sum: Arrays, mean: Arrays, m2: Arrays, grads: Arrays, *, count: int) -> None:
    """Add one unit to a state of ``count`` units, in place; see `sigeo_ext.moments.update_`.

    Raises:
        ValueError: A negative count, or arrays of the wrong size, dtype or memory order.
    """
    if count < 0:
        raise ValueError(f"moments: count must be at least 0, got {count}")
    _host.moments_update_(list(abs_sum), list(mean), list(m2), list(grads), count)


@named_arguments("moments.host.summary")
def summary(
    abs_sum: Arrays, mean: Arrays, m2: Arrays, *, count: int, weights: Arrays = (), ddof: int = 0
) -> Summary:
    """Reduce a state to a few sums a layer; see `sigeo_ext.moments.summary`.

    Raises:
        ValueError: No unit, ``ddof`` not below their number, or arrays that do not fit.
    """
    _check_units(count, ddof)
    table = _host.moments_summary(list(abs_sum), list(mean), list(m2), list(weights), count, ddof)
    return Summary(*table.T)


@named_arguments("moments.host.rows_summary")
def rows_summary(rows: Sequence[Arrays], *, weights: Arrays = (), ddof: int = 0) -> Summary:
    """Reduce up to `MAX_ROWS` units to a few sums a layer; see `sigeo_ext.moments.rows_summary`.

    Raises:
        ValueError: No unit or too many, ``ddof`` not below their number, or arrays that do not fit.
    """
    if len(rows) > MAX_ROWS:
        raise ValueError(f"moments: rows must hold at most {MAX_ROWS} units, got {len(rows)}")
    _check_units(len(rows), ddof)
    if any(len(unit) != len(rows[0]) for unit in rows):
        raise ValueError("moments: every unit must hold one array a layer")
    flat = [g for unit in rows for g in unit]
    return Summary(*_host.moments_rows_summary(flat, list(weights), len(rows), ddof).T)
