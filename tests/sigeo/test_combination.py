"""Sums of ranks: by counting who is beaten, with ties and with scores that are not finite."""

from __future__ import annotations

import math

import numpy as np
import pytest

from sigeo import InputError
from sigeo.tables import log_rank_sum, rank_sum


def counted(column):
    """One and how many are beaten, ties by half; what is not finite is beaten by all others."""
    values = [v if math.isfinite(v) else -math.inf for v in column]
    return [1 + sum(w < v for w in values) + (sum(w == v for w in values) - 1) / 2 for v in values]


def columns(count=3, length=30):
    generator = np.random.default_rng(0)
    found = [generator.integers(0, 12, length).astype(float) for _ in range(count)]
    found[0][[2, 5]] = math.nan, -math.inf
    found[-1][[5, 9, 11]] = math.inf, math.nan, -math.inf
    return found


@pytest.mark.parametrize("count", [1, 2, 5])
def test_sums_are_of_counted_ranks(count):
    scores = columns(count)
    ranks = np.array([counted(column) for column in scores])
    np.testing.assert_allclose(rank_sum(scores), ranks.sum(0), rtol=1e-12)
    np.testing.assert_allclose(log_rank_sum(scores), np.log(ranks / 30).sum(0), rtol=1e-12)


def test_the_best_in_everything_has_the_highest_sums():
    scores = [np.array([1.0, 2.0, 3.0]), np.array([-1e9, 0.0, 1e-9])]
    assert list(rank_sum(scores)) == [2, 4, 6]
    assert log_rank_sum(scores)[2] == 0
    # Second twice beats first and last by logarithms, and not by ranks.
    scores = [np.array([1.0, 2.0, 3.0]), np.array([3.0, 2.0, 1.0])]
    assert len(set(rank_sum(scores))) == 1 and log_rank_sum(scores).argmax() == 1


def test_only_the_order_counts_and_the_order_of_architectures_does_not():
    scores = columns()
    moved = [np.exp(0.1 * column) for column in scores]
    moved[0][5] = -math.inf  # the exponential made a number of it
    moved[-1][11] = -math.inf
    np.testing.assert_array_equal(rank_sum(scores), rank_sum(moved))
    turned = np.random.default_rng(1).permutation(30)
    np.testing.assert_allclose(
        log_rank_sum([column[turned] for column in scores]), log_rank_sum(scores)[turned]
    )


@pytest.mark.parametrize("function", [rank_sum, log_rank_sum])
def test_columns_that_do_not_belong_together_are_refused(function):
    for scores, message in (
        ([], "got none"),
        ([np.zeros(2), np.zeros(3)], "got 2 and 3"),
        ({"zico": [1, 2]}, r"list of arrays \[n\], one a proxy, got dict; list\(scores.values"),
        ("zico", r"list of arrays \[n\], one a proxy, got str$"),
        (None, r"list of arrays \[n\], one a proxy, got NoneType$"),
        ([1.0, 2.0], r"\[n\] by each proxy, got \[\]$"),
        ([np.zeros((2, 3))], r"\[n\] by each proxy, got \[2, 3\]$"),
        ([[1, 2], ["a", "b"]], r"numbers \[n\] by each proxy \(could not convert"),
        ([[1, [2, 3]]], r"numbers \[n\] by each proxy \("),
    ):
        with pytest.raises(InputError, match="^scores: expected .*" + message):
            function(scores)
