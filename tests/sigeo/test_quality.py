"""Measures of a ranking: sparse tau, the top, the pick, random search, noise."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from sigeo import InputError
from sigeo.tables import (
    best,
    hits,
    kendall,
    noise_ceiling,
    pick,
    random_surpasses,
    sparse_kendall,
    sparse_ranks,
    top_kendall,
)

RNG = np.random.default_rng(0)


def tau_b(a, b):
    """Kendall's tau-b by its definition, pair by pair."""
    concordant = discordant = ties_a = ties_b = 0
    for i, j in itertools.combinations(range(len(a)), 2):
        first, second = np.sign(a[i] - a[j]), np.sign(b[i] - b[j])
        concordant += first * second > 0
        discordant += first * second < 0
        ties_a += first == 0
        ties_b += second == 0
    pairs = len(a) * (len(a) - 1) / 2
    return (concordant - discordant) / math.sqrt((pairs - ties_a) * (pairs - ties_b))


def test_sparse_ranks_share_steps():
    truth = np.array([91.35, 91.3, 91.29, 91.2, 90.0, 91.3999])
    assert sparse_ranks(truth, 0.1).tolist() == [2, 2, 1, 1, 0, 2]
    assert sparse_ranks(truth / 100, 0.001).tolist() == [2, 2, 1, 1, 0, 2]
    assert sparse_ranks(truth, 1e-6).tolist() == [4, 3, 2, 1, 0, 5]


def test_every_tenth_of_a_percent_opens_a_rank():
    truth = np.array([k / 10 for k in range(1000)])
    assert sparse_ranks(truth, 0.1).tolist() == list(range(1000))


def test_every_tenth_below_zero_opens_a_rank():
    truth = np.array([-k / 10 for k in range(1000)])  # such as losses with their sign turned
    assert sparse_ranks(truth, 0.1).tolist() == list(range(999, -1, -1))


@pytest.mark.parametrize("threshold", [0.1, 1.0, 5.0])
def test_sparse_kendall_is_tau_b_of_the_shared_ranks(threshold):
    truth = 90 + 3 * RNG.standard_normal(60)
    scores = truth + RNG.standard_normal(60)
    slow = tau_b(scores, np.floor(truth / threshold))
    assert sparse_kendall(scores, truth, threshold=threshold) == pytest.approx(slow, abs=1e-12)


def test_the_published_form_reads_shared_ranks_in_both_orders():
    # By hand: ranks in the order of truth 0 0 1 1; the scores' order reads them as 0 1 0 1. Of the
    # six pairs two are tied on each side, one on both sides of neither: 2 concordant, 1 discordant.
    truth = np.array([0.0, 0.1, 1.0, 1.1])
    scores = np.array([1.0, 3.0, 2.0, 4.0])
    assert sparse_kendall(scores, truth, threshold=1, official=True) == pytest.approx(
        tau_b(np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1]))
    )
    # Scores against shared ranks: of the four pairs that truth orders, three agree.
    expected = (3 - 1) / math.sqrt(4 * 6)
    assert sparse_kendall(scores, truth, threshold=1) == pytest.approx(expected)


def test_the_published_form_is_larger_with_ties_and_equal_without():
    truth = np.sort(90 + 3 * RNG.standard_normal(400))
    scores = truth + 2 * RNG.standard_normal(400)
    plain = kendall(scores, truth)
    assert sparse_kendall(scores, truth, threshold=1e-9, official=True) == pytest.approx(plain)
    coarse = sparse_kendall(scores, truth, threshold=2.0)
    assert sparse_kendall(scores, truth, threshold=2.0, official=True) > coarse + 0.01


def test_the_top():
    truth = np.array([1.0, 5.0, 4.0, 3.0, 2.0, 5.0])
    scores = np.array([9.0, 3.0, 4.0, 5.0, 1.0, 2.0])
    assert best(truth, 3).tolist() == [1, 5, 2]
    assert hits(scores, truth, 3) == pytest.approx(1 / 3)
    assert hits(truth, truth, 4) == 1
    five = [1, 5, 2, 3, 4]
    assert top_kendall(scores, truth, 5) == pytest.approx(tau_b(scores[five], truth[five]))


def test_an_order_of_a_few_is_no_tau():
    truth = np.arange(6.0)
    assert all(top_kendall(truth, truth, count) == pytest.approx(1) for count in (5, 6))
    assert all(math.isnan(top_kendall(truth, truth, count)) for count in (1, 2, 3, 4))
    with pytest.raises(InputError, match="top: must be from 1 to the 6"):
        top_kendall(truth, truth, 7)


def test_the_pick():
    truth = np.array([90.0, 94.0, 92.0, 91.0])
    chosen = pick(np.array([0.1, 0.2, 0.9, math.nan]), truth)
    assert (chosen.value, chosen.regret, chosen.percentile) == (92, 2, 75)
    tied = pick(np.array([1.0, 1.0, 0.0, -math.inf]), truth)
    assert (tied.value, tied.regret, tied.percentile) == (92, 2, 62.5)
    nothing = pick(np.full(4, math.nan), truth)
    assert (nothing.value, nothing.percentile) == (91.75, 62.5)


def test_random_search_surpasses_as_often_as_it_does():
    truth = RNG.standard_normal(200)
    scores = truth + RNG.standard_normal(200)
    chosen = truth[scores.argmax()]
    draws = truth[RNG.integers(0, 200, (20_000, 7))]
    seen = (draws.max(1) > chosen).mean()
    assert random_surpasses(scores, truth, 7) == pytest.approx(seen, abs=0.015)
    assert random_surpasses(truth, truth, 1000) == 0


def test_noise_between_runs():
    truth = RNG.standard_normal(50)
    runs = [truth + 0.1 * RNG.standard_normal(50) for _ in range(3)]
    expected = np.mean([tau_b(a, b) for a, b in itertools.combinations(runs, 2)])
    assert noise_ceiling(runs) == pytest.approx(expected)
    gap = [runs[0].copy(), runs[1]]
    gap[0][:10] = math.nan
    assert noise_ceiling(gap) == pytest.approx(tau_b(runs[0][10:], runs[1][10:]))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda a: sparse_kendall(a, a, threshold=0), "threshold: must be above 0, got 0"),
        (lambda a: top_kendall(a, a, 4), "top: must be from 1 to the 3 architectures, got 4"),
        (lambda a: hits(a, a, 0), "top: must be from 1"),
        (lambda a: random_surpasses(a, a, 0), "draws: must be at least 1"),
        (lambda a: noise_ceiling([a]), "expected at least two measurements, got 1"),
    ],
)
def test_bad_numbers_are_refused(make, message):
    with pytest.raises(InputError, match=message):
        make(np.arange(3.0))
