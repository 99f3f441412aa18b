"""Partitions against direct enumeration, and where published defects would give another."""

from __future__ import annotations

import itertools
import random

import pytest

from sigeo import InputError
from sigeo.fewshot import partition
from sigeo.fewshot.branching import EVERY, Branching
from sigeo.fewshot.partition import (
    Exact,
    GaussianMixture,
    Relation,
    Spectral,
    StoerWagner,
    between,
    set_partitions,
    sized_partitions,
    within,
)

RNG = random.Random(0)


def matrix(count, seed, low=-1.0, high=1.0):
    rng = random.Random(seed)
    values = [[0.0] * count for _ in range(count)]
    for i, j in itertools.combinations(range(count), 2):
        values[i][j] = values[j][i] = rng.uniform(low, high)
    return values


def all_labelings(count, groups):
    """Every partition, from all ways of giving options numbers of groups."""
    found = set()
    for labels in itertools.product(range(groups), repeat=count):
        parts = [tuple(i for i in range(count) if labels[i] == g) for g in range(groups)]
        if all(parts):
            found.add(tuple(sorted(parts)))
    return found


@pytest.mark.parametrize(("count", "groups"), [(1, 1), (5, 2), (5, 3), (6, 4), (7, 2), (4, 4)])
def test_set_partitions_are_all_of_them_once(count, groups):
    found = list(set_partitions(count, groups))
    assert len(found) == len(set(found))
    assert set(found) == all_labelings(count, groups)


def test_there_are_as_many_as_stirlings_numbers_say():
    assert len(sized_partitions(8, 3)) == 966
    assert len(sized_partitions(5, 2)) == 15
    assert len(sized_partitions(5, 2, smallest=2)) == 10  # the pairs that GM-NAS tries
    assert sized_partitions(3, 2, smallest=2) == sized_partitions(3, 2)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("count", "groups", "smallest"), [(5, 2, 2), (5, 2, 1), (6, 3, 1)])
def test_the_exact_cut_is_the_best_by_brute_force(seed, count, groups, smallest):
    values = matrix(count, seed)
    allowed = [parts for parts in all_labelings(count, groups) if min(map(len, parts)) >= smallest]

    def cut(parts):
        label = {option: g for g, part in enumerate(parts) for option in part}
        pairs = itertools.combinations(range(count), 2)
        return sum(values[i][j] for i, j in pairs if label[i] != label[j])

    exact = Exact(smallest)
    assert exact(Relation.of(values, "similarity"), groups, RNG) == min(allowed, key=cut)
    assert exact(Relation.of(values, "distance"), groups, RNG) == max(allowed, key=cut)
    total = within(values, [tuple(range(count))]).total
    for parts in allowed:  # keeping together and cutting apart are one rule
        assert within(values, parts).total == pytest.approx(total - cut(parts))


def test_positive_similarities_peel_one_option_off_and_negated_differences_do_not():
    cosines = Relation.of(matrix(5, 3, 0.4, 0.9), "similarity")
    sizes = sorted(map(len, Exact(1)(cosines, 2, RNG)))
    assert sizes == [1, 4]
    scores = [0.0, 0.1, 1.0, 1.1, 1.2]
    differences = Relation.of([[-abs(a - b) for b in scores] for a in scores], "similarity")
    assert Exact(1)(differences, 2, RNG) == ((0, 1), (2, 3, 4))


def test_the_mean_objective_does_not_favour_uneven_groups():
    values = [[0.9 if (i < 3) == (j < 3) else 0.6 for j in range(6)] for i in range(6)]
    relation = Relation.of(values, "similarity")
    assert sorted(map(len, Exact(1)(relation, 2, RNG))) == [1, 5]
    assert Exact(1, "mean")(relation, 2, RNG) == ((0, 1, 2), (3, 4, 5))


def test_sums_begin_anew_for_every_candidate():
    # A sum that runs on over candidates can only grow, which makes the last one the best.
    values = matrix(6, 4, 0.1, 1.0)
    for i, j in ((0, 5), (1, 4), (2, 3)):
        values[i][j] = values[j][i] = 0.01
    relation = Relation.of(values, "distance")
    assert Exact(1)(relation, 3, RNG) == ((0, 5), (1, 4), (2, 3))
    running, best, chosen = 0.0, -1.0, None
    for parts in sized_partitions(6, 3):
        running += between(values, parts).total
        if running > best:
            best, chosen = running, parts
    assert chosen == sized_partitions(6, 3)[-1] != ((0, 5), (1, 4), (2, 3))


def test_between_is_compared_with_between():
    values = [[0, 5.0, 5.1], [5.0, 0, 0.1], [5.1, 0.1, 0]]
    relation = Relation.of(values, "distance")
    assert Exact(1)(relation, 2, RNG) == ((0,), (1, 2))
    # A sum within groups, compared with a stored sum between them, never wins.
    stored, chosen = None, None
    for parts in sized_partitions(3, 2):
        sums = between if stored is None else within
        if stored is None or sums(values, parts).total > stored:
            stored, chosen = between(values, parts).total, parts
    assert chosen == sized_partitions(3, 2)[0] == ((0, 1), (2,))


@pytest.mark.parametrize("seed", range(5))
def test_stoer_wagner_equals_enumeration_on_positive_similarities(seed):
    relation = Relation.of(matrix(6, seed, 0.0, 1.0), "similarity")
    assert StoerWagner()(relation, 2, RNG) == Exact(1)(relation, 2, RNG)


@pytest.mark.parametrize("sense", ["similarity", "distance"])
def test_spectral_finds_blocks(sense):
    blocks = [(0, 3, 5, 11), (1, 2, 8, 9), (4, 6, 7, 10)]
    label = {option: g for g, block in enumerate(blocks) for option in block}
    alike = [[float(label[i] == label[j]) + 0.05 for j in range(12)] for i in range(12)]
    values = [[2 - v for v in row] for row in alike] if sense == "distance" else alike
    relation = Relation.of(values, sense)
    assert Spectral()(relation, 3, random.Random(7)) == tuple(blocks)
    assert Spectral()(relation, 12, RNG) == tuple((i,) for i in range(12))


@pytest.mark.parametrize("sense", ["similarity", "distance"])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_mixtures_find_blocks_whatever_the_unit(sense, scale):
    blocks = ((0, 3), (1, 2, 4))
    rng = random.Random(3)
    values = [[0.0] * 5 for _ in range(5)]
    for i, j in itertools.combinations(range(5), 2):
        near = any(i in block and j in block for block in blocks)
        alike = (0.9 if near else 0.2) + 0.02 * rng.random()
        values[i][j] = values[j][i] = scale * (alike if sense == "similarity" else 1 - alike)
    relation = Relation.of(values, sense)
    for seed in range(3):
        assert GaussianMixture()(relation, 2, random.Random(seed)) == blocks
    assert GaussianMixture()(relation, 1, RNG) == ((0, 1, 2, 3, 4),)
    assert partition.get("mixture")(relation, 5, RNG) == tuple((i,) for i in range(5))


def test_mixtures_refuse_what_they_cannot_do():
    with pytest.raises(InputError, match="expected 1 to 4 groups of 4 options, got 5"):
        GaussianMixture()(Relation.of(matrix(4, 0), "similarity"), 5, RNG)
    for starts in (0, 2.5):
        with pytest.raises(InputError, match="starts must be a whole number of at least 1"):
            GaussianMixture(starts)


def test_mixtures_tell_options_that_are_alike_apart_by_their_order():
    two = Relation.of([[0, 0.3], [0.3, 0]], "similarity")
    assert GaussianMixture()(two, 2, RNG) == ((0,), (1,))
    pairs = [[1.0 if i // 2 == j // 2 else 0.0 for j in range(4)] for i in range(4)]
    found = GaussianMixture()(Relation.of(pairs, "similarity"), 3, RNG)
    assert sorted(map(len, found)) == [1, 1, 2] and not {(0, 2), (0, 3), (1, 2), (1, 3)} & {*found}
    same = Relation.of([[0.0] * 4] * 4, "distance")
    for groups in (1, 2, 3, 4):
        found = GaussianMixture()(same, groups, RNG)
        assert sorted(sum(found, ())) == [0, 1, 2, 3] and len(found) == groups


def test_random_partitions_are_uniform_and_follow_the_generator():
    relation = Relation.of(matrix(4, 0), "similarity")
    draw = partition.get("random")
    rng = random.Random(1)
    counts = dict.fromkeys(sized_partitions(4, 2), 0)
    for _ in range(1400):
        counts[draw(relation, 2, rng)] += 1
    assert all(140 < count < 260 for count in counts.values())
    assert draw(relation, 2, random.Random(5)) == draw(relation, 2, random.Random(5))


def test_options_in_order_and_one_by_one():
    relation = Relation.of(matrix(7, 0), "distance")
    assert partition.get("in_order")(relation, 3, RNG) == ((0, 1), (2, 3), (4, 5, 6))
    assert partition.get("exhaustive")(relation, 7, RNG) == tuple((i,) for i in range(7))
    with pytest.raises(InputError, match="exhaustive makes 7 groups"):
        partition.get("exhaustive")(relation, 2, RNG)


@pytest.mark.parametrize("smallest", [0, -1, 1.5, True])
def test_the_smallest_group_has_an_option(smallest):
    for kind in (Exact, partition.Random):
        with pytest.raises(InputError, match="smallest must be a whole number of at least 1, got"):
            kind(smallest)


def test_bad_input_is_one_line():
    with pytest.raises(InputError, match="objective must be sum or mean, got 'cut'"):
        Exact(objective="cut")
    with pytest.raises(InputError, match="must be one of exact"):
        partition.get("alphabetical")
    with pytest.raises(InputError, match="partition exact"):
        partition.get("exact", colour=3)
    with pytest.raises(InputError, match="1 to 3 groups"):
        sized_partitions(3, 4)
    with pytest.raises(InputError, match="enumerated"):
        sized_partitions(11, 2)
    with pytest.raises(InputError, match="finite"):
        Relation.of([[0, float("nan")], [float("nan"), 0]], "distance")
    with pytest.raises(InputError, match="values must be"):
        Relation(((0.0, 1.0),), "distance")
    with pytest.raises(InputError, match="makes 2 groups"):
        StoerWagner()(Relation.of(matrix(4, 0), "distance"), 3, RNG)


def test_branching_trees():
    assert Branching.of_leaves(8).levels == (2, 2, 2)
    assert Branching.of_leaves(6, [3, 2]).levels == (2, 3)
    assert Branching.of_leaves(7).levels == (2, 2, (2, 2, 2, 1))
    assert Branching.of_leaves(5, [3]).levels == (3, (2, 2, 1))
    assert Branching.of_leaves(1).levels == ()
    assert Branching.exhaustive().levels == (EVERY,)
    tree = Branching((2, (3, 1)))
    assert [tree.factor(1, node) for node in range(2)] == [3, 1]
    assert tree.paths == ((2, 3), (2, 1)) and Branching(()).paths == ((),)
    assert Branching.of_leaves(10**6 - 1).paths == ((2,) * 20, (2,) * 19 + (1,))
    assert Branching((EVERY, (3, 1, 2), 2)).paths == ((EVERY, 1, 2),)
    assert Branching((2, (3, 1), 2, EVERY)).needed_below((2, 3)) == [(2, 2)]
    assert Branching((EVERY, (3, 1, 2), 2)).needed_below((EVERY, 3)) == [(2,)]
    for levels in ((2, (3,)), ((2, 2),), (-1,), ((),)):
        with pytest.raises(InputError, match="branching"):
            Branching(levels)
    with pytest.raises(InputError, match="branching"):
        Branching.of_leaves(4, [1])
    with pytest.raises(InputError, match="expected 1 to 1,000,000 leaves"):
        Branching.of_leaves(10**14)
    with pytest.raises(InputError, match="none for node 2"):
        tree.factor(1, 2)
