"""Parts of a space: products of options, kinds."""

from __future__ import annotations

import collections
import random

import pytest

from sigeo import InputError, spaces

SPACE = spaces.get("nasbench201", spaces.InputShape(3, 8, 10), channels=4, cells=1)


def convolutions(arch):
    return sum(operation in (2, 3) for operation in arch.operations)


def test_codes_round_trip_over_the_whole_space():
    archs = [SPACE.at(index) for index in range(SPACE.size)]
    assert [SPACE.decode(SPACE.encode(arch)) for arch in archs] == archs
    assert [choice.name for choice in SPACE.choices][:3] == ["0->1", "0->2", "1->2"]


def test_a_split_covers_its_region_exactly_once():
    whole = spaces.Product.whole(SPACE)
    parts = whole.limited(2, [1, 3]).split(4, [[0, 4], [1], [3, 2]])
    assert [part.size for part in parts] == [2 * 2 * 625, 2 * 625, 2 * 2 * 625]
    counts = collections.Counter(arch for part in parts for arch in part)
    assert set(counts.values()) == {1}
    assert set(counts) == set(whole.limited(2, [1, 3]))
    assert all(SPACE.encode(arch)[4] in (0, 4) for arch in parts[0])
    assert parts[0].open() == (0, 1, 2, 3, 4, 5)
    assert parts[1].open() == (0, 1, 2, 3, 5)


def test_samples_are_uniform_members():
    part = spaces.Product.whole(SPACE)
    for place in range(4):
        part = part.limited(place, [place])
    rng = random.Random(0)
    drawn = collections.Counter(part.sample(rng) for _ in range(5000))
    assert set(drawn) == set(part)
    assert all(130 < count < 270 for count in drawn.values())


def test_kinds_partition_the_space():
    kinds = [spaces.Kind(SPACE, convolutions, frozenset({k})) for k in range(7)]
    assert [kind.size for kind in kinds] == [729, 2916, 4860, 4320, 2160, 576, 64]
    rng = random.Random(0)
    assert all(convolutions(kinds[6].sample(rng)) == 6 for _ in range(3))
    empty = spaces.Kind(SPACE, convolutions, frozenset({9}), tries=50)
    with pytest.raises(InputError, match="no architecture of kinds"):
        empty.sample(rng)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda whole: spaces.Product(SPACE, ((0,),)), "expected options for 6 choices, got 1"),
        (lambda whole: whole.limited(0, [5]), "options of 0->1 must be some of 0 to 4"),
        (lambda whole: whole.limited(0, []), "options of 0->1"),
        (lambda whole: whole.split(0, [[0, 1], [2, 3]]), "groups of 0->1 must hold each of"),
        (lambda whole: whole.split(0, [[0, 1], [1, 2, 3, 4]]), "groups of 0->1"),
        (lambda whole: SPACE.decode((0, 1)), "expected 6 operations"),
    ],
)
def test_bad_parts_are_refused(make, message):
    with pytest.raises(InputError, match=message):
        make(spaces.Product.whole(SPACE))
