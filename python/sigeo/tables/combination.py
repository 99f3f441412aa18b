"""Scores by several proxies as one: sums of their ranks.

Ranks count from 1 for the worst, ties have the average of theirs, and what is not finite ranks
last, tied. They, and so the sums, hold within the architectures given alone: adding one to them may
change the order of others.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sigeo.tables.correlation import Values, averaged_ranks


def rank_sum(scores: Sequence[Values]) -> Values:
    """Sums of ranks by each proxy, [n]; higher is better.

    As TE-NAS combines ``ntk_cond`` and ``linear_regions`` (Chen et al., ICLR 2021).

    Args:
        scores: Of the same architectures by each proxy, [n] each; higher is better.

    Raises:
        ValueError: No proxy, or not equally many scores by each.
    """
    summed: Values = _ranks(scores).sum(0)
    return summed


def log_rank_sum(scores: Sequence[Values]) -> Values:
    """Sums of log(rank / n) by each proxy, [n]; higher is better, 0 the best in everything.

    As AZ-NAS combines its parts (Lee and Ham, CVPR 2024): who is last by one proxy is
    held back more than who is in the middle by two. Arguments and errors as in `rank_sum`.
    """
    found = _ranks(scores)
    summed: Values = np.log(found / found.shape[1]).sum(0)
    return summed


def _ranks(scores: Sequence[Values]) -> Values:
    lengths = {len(column) for column in scores}
    if len(lengths) != 1:
        raise ValueError(
            "scores: expected those of the same architectures by each proxy, got "
            + (f"{min(lengths)} and {max(lengths)}" if lengths else "none")
        )
    columns = np.stack([np.asarray(column, dtype=np.float64) for column in scores])
    return averaged_ranks(np.where(np.isfinite(columns), columns, -np.inf))
