"""Where a plan puts the good architectures, and whether its supernets can be told apart.

Ly-Manson et al., "Analyzing Few-Shot Neural Architecture Search in a Metric-Driven Framework"
(AutoML 2024), ask both of a split. All of it is read off a table.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sigeo.errors import InputError
from sigeo.fewshot.known import Known
from sigeo.fewshot.plan import Plan
from sigeo.kinds import named_arguments
from sigeo.tables import FEWEST, kendall


@dataclass(frozen=True)
class Child:
    """One leaf, seen with a table.

    Attributes:
        size: Architectures of its region; None where they are not counted, see `Plan.sizes`.
        known: Those of them that the table has.
        top: Those of them that are among the best.
        mean: Of the known values; NaN where there are none.
        best: The largest; NaN where there are none.
        best_rank: Its place in the whole table, 1 for the best of all; None where there are none.
        kendall: Tau-b of predictions and values inside the leaf; NaN of fewer than
            `sigeo.tables.FEWEST`, None without predictions.
    """

    size: int | None
    known: int
    top: int
    mean: float
    best: float
    best_rank: int | None
    kendall: float | None


@dataclass(frozen=True)
class Analysis:
    """A plan, seen with a table.

    Attributes:
        children: The leaves.
        top: How many architectures count as the best.
        entropy: Of the distribution of the best over the leaves, over the logarithm of the number
            of leaves: 0 if one leaf has them all, 1 if all have equally many; NaN for one leaf.
        kendall: Tau-b of predictions and values of all leaves together; NaN and None likewise.
        best: The largest value of the table.
    """

    children: tuple[Child, ...]
    top: int
    entropy: float
    kendall: float | None
    best: float

    def regret(self, leaf: int) -> float:
        """What is lost for good when a leaf is selected: the best value minus the leaf's best.

        Raises:
            InputError: There is no such leaf, or the table knows nothing of it.
        """
        if not 0 <= leaf < len(self.children) or self.children[leaf].known == 0:
            raise InputError(
                f"analysis: expected a leaf from 0 to {len(self.children) - 1} "
                f"that the table knows, got {leaf}"
            )
        return self.best - self.children[leaf].best

    def selected(self, by: str) -> int:
        """The leaf that a measure of its known values selects, the first of equal ones.

        Args:
            by: "mean", "best", or "top" for the number of the best.

        Raises:
            InputError: Another measure.
        """
        if by not in ("mean", "best", "top"):
            raise InputError(f"analysis: expected mean, best or top, got {by!r}")
        known = [i for i, child in enumerate(self.children) if child.known]
        return max(known, key=lambda i: (float(getattr(self.children[i], by)), -i))


def best_count(top: float, count: int) -> int:
    """How many of ``count`` architectures are the best.

    Args:
        top: A share below 1, rounded down but at least one, or their number.
        count: How many there are.

    Raises:
        InputError: ``top`` is neither.
    """
    if not 0 < top <= count or (top > 1 and top != int(top)):
        raise InputError(f"analysis: top must be a share or a number up to {count}, got {top}")
    if top >= 1:
        return int(top)
    # 0.29 * 100 is 28.9999: what is a whole number but for rounding is taken as one.
    return max(1, math.floor(top * count * (1 + 4 * sys.float_info.epsilon)))


@named_arguments("analyse")
def analyse(
    plan: Plan[Any],
    known: Known,
    *,
    top: float = 0.01,
    predictions: Mapping[str, float] | None = None,
) -> Analysis:
    """Look at a plan with a table.

    Args:
        plan: The plan.
        known: The table's values.
        top: How many count as the best, see `best_count`.
        predictions: Architecture string to what its supernet says, higher is better; those of
            other architectures are not looked at.

    Raises:
        InputError: ``top`` out of its range, an architecture that no leaf serves, or fewer than
            two predictions of architectures that the table knows.
    """
    count = len(known.values)
    best = best_count(top, count)
    leaves = np.array([plan.route(arch) for arch in known.archs])
    order = np.argsort(-known.values, kind="stable")
    ranks = np.empty(count, dtype=np.int64)
    ranks[order] = np.arange(1, count + 1)
    predicted = None if predictions is None else _predicted(known, predictions)
    children = tuple(
        _child(size, leaves == leaf, known.values, ranks, best, predicted)
        for leaf, size in enumerate(plan.sizes)
    )
    return Analysis(
        children,
        best,
        _entropy([child.top for child in children]),
        None if predicted is None else _kendall(predicted, known.values),
        float(known.values.max()),
    )


def _child(
    size: int | None,
    inside: NDArray[np.bool_],
    values: NDArray[np.float64],
    ranks: NDArray[np.int64],
    best: int,
    predicted: NDArray[np.float64] | None,
) -> Child:
    mine, places = values[inside], ranks[inside]
    return Child(
        size,
        len(mine),
        int((places <= best).sum()),
        float(mine.mean()) if len(mine) else math.nan,
        float(mine.max()) if len(mine) else math.nan,
        int(places.min()) if len(mine) else None,
        None if predicted is None else _kendall(predicted[inside], mine),
    )


def _predicted(known: Known, predictions: Mapping[str, float]) -> NDArray[np.float64]:
    """[n], NaN where there is none.

    Raises:
        InputError: There are fewer than two.
    """
    found = np.array([predictions.get(str(arch), np.nan) for arch in known.archs])
    if (~np.isnan(found)).sum() < 2:
        raise InputError("analysis: expected predictions of two architectures of the table or more")
    return found


def _kendall(predicted: NDArray[np.float64], values: NDArray[np.float64]) -> float:
    there = ~np.isnan(predicted)
    return kendall(predicted[there], values[there]) if there.sum() >= FEWEST else math.nan


def _entropy(counts: list[int]) -> float:
    if len(counts) < 2:
        return math.nan
    total = sum(counts)
    shares = [count / total for count in counts if count]
    return -math.fsum(share * math.log(share) for share in shares) / math.log(len(counts)) + 0.0
