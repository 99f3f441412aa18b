"""Rank correlation with bootstrap intervals.

Intervals are percentile intervals over resampled architectures (B. Efron, R. Tibshirani, An
Introduction to the Bootstrap, 1993, chapter 13). A resample in which one side does not vary counts
as 0, the mean correlation over all ways to break its ties (M. Kendall, Rank Correlation Methods,
1948, chapter 3). Left out, where a few architectures alone tell the others apart, the resamples
that stay hold these more often than the data do, and their interval may lie beside the estimate.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sigeo.errors import InputError
from sigeo.kinds import named_arguments

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
    ranks = averaged_ranks(np.stack([a, b]))
    deviations = ranks - ranks.mean(1, keepdims=True)
    scale = math.sqrt(float((deviations[0] ** 2).sum()) * float((deviations[1] ** 2).sum()))
    return float(deviations[0] @ deviations[1]) / scale if scale > 0 else math.nan


def kendall(a: Values, b: Values) -> float:
    """Kendall's tau-b; NaN if one side does not vary."""
    if len(a) < 2 or (a == a[0]).all() or (b == b[0]).all():
        return math.nan
    from scipy.stats import kendalltau  # slow to import, as in `averaged_ranks`

    return float(kendalltau(*averaged_ranks(np.stack([a, b]))).statistic)  # it takes no infinities


@named_arguments("parts_first")
def parts_first(scores: Values, standing: NDArray[np.int64]) -> Values:
    """Ranks by the part that an architecture is of, and in each part by its score, [n].

    They hold among these architectures alone.

    Args:
        scores: [n]; what is not finite ranks last in its part, tied.
        standing: [n], of their parts: all with a larger number rank above all with a smaller.

    Raises:
        InputError: As many parts as scores are not given.
    """
    if standing.shape != scores.shape:
        raise InputError(
            f"standing: expected a part for each of the {len(scores)} scores, got "
            f"{list(standing.shape)}"
        )
    ranks = averaged_ranks(last_where_not_finite(scores))
    return ranks + (len(scores) + 1) * standing


@named_arguments("correlate")
def correlate(
    scores: Values,
    truth: Values,
    *,
    standing: NDArray[np.int64] | None = None,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Correlation:
    """Correlate scores with measured values of the same architectures.

    Args:
        scores: [n]; what is not finite ranks last, tied.
        truth: [n], finite.
        standing: [n], where parts rank first whatever the scores, see `parts_first`.
        resamples: Bootstrap resamples of the architectures; percentile interval.
        confidence: Of the interval.
        seed: Of the resampling.
    """
    _check_lengths(truth, scores=scores)
    ranked = last_where_not_finite(scores) if standing is None else parts_first(scores, standing)
    draws = _draws(len(truth), resamples, seed)
    return Correlation(
        spearman=_estimate(spearman, ranked, truth, draws, confidence),
        kendall=_kendall_estimate(ranked, truth, draws, confidence),
        count=len(truth),
        not_finite=int((~np.isfinite(scores)).sum()),
    )


@named_arguments("spearman_difference")
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

    Both are resampled together, so that what the architectures have in common cancels. In a
    resample where the scores of one do not vary, its correlation counts as 0 and the other's as it
    is, as they do in their own intervals: were the difference 0 there, the interval would be drawn
    towards 0; left out, it would lean to resamples that the scores tell apart.
    """
    _check_lengths(truth, first=first, second=second)
    draws = _draws(len(truth), resamples, seed)

    def resampled(scores: Values) -> tuple[float, Values]:
        ranked = last_where_not_finite(scores)
        found = np.array([spearman(ranked[draw], truth[draw]) for draw in draws])
        return spearman(ranked, truth), np.nan_to_num(found)

    (value, found), (less, found_less) = resampled(first), resampled(second)
    return _interval(value - less, found - found_less, confidence)


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
    draws = _draws(len(truth), resamples, seed)

    def mean(rankings: Sequence[Values]) -> tuple[float, Values]:
        finite = [last_where_not_finite(scores) for scores in rankings]
        taus = [kendall(scores, truth) for scores in finite]
        resampled = [np.nan_to_num(_kendalls(scores, truth, draws)) for scores in finite]
        return float(np.mean(taus)), np.mean(resampled, axis=0)

    value, resampled = mean(runs)
    if baseline:
        less, resampled_less = mean(baseline)
        value, resampled = value - less, resampled - resampled_less
    return _interval(value, resampled, confidence)


def _check_lengths(truth: Values, **rankings: Values) -> None:
    if truth.ndim != 1 or len(truth) < 1:
        raise InputError(
            f"truth: expected measured values [n], one at least, got {list(truth.shape)}"
        )
    for name, scores in rankings.items():
        if scores.shape != truth.shape:
            raise InputError(
                f"{name}: expected a score for each of the {len(truth)} measured values, got "
                f"{list(scores.shape)}"
            )


def _draws(count: int, resamples: int, seed: int) -> NDArray[np.int64]:
    if resamples < 1 or seed < 0:
        raise InputError(
            f"resamples: must be at least 1 with a seed from 0, got {resamples} with {seed}"
        )
    return np.random.default_rng(seed).integers(0, count, (resamples, count))


def _estimate(
    statistic: Callable[[Values, Values], float],
    scores: Values,
    truth: Values,
    draws: NDArray[np.int64],
    confidence: float,
) -> Estimate:
    resampled = np.array([statistic(scores[draw], truth[draw]) for draw in draws])
    return _interval(statistic(scores, truth), resampled, confidence)


def _kendall_estimate(
    scores: Values, truth: Values, draws: NDArray[np.int64], confidence: float
) -> Estimate:
    # The estimate by the resamples' formula, whose sums are exact: equal values are equal bits.
    everything = np.arange(len(truth))[None]
    value = float(_kendalls(scores, truth, everything)[0])
    return _interval(value, _kendalls(scores, truth, draws), confidence)


def _interval(value: float, resampled: Values, confidence: float) -> Estimate:
    if math.isnan(value):
        return Estimate(value, math.nan, math.nan)
    if not 0 < confidence < 1:
        raise InputError(f"confidence: must be above 0 and below 1, got {confidence}")
    resampled = np.nan_to_num(resampled)
    tail = (1 - confidence) / 2
    low, high = np.quantile(resampled, [tail, 1 - tail])
    return Estimate(value, float(low), float(high))


_LARGE = 2048  # architectures whose matrix of pairs takes 32 MiB


def _kendalls(a: Values, b: Values, draws: NDArray[np.int64]) -> Values:
    """Kendall's tau-b of each resample [resamples]; NaN where one side does not vary.

    With S_ij and T_ij the signs of the differences of all pairs and c the numbers of times that a
    resample holds each architecture, tau-b is c'(S T)c / sqrt(c'(S S)c c'(T T)c), products of
    entries: sums of whole numbers, so exact.
    """
    if len(a) > _LARGE:
        return np.array([kendall(a[draw], b[draw]) for draw in draws])
    signs = [np.sign(np.subtract.outer(r, r)) for r in averaged_ranks(np.stack([a, b]))]
    counts = np.zeros((len(draws), len(a)))
    np.add.at(counts, (np.arange(len(draws))[:, None], draws), 1)

    def form(matrix: Values) -> Values:
        values: Values = ((counts @ matrix) * counts).sum(1)
        return values

    s, t = signs
    with np.errstate(divide="ignore", invalid="ignore"):
        taus: Values = form(s * t) / np.sqrt(form(s * s) * form(t * t))
    return taus


def last_where_not_finite(scores: Values) -> Values:
    """Scores to rank by: what is not finite is minus infinity, so that it comes last, tied."""
    return np.where(np.isfinite(scores), scores, -np.inf)


def averaged_ranks(values: Values) -> Values:
    """Ranks along the last axis, those of ties averaged."""
    from scipy.stats import rankdata  # takes a second, more than all else that recipes import

    ranks: Values = rankdata(values, axis=-1)
    return ranks
