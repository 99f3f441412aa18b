"""Greedy paths on a made-up table of accuracies: shares, pool, schedule, stop."""

from __future__ import annotations

import json
import math
import random
import signal
import subprocess
import sys

import pytest
import torch

from sigeo import InputError
from sigeo.spaces import Product
from sigeo.supernet import (
    Budget,
    CandidatePool,
    Greedy,
    ValidationLoss,
    confidence,
    evaluate,
    load_checkpoint,
)
from tests.sigeo.training import SPACE, assert_resumes, assert_same, batches, trained, training

REGION = Product(SPACE, ((1, 2, 3, 4),) * 6)  # 4096 connected architectures


class Oracle:
    """Losses that follow from the architecture, with noise of a stream of its own."""

    def __init__(self, noise=0.0, images=0):
        self.noise, self.images = noise, images
        self.rng = random.Random(0)
        self.calls = []

    @staticmethod
    def truth(arch):
        return random.Random(str(arch)).random()

    def __call__(self, archs):
        self.calls.append(list(archs))
        return torch.tensor([self.truth(a) + self.rng.gauss(0, self.noise) for a in archs])


def greedy(score=None, **options):
    given = {"seed": 0, "start": 0, "full": 100, "region": REGION, **options}
    return Greedy(SPACE, score or Oracle(), **given)


def test_confidence():
    assert confidence(10, 5, 0.6) == pytest.approx(0.83376, abs=5e-6)
    by_hand = sum(math.comb(4, j) * 0.3**j * 0.7 ** (4 - j) for j in (2, 3, 4))
    assert confidence(4, 2, 0.3) == pytest.approx(by_hand)
    assert confidence(3, 0, 0.1) == pytest.approx(1) and confidence(3, 3, 0.5) == 0.125
    with pytest.raises(InputError, match="expected 0 <= kept <= sampled"):
        confidence(3, 4, 0.5)


def test_the_share_of_good_paths_is_that_of_the_binomial_formula():
    """Of 10 uniform paths with 60 % good ones the 5 best are kept."""
    good = sorted(map(Oracle.truth, REGION))[int(0.6 * REGION.size)]
    sampler = greedy(epsilon=0.0, alpha=None)
    rounds = [[sampler.paths(5 * r + i)[0] for i in range(5)] for r in range(1500)]
    all_good = sum(all(Oracle.truth(a) < good for a in kept) for kept in rounds) / len(rounds)
    p = confidence(10, 5, 0.6)
    assert abs(all_good - p) < 4 * math.sqrt(p * (1 - p) / len(rounds))
    weights = [math.comb(10, j) * 0.6**j * 0.4 ** (10 - j) for j in range(11)]
    expected = sum(w * min(j, 5) for j, w in enumerate(weights)) / 5
    share = sum(Oracle.truth(a) < good for kept in rounds for a in kept) / (5 * len(rounds))
    assert share == pytest.approx(expected, abs=0.01)


def test_the_pool_gets_better_and_holds_each_path_once_with_its_latest_score():
    score = Oracle(noise=0.05)
    sampler = greedy(score, pool=50, full=500, alpha=None)
    means = []
    for step in range(1500):
        sampler.paths(step)
        if step % 300 == 299:
            means.append(sum(map(Oracle.truth, sampler.pool)) / len(sampler.pool))
    assert means == sorted(means, reverse=True) and means[-1] < 0.05 and means[0] > 0.08
    assert len(sampler.pool) == len(set(sampler.pool)) == 50
    scores = [score for _, score in sampler.pool.items()]
    assert scores == sorted(scores)


def test_a_round_is_scored_at_once_and_its_best_are_trained_in_order():
    score = Oracle()
    sampler = greedy(score, start=3)
    warming = [sampler.paths(step) for step in range(3)]
    assert score.calls == [] and all(len(paths) == 1 for paths in warming)
    trained = [sampler.paths(step)[0] for step in range(3, 8)]
    (call,) = score.calls
    assert len(call) == len(set(call)) == 10 and all(arch in REGION for arch in call)
    assert trained == sorted(call, key=Oracle.truth)[:5]


def test_scores_that_are_no_numbers_come_last_and_stay_out_of_the_pool():
    values = [float("nan"), 2.0, float("inf"), 1.0]
    sampler = greedy(lambda archs: torch.tensor(values), sampled=4, kept=3)
    first = sampler.paths(0)[0]
    assert [score for _, score in sampler.pool.items()] == [1.0, 2.0]
    assert next(iter(sampler.pool)) == first and len(sampler._queue) == 2


def test_the_pool_is_drawn_from_ever_more_often():
    sampler = greedy(start=10, full=110, epsilon=0.8)
    assert [sampler.epsilon_at(s) for s in (0, 9, 10, 60, 110, 500)] == [0, 0, 0, 0.4, 0.8, 0.8]
    score = Oracle()
    sampler = greedy(score, full=0, pool=1000, alpha=None)
    for step in range(0, 500):
        sampler.paths(step)
    known, again = set(score.calls[0]), 0
    for call in score.calls[1:]:
        again += sum(arch in known for arch in call)
        known |= set(call)
    assert again / (10 * 99) == pytest.approx(0.8, abs=0.06)


def test_only_accepted_paths_enter_the_pool():
    sampler = greedy(accept=lambda arch: arch.operations[0] == 1, alpha=None)
    for step in range(100):
        sampler.paths(step)
    assert len(sampler.pool) > 10 and {a.operations[0] for a in sampler.pool} == {1}


def test_a_pool_that_nothing_may_enter_stays_empty():
    sampler = greedy(accept=lambda arch: False, window=1)
    assert all(sampler.paths(step) for step in range(30))
    assert len(sampler.pool) == 0 and sampler.turnover is None and not sampler.done


def test_it_stops_when_the_pool_hardly_changes():
    small = REGION.limited(0, (1,)).limited(1, (1,)).limited(2, (1,)).limited(3, (1,))
    sampler = greedy(region=small, pool=16, window=4, kept=2)  # 16 architectures in all
    steps = 0
    while not sampler.done:
        sampler.paths(steps)
        steps += 1
        assert steps < 200
    assert sampler.turnover <= 0.08 and steps % 2 == 0
    mark = set(sampler.pool)
    restless = greedy(region=small, pool=16, window=4, kept=2, alpha=None)
    for step in range(200):
        restless.paths(step)
    assert not restless.done and restless.turnover == 0 and set(restless.pool) == mark
    assert greedy(pool=95).window == 10


def test_turnover_is_the_share_of_the_pool_that_is_new():
    sampler = greedy(pool=20, window=3, alpha=None)
    pools = []
    for step in range(5 * 9):
        sampler.paths(step)
        if step % 5 == 0:
            pools.append(set(sampler.pool))
    before, after = pools[5], pools[8]
    assert sampler.turnover == pytest.approx(1 - len(before & after) / len(after))


def test_the_state_is_json_and_goes_on_alike():
    def run(sampler, steps):
        return [sampler.paths(step) for step in steps]

    whole = greedy(full=20, pool=30, window=2)
    everything = run(whole, range(60))
    for stop in (1, 3, 5, 27):
        first = greedy(full=20, pool=30, window=2)
        run(first, range(stop))
        second = greedy(full=20, pool=30, window=2)
        second.resume(json.loads(json.dumps(first.state())))
        assert run(second, range(stop, 60)) == everything[stop:]
        assert (second.turnover, second.state()) == (whole.turnover, whole.state())


def test_a_pool_refreshes_scores():
    pool = CandidatePool(2)
    for arch, score in (("a", 3.0), ("b", 2.0), ("c", 1.0), ("a", 0.5)):
        pool.put(arch, score)
    pool.cut()
    assert list(pool.items()) == [("a", 0.5), ("c", 1.0)] and "b" not in pool
    pool.put("a", float("nan"))
    assert list(pool) == ["c"]
    slow = CandidatePool(2, memory=0.75)
    slow.put("a", 4.0)
    slow.put("a", 0.0)
    assert dict(slow.items()) == {"a": 3.0}


def test_scores_on_held_out_images_are_counted_and_resume(tmp_path, monkeypatch):
    held = batches(1)

    def make():
        supernet = SPACE.supernet(seed=3)
        score = ValidationLoss(supernet, held, at_once=4)
        sampler = Greedy(SPACE, score, seed=3, start=1, full=4, sampled=4, kept=2, pool=6)
        return {"sampler": sampler, "made": lambda: supernet}

    supernet, budget = trained(**make())
    assert budget == Budget(trained=80, evaluated=3 * 4 * 8)  # rounds at steps 1, 3 and 5
    archs = [SPACE.at(9558), SPACE.at(1462)]
    expected = evaluate(supernet, archs, held).loss
    torch.testing.assert_close(ValidationLoss(supernet, held)(archs), expected)
    assert_resumes(make, tmp_path, monkeypatch)


def held_out_greedy():
    supernet = SPACE.supernet(seed=3)
    score = ValidationLoss(supernet, batches(1))
    sampler = Greedy(SPACE, score, seed=3, start=0, full=4, sampled=4, kept=2, pool=6)
    return {"sampler": sampler, "made": lambda: supernet}


_KILLED = """
import os, signal, sys
from pathlib import Path
import torch
from sigeo.supernet import loop, train_supernet
from tests.sigeo.test_greedy import held_out_greedy
from tests.sigeo.training import source, training

loop._SECONDS_BETWEEN_SAVES = -1.0
torch.set_num_threads(int(sys.argv[2]))
parts = held_out_greedy()
train_supernet(
    parts["made"](), training(), source(), parts["sampler"], settings={"made": "here"},
    checkpoint=Path(sys.argv[1]),
    progress=lambda step, steps: step == 4 and os.kill(os.getpid(), signal.SIGKILL),
)
"""


@pytest.mark.slow
def test_a_training_that_was_killed_goes_on(tmp_path):
    path = tmp_path / "c.safetensors"
    threads = str(torch.get_num_threads())  # on which the bits of convolutions depend
    killed = subprocess.run([sys.executable, "-c", _KILLED, str(path), threads], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert load_checkpoint(path)[0].step == 3
    undisturbed, cost = trained(**held_out_greedy())
    resumed, total = trained(**held_out_greedy(), path=path)
    assert_same(resumed, undisturbed)
    assert total == cost


def test_a_training_ends_with_its_sampler():
    small = REGION.limited(0, (1,)).limited(1, (1,)).limited(2, (1,)).limited(3, (1,))
    sampler = greedy(region=small, pool=16, window=2, full=0)
    _, budget = trained(sampler, config=training(epochs=200))
    assert sampler.done and budget.trained < 200 * 40


def test_bad_settings():
    for options, message in (
        ({"kept": 11}, "kept must be 1 to sampled, got 11"),
        ({"start": 101}, "start must be 0 to full, got 101"),
        ({"epsilon": 1.5}, "epsilon must be from 0 to 1, got 1.5"),
        ({"window": 0}, "window must be at least 1, got 0"),
        ({"pool": 0}, "size must be at least 1"),
    ):
        with pytest.raises(InputError, match=message):
            greedy(**options)


@pytest.mark.parametrize("given", [(), batches()[0]])
def test_a_score_of_no_pairs_is_refused(given):
    with pytest.raises(InputError, match="batches: expected"):
        ValidationLoss(SPACE.supernet(), given)
