"""Samplers: what is drawn how often, and that it follows from seed and step."""

from __future__ import annotations

import collections
import dataclasses
import functools
import gc
import json

import pytest
from scipy import stats

from sigeo import InputError, spaces
from sigeo.spaces import Kind, Product
from sigeo.supernet import (
    Balanced,
    Disjoint,
    Fair,
    Sandwich,
    Uniform,
)
from sigeo.supernet.samplers.base import _described, describe_region, draw_connected, generator
from tests.sigeo.training import SPACE, assert_resumes

PART = Product(SPACE, ((1, 2), (3,), (0, 4), (0, 1), (0, 3), (0,)))
CONVOLUTIONS = Kind(SPACE, lambda cell: sum(o in (2, 3) for o in cell.operations), frozenset({5}))


def counted(sampler, steps):
    return collections.Counter(arch for step in range(steps) for arch in sampler.paths(step))


@pytest.mark.parametrize("over", ["architectures", "operations"])
def test_uniform_is_uniform_over_the_connected_part_of_a_region(over):
    members = [arch for arch in PART if SPACE.connected(arch)]
    assert 1 < len(members) < PART.size
    counts = counted(Uniform(SPACE, seed=5, region=PART, over=over), 2000)
    assert set(counts) == set(members)
    assert stats.chisquare([counts[arch] for arch in members]).pvalue > 1e-3


def test_uniform_on_the_whole_space_draws_the_paths_of_a_warm_up():
    sampler = Uniform(SPACE, seed=7, paths=3)
    assert sampler.paths(11) == [
        draw_connected(SPACE, SPACE, generator(7, 11, path)) for path in range(3)
    ]
    assert sampler.paths(11) == Uniform(SPACE, seed=7, paths=3).paths(11)
    assert sampler.paths(11) != Uniform(SPACE, seed=8, paths=3).paths(11)
    codes = counted(Uniform(SPACE, seed=0, over="operations"), 1500)
    assert all(SPACE.connected(arch) for arch in codes)


def test_uniform_over_operations_stays_in_a_kind():
    found = counted(Uniform(SPACE, seed=1, region=CONVOLUTIONS, over="operations"), 100)
    assert all(arch in CONVOLUTIONS for arch in found)


def test_fair_takes_every_option_of_every_choice_once_a_step():
    sampler = Fair(SPACE, seed=2)
    for step in range(50):
        paths = sampler.paths(step)
        assert len(paths) == 5 and all(map(SPACE.connected, paths))
        for column in zip(*map(SPACE.encode, paths), strict=True):
            assert sorted(column) == [0, 1, 2, 3, 4]
    assert sampler.paths(4) == Fair(SPACE, seed=2).paths(4) != sampler.paths(5)


def test_fair_in_a_region_starts_over_where_a_choice_has_fewer_options():
    region = Product(SPACE, ((1, 2, 3), (0, 3), (1, 4), (2,), (1, 2, 3), (3,)))
    for step in range(50):
        paths = Fair(SPACE, seed=2, region=region).paths(step)
        assert len(paths) == 3
        for column, options in zip(
            zip(*map(SPACE.encode, paths), strict=True), region.allowed, strict=True
        ):
            counts = collections.Counter(column)
            assert set(counts) == set(options)
            assert all(counts[o] in (3 // len(options), -(-3 // len(options))) for o in options)


def test_fair_draws_until_all_are_connected_or_says_so():
    hopeless = Product(SPACE, ((0, 1), (0,), (1,), (0, 1), (0,), (1,)))
    with pytest.raises(InputError, match="some path had an output that does not depend"):
        Fair(SPACE, seed=0, region=hopeless.limited(0, (0,)).limited(3, (0,))).paths(0)
    with pytest.raises(InputError, match="fair: region must be a Product of options, got Kind"):
        Fair(SPACE, seed=0, region=CONVOLUTIONS)


def test_balanced_gives_every_region_as_many_paths():
    regions = [PART, CONVOLUTIONS, Product.whole(SPACE).limited(0, (1,))]
    each = Balanced(SPACE, regions, seed=4)
    for step in range(30):
        paths = each.paths(step)
        assert [arch in region for arch, region in zip(paths, regions, strict=True)] == [True] * 3
    apart = [Product.whole(SPACE).limited(0, (o,)) for o in (0, 3)]
    one = Balanced(SPACE, apart, seed=4, form="one")
    drawn = [one.paths(step) for step in range(1000)]
    assert all(len(paths) == 1 for paths in drawn)
    first = sum(paths[0] in apart[0] for paths in drawn)
    assert stats.binomtest(first, 1000).pvalue > 1e-3
    assert each.paths(3) == Balanced(SPACE, regions, seed=4).paths(3)


def test_disjoint_paths_share_no_option():
    for step in range(50):
        first, second = Disjoint(SPACE, seed=4).paths(step)
        assert all(a != b for a, b in zip(first.operations, second.operations, strict=True))
        assert SPACE.connected(first) and SPACE.connected(second)
    shared = Disjoint(SPACE, seed=4, region=PART).paths(0)
    assert all(arch in PART for arch in shared) and shared[0] != shared[1]


def test_sandwich_needs_a_space_with_ends():
    with pytest.raises(InputError, match="sandwich: nasbench201 names no largest architecture"):
        Sandwich(SPACE, seed=0)

    class Ends(spaces.nasbench201.NASBench201):
        def largest(self):
            return self.at(0)

        def smallest(self):
            return self.at(1)

    space = Ends(SPACE.shape, channels=4, cells=1)
    sampler = Sandwich(space, seed=0, count=3)
    paths = sampler.paths(9)
    assert (paths[0], paths[-1], len(paths)) == (space.at(0), space.at(1), 5)
    assert sampler.paths(9) == paths != sampler.paths(10)


def test_a_region_without_connected_architectures_ends_in_an_error(monkeypatch):
    monkeypatch.setattr("sigeo.supernet.samplers.base.TRIES", 50)
    dead = Product(SPACE, ((1,), (0,), (0,), (0,), (0,), (0,)))
    with pytest.raises(InputError, match="none of 50 draws has an output"):
        Uniform(SPACE, seed=0, region=dead).paths(0)


def test_regions_of_kinds_are_told_apart():
    """Checkpoints of trainings in them are."""

    def described(function, kinds=(5,), within=None):
        kind = Kind(SPACE, function, frozenset(kinds), within=within)
        return json.dumps(Uniform(SPACE, seed=0, region=kind).describe(), sort_keys=True)

    def counts(operation):
        return lambda cell: cell.operations.count(operation)

    part = Product.whole(SPACE).limited(0, (1, 2))
    texts = [
        described(counts(2)),
        described(counts(3)),
        described(functools.partial(named, 3)),
        described(functools.partial(named, 4)),
        described(counts(2), (4,)),
        described(counts(2), within=part),
        described(first),
    ]
    assert len(set(texts)) == len(texts)
    assert texts[0] == described(counts(2))
    assert '{"first": ["5"]}' in texts[-1] and not any(" at 0x" in text for text in texts)


@dataclasses.dataclass(frozen=True)
class Own:
    """A region of a user's own, whose text says nothing of it."""

    operation: int

    def __contains__(self, arch):
        return arch.operations[0] == self.operation

    @property
    def part(self):
        return Product.whole(SPACE).limited(0, (self.operation,))

    @property
    def size(self):
        return self.part.size

    def __iter__(self):
        return iter(self.part)

    def sample(self, rng):
        return self.part.sample(rng)

    def __str__(self):
        return "own"


def test_regions_of_ones_own_are_told_apart_by_what_they_hold():
    class Plain(Own):
        __str__ = object.__str__

    assert describe_region(Own(1)) == describe_region(Own(1)) != describe_region(Own(2))
    assert describe_region(Plain(1)) == describe_region(Plain(1)) != describe_region(Own(1))
    assert json.dumps(describe_region(Plain(1))) and " at 0x" not in str(describe_region(Plain(1)))


class Without:
    """All architectures but one."""

    def __init__(self, missing):
        self.missing, self.listed = missing, 0

    size = SPACE.size - 1

    def __iter__(self):
        self.listed += 1
        return (arch for arch in map(SPACE.at, range(SPACE.size)) if arch != self.missing)

    def sample(self, rng):
        return next(arch for arch in iter(lambda: SPACE.sample(rng), None) if arch != self.missing)


def test_regions_that_differ_in_one_architecture_are_told_apart(monkeypatch):
    a, b = SPACE.at(9558), SPACE.at(1462)
    assert describe_region(Without(a)) == describe_region(Without(a)) != describe_region(Without(b))

    def described(missing):
        return describe_region(Kind(SPACE, lambda arch: arch != missing, frozenset({True})))

    assert described(a) == described(a) != described(b)
    monkeypatch.setattr("sigeo.supernet.samplers.base._LISTED", 1000)
    larger = Without(a)
    larger.size = SPACE.size - 2
    assert describe_region(Without(a)) == describe_region(Without(a)) != describe_region(larger)


def test_a_region_is_gone_through_once_while_it_lives():
    region = Without(SPACE.at(0))
    for seed in range(3):
        Uniform(SPACE, seed=seed, region=region).describe()
    assert region.listed == 1
    known = len(_described)
    del region
    gc.collect()
    assert len(_described) < known


def test_rare_kinds_are_told_apart(monkeypatch):
    monkeypatch.setattr("sigeo.supernet.samplers.base._LISTED", 1000)

    def described(operation, tries):
        def function(cell):
            return set(cell.operations) == {operation}

        return describe_region(Kind(SPACE, function, frozenset({True}), tries))

    assert described(2, 20_000) != described(3, 20_000)  # one architecture of 15,625 each
    assert described(2, 1) == described(3, 1)  # not found


def first(cell):
    return cell.operations[0]


def named(operation, cell):
    return cell.operations.count(operation)


def test_bad_settings():
    for make, message in (
        (lambda: Uniform(SPACE, seed=0, paths=0), "paths must be at least 1, got 0"),
        (lambda: Uniform(SPACE, seed=0, over="x"), "must be architectures or operations, got 'x'"),
        (lambda: Balanced(SPACE, [], seed=0), "expected at least one region, got none"),
        (lambda: Balanced(SPACE, [PART], seed=0, form="x"), "must be each or one, got 'x'"),
    ):
        with pytest.raises(InputError, match=message):
            make()


@pytest.mark.parametrize(
    "make",
    [
        lambda: Uniform(SPACE, seed=3, paths=2),
        lambda: Fair(SPACE, seed=3),
        lambda: Balanced(SPACE, [PART, CONVOLUTIONS], seed=3, form="one"),
        lambda: Disjoint(SPACE, seed=3),
    ],
    ids=["uniform", "fair", "balanced", "disjoint"],
)
def test_a_training_stopped_at_any_step_goes_on_to_the_same_weights(make, tmp_path, monkeypatch):
    assert_resumes(lambda: {"sampler": make()}, tmp_path, monkeypatch)
