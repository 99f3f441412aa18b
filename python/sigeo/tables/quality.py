"""How good a ranking is for finding the best: beside rank correlation over all architectures.

Yu et al., "An analysis of super-net heuristics in weight-sharing NAS", TPAMI 2021 (sparse Kendall
tau, probability to surpass random search); Yu et al., "Evaluating the search phase of neural
architecture search", ICLR 2020.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sigeo.errors import InputError
from sigeo.kinds import named_arguments
from sigeo.tables.correlation import Values, kendall, last_where_not_finite

FEWEST = 5
"""Architectures whose tau says something: of four, one order in twelve has 1 or -1 by chance."""


@dataclass(frozen=True)
class Pick:
    """The architecture that a ranking puts first.

    Where several are tied for it, the mean over them.

    Attributes:
        value: Its measured value.
        regret: The best measured value less its own.
        percentile: Share of the architectures that are not better, in percent; 100 for the best.
    """

    value: float
    regret: float
    percentile: float


@dataclass(frozen=True)
class Quality:
    """A ranking by all measures of this module.

    Attributes:
        sparse_kendall: As of `sparse_kendall`.
        sparse_kendall_official: The same as the published code computes it.
        top_kendall: As of `top_kendall`.
        hits: Share of the ``top`` that score best which are measured best.
        pick: What the first of the ranking is worth.
        random_surpasses: Probability that random search with ``draws`` finds a better one.
        threshold: Of the sparse ranks, in the unit of the measured values.
        top: How many are the best.
        draws: Of random search.
    """

    sparse_kendall: float
    sparse_kendall_official: float
    top_kendall: float
    hits: float
    pick: Pick
    random_surpasses: float
    threshold: float
    top: int
    draws: int


@named_arguments("quality")
def quality(
    scores: Values, truth: Values, *, threshold: float, top: int, draws: int = 10
) -> Quality:
    """All measures of a ranking at once; arguments and errors as of each."""
    return Quality(
        sparse_kendall(scores, truth, threshold=threshold),
        sparse_kendall(scores, truth, threshold=threshold, official=True),
        top_kendall(scores, truth, top),
        hits(scores, truth, top),
        pick(scores, truth),
        random_surpasses(scores, truth, draws),
        threshold,
        top,
        draws,
    )


@named_arguments("sparse_ranks")
def sparse_ranks(truth: Values, threshold: float) -> NDArray[np.int64]:
    """Ranks of measured values that share one where they lie within the same step.

    Args:
        truth: [n], finite.
        threshold: Width of a step, in the unit of ``truth``: 0.1 where that is in percent is the
            published 0.1 %.

    Returns:
        Ranks [n] from 0, the worst; they go up wherever ``floor(truth / threshold)`` does.

    Raises:
        InputError: A threshold that is not above 0.
    """
    if not (math.isfinite(threshold) and threshold > 0):
        raise InputError(f"threshold: must be above 0, got {threshold}")
    # 91.3 / 0.1 is 912.9999: what is a whole number of steps but for rounding is taken as one.
    exact = truth / threshold
    steps = np.floor(exact + 4 * np.finfo(np.float64).eps * np.abs(exact))
    ranks: NDArray[np.int64] = np.unique(steps, return_inverse=True)[1].reshape(truth.shape)
    return ranks


@named_arguments("sparse_kendall")
def sparse_kendall(
    scores: Values, truth: Values, *, threshold: float, official: bool = False
) -> float:
    """Kendall's tau that does not count differences in ``truth`` below its noise.

    Args:
        scores: [n]; what is not finite ranks last, tied.
        truth: [n], finite.
        threshold: As of `sparse_ranks`.
        official: Whether to compare as the published code does: the sparse ranks in the order of
            ``truth`` with the same ranks in the order of ``scores``. Without ties that is the
            ordinary tau; with ties it is larger. Else tau-b of sparse ranks and scores.

    Returns:
        Tau; NaN if one side does not vary.
    """
    ranks = sparse_ranks(truth, threshold).astype(np.float64)
    ranked = last_where_not_finite(scores)
    if not official:
        return kendall(ranked, ranks)
    by_truth = np.argsort(truth, kind="stable")
    by_score = by_truth[np.argsort(ranked[by_truth], kind="stable")]
    return kendall(ranks[by_truth], ranks[by_score])


@named_arguments("best")
def best(truth: Values, count: int) -> NDArray[np.int64]:
    """Places of the ``count`` best measured values, best first, ties in the order given.

    Raises:
        InputError: More than there are, or none.
    """
    if not 1 <= count <= len(truth):
        raise InputError(f"top: must be from 1 to the {len(truth)} architectures, got {count}")
    return np.argsort(-truth, kind="stable")[:count]


@named_arguments("top_kendall")
def top_kendall(scores: Values, truth: Values, count: int) -> float:
    """Kendall's tau-b among the ``count`` architectures that are measured best.

    Returns:
        Tau; NaN if one side does not vary, or of fewer than `FEWEST`.

    Raises:
        InputError: More than there are, or none.
    """
    places = best(truth, count)
    if count < FEWEST:
        return math.nan
    return kendall(last_where_not_finite(scores)[places], truth[places])


@named_arguments("hits")
def hits(scores: Values, truth: Values, count: int) -> float:
    """Share of the ``count`` architectures that score best which are among those measured best.

    Raises:
        InputError: More than there are, or none.
    """
    found = set(best(last_where_not_finite(scores), count).tolist())
    return len(found & set(best(truth, count).tolist())) / count


@named_arguments("pick")
def pick(scores: Values, truth: Values) -> Pick:
    """What comes of taking the architecture that scores best."""
    first = _first(scores, truth)
    value = float(first.mean())
    better = _share_above(truth, first).mean()
    return Pick(value, float(truth.max()) - value, 100 * (1 - float(better)))


@named_arguments("random_surpasses")
def random_surpasses(scores: Values, truth: Values, draws: int) -> float:
    """Probability that the best of some random architectures is better than the one picked.

    Args:
        scores: [n].
        truth: [n], finite.
        draws: How many random search measures, with replacement.

    Raises:
        InputError: No draw.
    """
    if draws < 1:
        raise InputError(f"draws: must be at least 1, got {draws}")
    better = _share_above(truth, _first(scores, truth))
    return float((1 - (1 - better) ** draws).mean())


@named_arguments("noise_ceiling")
def noise_ceiling(runs: Sequence[Values]) -> float:
    """Mean Kendall's tau-b between pairs of repeated measurements of the same architectures.

    What a ranking can hope to reach against one of them. NaN cells are left out pair by pair.

    Raises:
        InputError: Fewer than two measurements.
    """
    if len(runs) < 2:
        raise InputError(f"runs: expected at least two measurements, got {len(runs)}")
    taus = []
    for i, first in enumerate(runs):
        for second in runs[i + 1 :]:
            both = np.isfinite(first) & np.isfinite(second)
            taus.append(kendall(first[both], second[both]))
    return float(np.mean(taus))


def _first(scores: Values, truth: Values) -> Values:
    """The measured values of those that score best."""
    ranked = last_where_not_finite(scores)
    first: Values = truth[ranked == ranked.max()]
    return first


def _share_above(truth: Values, values: Values) -> Values:
    """For each of some values the share of the measured ones that are larger."""
    shares: Values = 1 - np.searchsorted(np.sort(truth), values, side="right") / len(truth)
    return shares
