"""Where good architectures end up, recounted; what narrowing keeps; copies by running count."""

from __future__ import annotations

import csv
import gzip
import itertools
import math
import random

import pytest
from scipy import stats

from sigeo import InputError
from sigeo.fewshot import (
    Branching,
    CumulativeCopies,
    InTurn,
    Known,
    Splitting,
    analyse,
    narrow_by_table,
    split,
    split_by_kind,
    whole_space,
)
from sigeo.fewshot.metrics import RandomDistances, TableOracle
from sigeo.fewshot.partition import Exact, Random
from sigeo.spaces.nasbench201 import INCOMING, nonlinear_depth
from sigeo.tables import read_table
from tests.conftest import shared_file
from tests.sigeo.fewshot.space import EVERYTHING, SPACE


def made_up(seed=0, share=0.4):
    rng = random.Random(seed)
    return {
        str(arch): rng.gauss(70 + 5 * nonlinear_depth(arch), 8)
        for arch in EVERYTHING
        if rng.random() < share
    }


VALUES = made_up()
KNOWN = Known(SPACE, VALUES)
PLAN = split(
    SPACE, Splitting(RandomDistances(), Branching.of_leaves(6), Exact(1), InTurn()), seed=3
).plan


def test_counts_means_and_ranks_equal_a_recount():
    found = analyse(PLAN, KNOWN, top=0.05)
    best = sorted(VALUES, key=VALUES.get, reverse=True)
    assert found.top == len(VALUES) // 20
    assert sum(child.known for child in found.children) == len(VALUES)
    assert sum(child.top for child in found.children) == found.top
    for child, region in zip(found.children, PLAN.leaves, strict=True):
        members = {str(arch) for arch in region}
        mine = [VALUES[name] for name in VALUES if name in members]
        assert child.size == len(members)
        assert child.known == len(mine)
        assert child.mean == pytest.approx(sum(mine) / len(mine))
        assert child.best == max(mine)
        assert child.top == sum(name in members for name in best[: found.top])
        assert child.best_rank == 1 + next(i for i, name in enumerate(best) if name in members)
    shares = [child.top / found.top for child in found.children]
    assert found.entropy == pytest.approx(stats.entropy(shares) / math.log(6))
    assert found.kendall is None


def test_selection_and_its_regret():
    found = analyse(PLAN, KNOWN)
    best = found.selected("best")
    assert found.regret(best) == 0
    assert found.children[best].best_rank == 1
    means = [child.mean for child in found.children]
    mean = found.selected("mean")
    assert means[mean] == max(means)
    assert found.regret(mean) == pytest.approx(max(VALUES.values()) - found.children[mean].best)
    with pytest.raises(InputError, match="mean, best or top"):
        found.selected("luck")
    with pytest.raises(InputError, match="a leaf from 0 to 5"):
        found.regret(6)


def test_tau_inside_leaves_and_over_all():
    rng = random.Random(1)
    predictions = {name: value + rng.gauss(0, 5) for name, value in list(VALUES.items())[::3]}
    found = analyse(PLAN, KNOWN, predictions=predictions)
    overall = stats.kendalltau([*predictions.values()], [VALUES[n] for n in predictions])
    assert found.kendall == pytest.approx(overall.statistic)
    for leaf, child in enumerate(found.children):
        mine = [n for n in predictions if PLAN.route(SPACE.parse(n)) == leaf]
        inside = stats.kendalltau([predictions[n] for n in mine], [VALUES[n] for n in mine])
        assert child.kendall == pytest.approx(inside.statistic)
    few = dict(list(predictions.items())[:4])
    found = analyse(PLAN, KNOWN, predictions=few)  # whose order may be chance
    assert math.isnan(found.kendall) and all(math.isnan(c.kendall) for c in found.children)
    with pytest.raises(InputError, match="predictions of two architectures"):
        analyse(PLAN, KNOWN, predictions={"other": 1.0})


def test_the_best_in_one_leaf_have_no_entropy_and_evenly_spread_ones_all():
    depth = split_by_kind(SPACE, "nonlinear_depth", [[0, 1], [2], [3]])
    sharp = Known(SPACE, {name: float(nonlinear_depth(SPACE.parse(name))) for name in VALUES})
    assert analyse(depth, sharp, top=10).entropy == 0
    assert [child.top for child in analyse(depth, sharp, top=10).children] == [0, 0, 10]
    one_each = {}
    for leaf, region in enumerate(depth.leaves):
        one_each[str(next(iter(region)))] = float(leaf)
    assert analyse(depth, Known(SPACE, one_each), top=3).entropy == pytest.approx(1)
    assert math.isnan(analyse(whole_space(SPACE), KNOWN).entropy)


def test_a_leaf_that_the_table_does_not_know():
    depth = split_by_kind(SPACE, "nonlinear_depth", [[0, 1], [2], [3]])
    known = Known(SPACE, {n: v for n, v in VALUES.items() if nonlinear_depth(SPACE.parse(n)) < 3})
    found = analyse(depth, known, top=0.02)
    last = found.children[2]
    assert (last.size, last.known, last.top, last.best_rank) == (1000, 0, 0, None)
    assert math.isnan(last.mean)
    assert math.isnan(last.best)
    with pytest.raises(InputError, match="that the table knows"):
        found.regret(2)


def test_a_share_of_hundredths_is_no_architecture_short():
    known = Known(SPACE, dict(itertools.islice(VALUES.items(), 1500)))
    for hundredths in range(1, 100):
        assert analyse(PLAN, known, top=hundredths / 100).top == 15 * hundredths


@pytest.mark.parametrize("top", [0, -1, 2.5, 10**6])
def test_a_top_that_is_none_is_refused(top):
    with pytest.raises(InputError, match="top must be"):
        analyse(PLAN, KNOWN, top=top)


def test_the_public_table_gives_the_counts_of_a_recount():
    path = shared_file("data/nasbench201.csv.gz")
    table = read_table(path).lookup("cifar10_test_200")
    metric = TableOracle(Known(SPACE, table))
    how = Splitting(metric, Branching.of_leaves(8), Exact(1), InTurn())
    plan = split(SPACE, how).plan
    found = analyse(plan, Known(SPACE, table))
    with gzip.open(path, "rt", newline="") as file:
        rows = [
            (float(row["cifar10_test_200"]), tuple(int(row[f"op{edge}"]) for edge in range(6)))
            for row in csv.DictReader(file)
        ]
    rows.sort(key=lambda row: -row[0])
    assert len(rows) == 13625
    assert found.top == 136
    assert sum(plan.sizes) == 15625
    for child, region in zip(found.children, plan.leaves, strict=True):
        inside = [
            place
            for place, (_, codes) in enumerate(rows)
            if all(code in options for code, options in zip(codes, region.allowed, strict=True))
        ]
        assert child.known == len(inside)
        assert child.top == sum(place < 136 for place in inside)
        assert child.best == rows[inside[0]][0]
        assert child.size == math.prod(map(len, region.allowed))
    depth = split_by_kind(SPACE, "nonlinear_depth", [[0], [1], [2], [3]])
    sizes = [child.known for child in analyse(depth, Known(SPACE, table)).children]
    counted = [nonlinear_depth(SPACE.decode(codes)) for _, codes in rows]
    assert sizes == [counted.count(kind) for kind in range(4)]


@pytest.mark.parametrize("keep", ["mean", "max"])
def test_narrowing_keeps_the_best_part_of_every_level(keep):
    stages = narrow_by_table(KNOWN, INCOMING, TableOracle(KNOWN), Exact(2), keep=keep)
    assert [stage.node.leaf_count for stage in stages] == [2, 4, 8]
    region = stages[0].node.region
    assert region.size == 15625
    for stage in stages:
        assert stage.node.region == region
        judged = []
        for part in stage.node.leaves():
            mine = [VALUES[name] for name in VALUES if SPACE.parse(name) in part.region]
            judged.append(max(mine) if keep == "max" else sum(mine) / len(mine))
        assert stage.kept == judged.index(max(judged))
        region = [part.region for part in stage.node.leaves()][stage.kept]
        assert stage.region == region
        mine = max(value for name, value in VALUES.items() if SPACE.parse(name) in region)
        assert stage.best_rank == 1 + sum(value > mine for value in VALUES.values())
        assert stage.regret == pytest.approx(max(VALUES.values()) - mine)
    assert [len(options) for options in region.allowed] == [
        len(options) for options in stages[-1].region.allowed
    ]
    assert all(len(options) in (2, 3) for options in region.allowed)


def test_the_best_survives_where_parts_are_judged_by_their_best():
    for seed in range(5):
        stages = narrow_by_table(
            KNOWN, INCOMING, RandomDistances(), Random(2), keep="max", seed=seed
        )
        assert stages[-1].best_rank == 1
        assert stages[-1].regret == 0
    ranks = [
        narrow_by_table(KNOWN, INCOMING, RandomDistances(), Random(2), seed=s)[-1].best_rank
        for s in range(5)
    ]
    assert max(ranks) > 1
    with pytest.raises(InputError, match="keep must be mean or max"):
        narrow_by_table(KNOWN, INCOMING, RandomDistances(), Random(2), keep="median")


def test_copies_follow_the_running_count():
    copies = CumulativeCopies(nonlinear_depth)
    archs = {
        depth: next(a for a in EVERYTHING if nonlinear_depth(a) == depth) for depth in range(4)
    }
    assert copies.count == 3
    assert copies.route(archs[3]) == (0,) * 5 + (1,) + (2,) * 9  # 18, then 21 and more
    assert copies.route(archs[2]) == (0,) * 5 + (0, 0) + (1, 1, 1) + (2,) * 5
    assert copies.route(archs[1]) == copies.route(archs[0]) == (0,) * 15
    for depth, thresholds, shared in itertools.product(range(4), ((25,), (10, 20, 30)), (0, 5)):
        route = CumulativeCopies(nonlinear_depth, 15, thresholds, shared).route(archs[depth])
        running = 0
        for cell, copy in enumerate(route):
            running += depth
            expected = 0
            while expected < len(thresholds) and running > thresholds[expected]:
                expected += 1
            assert copy == (0 if cell < shared else expected)
    for options in ({"thresholds": (20, 15)}, {"thresholds": ()}, {"shared": 16}, {"cells": 0}):
        with pytest.raises(InputError, match="copies: "):
            CumulativeCopies(nonlinear_depth, **options)
