"""Rank correlation with bootstrap intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A statistic with its bootstrap interval.

    Attributes:
        value: On all architectures; NaN if one side does not vary.
        low: Lower end of the interval.
        high: Upper end.
    """

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Correlation:
    """How a proxy ranks against a measured value.

    Attributes:
        spearman: Rank correlation rho.
        kendall: Rank correlation tau-b.
        count: Number of architectures.
        not_finite: How many of them the proxy could not score; they rank last, tied.
    """

    spearman: Estimate
    kendall: Estimate
    count: int
    not_finite: int


def spearman(a: Values, b: Values) -> float:
    """Spearman's rho with ties averaged; NaN if one side does not vary."""
    ranks = stats.rankdata(np.stack([a, b]), axis=1)
    deviations = ranks - ranks.mean(1, keepdims=True)
    scale = math.sqrt(float((deviations[0] ** 2).sum()) * float((deviations[1] ** 2).sum()))
    return float(deviations[0] @ deviations[1]) / scale if scale > 0 else math.nan


def kendall(a: Values, b: Values) -> float:
    """Kendall's tau-b; NaN if one side does not vary."""
    if len(a) < 2 or (a == a[0]).all() or (b == b[0]).all():
        return math.nan
    # Ranks, as scipy takes no infinities.
    return float(stats.kendalltau(stats.rankdata(a), stats.rankdata(b)).statistic)


def correlate(
    scores: Values,
    truth: Values,
    *,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Correlation:
    """Correlate scores with measured values of the same architectures.

    Args:
        scores: [n]; what is not finite ranks last, tied.
        truth: [n], finite.
        resamples: Bootstrap resamples of the architectures; percentile interval.
        confidence: Of the interval.
        seed: Of the resampling.
    """
    finite = np.isfinite(scores)
    ranked = np.where(finite, scores, -np.inf)
    draws = _draws(len(truth), resamples, seed)
    return Correlation(
        spearman=_estimate(spearman, ranked, truth, draws, confidence),
        kendall=_estimate(kendall, ranked, truth, draws, confidence),
        count=len(truth),
        not_finite=int((~finite).sum()),
    )


def spearman_difference(
    first: Values,
    second: Values,
    truth: Values,
    *,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Estimate:
    """Spearman of the first scores minus that of the second, by a paired bootstrap.

    Both are resampled together, so that what the architectures have in common cancels.
    """

    def difference(pair: Values, truth: Values) -> float:
        return spearman(pair[0], truth) - spearman(pair[1], truth)

    pair = np.stack([np.where(np.isfinite(s), s, -np.inf) for s in (first, second)])
    return _estimate(difference, pair, truth, _draws(len(truth), resamples, seed), confidence)


def repeated_kendall(
    runs: Sequence[Values],
    truth: Values,
    *,
    baseline: Sequence[Values] = (),
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Estimate:
    """Mean Kendall's tau-b of repeated rankings of the same architectures.

    Args:
        runs: Scores [n] of each repetition; what is not finite ranks last, tied.
        truth: [n], finite.
        baseline: Repetitions of another ranking whose mean is taken off, resampled together with
            ``runs`` so that what the architectures have in common cancels.
        resamples: Bootstrap resamples of the architectures; percentile interval. The repetitions
            are not resampled, so the interval is of these ones.
        confidence: Of the interval.
        seed: Of the resampling.
    """

    def mean(stacked: Values, truth: Values) -> float:
        taus = [kendall(scores, truth) for scores in stacked]
        less = float(np.mean(taus[len(runs) :])) if baseline else 0.0
        return float(np.mean(taus[: len(runs)])) - less

    stacked = np.stack([np.where(np.isfinite(s), s, -np.inf) for s in (*runs, *baseline)])
    return _estimate(mean, stacked, truth, _draws(len(truth), resamples, seed), confidence)


def _draws(count: int, resamples: int, seed: int) -> NDArray[np.int64]:
    return np.random.default_rng(seed).integers(0, count, (resamples, count))


def _estimate(
    statistic: Callable[[Values, Values], float],
    scores: Values,
    truth: Values,
    draws: NDArray[np.int64],
    confidence: float,
) -> Estimate:
    value = statistic(scores, truth)
    resampled = np.array([statistic(scores[..., draw], truth[draw]) for draw in draws])
    resampled = resampled[~np.isnan(resampled)]
    if not len(resampled) or math.isnan(value):
        return Estimate(value, math.nan, math.nan)
    tail = (1 - confidence) / 2
    low, high = np.quantile(resampled, [tail, 1 - tail])
    return Estimate(value, float(low), float(high))
