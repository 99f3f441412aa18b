"""Scores by several proxies as one: sums of their ranks.

Ranks count from 1 for the worst, ties have the average of theirs, and what is not finite ranks
last, tied. They, and so the sums, hold within the architectures given alone: adding one to them may
change the order of others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from sigeo.errors import InputError
from sigeo.kinds import named_arguments
from sigeo.tables.correlation import Values, averaged_ranks, last_where_not_finite


@named_arguments("rank_sum")
def rank_sum(scores: Sequence[Values]) -> Values:
    """Sums of ranks by each proxy, [n]; higher is better.

    As TE-NAS combines ``ntk_cond`` and ``linear_regions`` (Chen et al., ICLR 2021).

    Args:
        scores: Of the same architectures by each proxy, [n] each; higher is better.

    Raises:
        InputError: No list of arrays of numbers, no proxy, or not equally many scores by each.
    """
    summed: Values = _ranks(scores).sum(0)
    return summed


@named_arguments("log_rank_sum")
def log_rank_sum(scores: Sequence[Values]) -> Values:
    """Sums of log(rank / n) by each proxy, [n]; higher is better, 0 the best in everything.

    As AZ-NAS combines its parts (Lee and Ham, CVPR 2024): who is last by one proxy is
    held back more than who is in the middle by two. Arguments and errors as in `rank_sum`.
    """
    found = _ranks(scores)
    summed: Values = np.log(found / found.shape[1]).sum(0)
    return summed


def _ranks(scores: Sequence[Values]) -> Values:
    if not isinstance(scores, (Sequence, np.ndarray)) or isinstance(scores, str):
        hint = "; list(scores.values()) makes one" if isinstance(scores, Mapping) else ""
        kind = type(scores).__name__
        raise InputError(f"scores: expected a list of arrays [n], one a proxy, got {kind}{hint}")
    try:
        columns = [np.asarray(column, dtype=np.float64) for column in scores]
    except (TypeError, ValueError) as error:
        raise InputError(f"scores: expected numbers [n] by each proxy ({error})") from None
    for column in columns:
        if column.ndim != 1:
            raise InputError(f"scores: expected [n] by each proxy, got {list(column.shape)}")
    lengths = {len(column) for column in columns}
    if len(lengths) != 1:
        raise InputError(
            "scores: expected those of the same architectures by each proxy, got "
            + (f"{min(lengths)} and {max(lengths)}" if lengths else "none")
        )
    return averaged_ranks(last_where_not_finite(np.stack(columns)))
