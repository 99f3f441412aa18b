"""Splittings that cannot be carried out, choices kept for later cuts, what comparing costs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from sigeo import InputError, proxies, spaces
from sigeo.fewshot import (
    EVERY,
    AnyChoice,
    BestGroups,
    Branching,
    InTurn,
    Relation,
    Splitting,
    draw_plan,
    load_plan,
    overhead,
    save_plan,
    split,
)
from sigeo.fewshot.develop import develop
from sigeo.fewshot.family import Family, load_family
from sigeo.fewshot.metrics import ProxyDifference, RandomDistances, WeightedSum
from sigeo.fewshot.partition import Exact, Exhaustive, Random, StoerWagner
from sigeo.fewshot.recipe import Recipe
from sigeo.spaces import Product
from sigeo.supernet import Budget
from tests.sigeo.fewshot.ground import study
from tests.sigeo.fewshot.space import SPACE, batches


@pytest.mark.parametrize(
    ("levels", "message"),
    [
        # One node of level 1 is not cut.
        ((2, (2, 1)), "2 or more choices with at least 2 options, got 1"),
        ((2, (1, 1), 2), "2 or more choices"),
        # It is not known which node of level 1 is cut.
        ((EVERY, (1, 2), 2), "2 or more choices"),
        ((4,), "1 or more choices with at least 4 options, got 0"),
    ],
)
def test_nothing_is_trained_where_a_cut_has_no_choice(levels, message):
    part = Product(SPACE, ((0, 1, 2), (1,), (1,), (1,), (1,), (3,)))
    how = Splitting(None, Branching(levels), Random(), AnyChoice())

    def train(*_):
        raise AssertionError

    with pytest.raises(InputError, match=message):
        split(SPACE, how, region=part, supernet=SPACE.supernet(), train=train)


@pytest.mark.parametrize(
    ("partitioner", "levels", "message"),
    [
        (StoerWagner(), (2, 3), "stoer_wagner makes 2 groups of 2 options or more, got 3 of 5"),
        (Exhaustive(), (2,), "exhaustive makes 5 groups of as many options, got 2"),
    ],
)
def test_cuts_that_a_partitioner_does_not_make_are_refused_before_training(
    partitioner, levels, message
):
    def train(*_):
        raise AssertionError

    for choices in (BestGroups(), AnyChoice(), InTurn()):
        how = Splitting(RandomDistances(), Branching(levels), partitioner, choices)
        with pytest.raises(InputError, match=message):
            split(SPACE, how, supernet=SPACE.supernet(), train=train)


def test_more_options_than_are_enumerated_are_refused_unless_they_are_not_in_turn():
    space = spaces.get("mlp", spaces.InputShape(4, 1, 3), widths=range(8, 8 * 13, 8))
    sizes = [len(choice.options) for choice in space.choices]
    wide = [place for place, size in enumerate(sizes) if size == 12]
    small = next(place for place, size in enumerate(sizes) if 2 <= size <= 10)
    how = Splitting(None, Branching((2,)), Random(), InTurn((small,)))
    how.check(Product.whole(space), None, None)
    for rule in (AnyChoice(), InTurn((wide[0],))):
        with pytest.raises(InputError, match="up to 10 options are enumerated, got 12"):
            replace(how, choice=rule).check(Product.whole(space), None, None)


def test_a_choice_that_a_later_cut_needs_is_kept_for_it():
    part = Product(SPACE, ((0, 1, 2), (0, 1), (0, 1), (1,), (1,), (3,)))
    for seed in range(8):
        for levels in ((2, 3), (2, (1, 3)), (2, 2, 3)):
            how = Splitting(RandomDistances(), Branching(levels), Exact())
            tree = split(SPACE, how, seed=seed, region=part).plan.root
            assert tree.cut.by != 0
    free = Splitting(RandomDistances(), Branching((2, 2)), Exact())
    assert {split(SPACE, free, seed=s, region=part).plan.root.cut.by for s in range(20)} == {
        0,
        1,
        2,
    }


def test_a_choice_is_kept_below_nodes_whose_number_is_not_known():
    part = Product(SPACE, ((0, 1), (0, 1), (0, 1), (0, 1, 2), (1,), (3,)))
    for seed in range(8):
        how = Splitting(RandomDistances(), Branching((EVERY, (2, 1), 3)), Exact())
        assert len(split(SPACE, how, seed=seed, region=part).plan.sizes) == 9


@pytest.mark.parametrize("levels", [(3, 2), (2, 3), (2, (1, 2), (2, 1, 1)), (EVERY, 2)])
@pytest.mark.parametrize("rule", [BestGroups(), AnyChoice(), InTurn((0, 1, 2))])
@pytest.mark.parametrize("again", [False, True])
def test_what_comparing_costs_is_what_was_compared(levels, rule, again):
    seen = []

    class Priced(RandomDistances):
        def __call__(self, subject):
            seen.append(subject)
            return super().__call__(subject)

        def cost(self, subject):
            return Budget(trained=len(subject.options), evaluated=1)

    part = Product(SPACE, ((0, 1, 2, 4), (0, 1, 2), (0, 1), (0, 1), (1,), (3,)))
    how = Splitting(Priced(), Branching(levels), Exact(), rule, again=again)
    if isinstance(rule, InTurn) and levels == (2, 3):
        how = replace(how, choice=InTurn((1, 0)))
    plan = split(SPACE, how, region=part).plan
    assert overhead.of_plan(how, plan, None) == Budget(
        sum(len(subject.options) for subject in seen), len(seen)
    )


def test_a_choice_that_no_later_cut_needs_may_be_the_only_wide_one():
    part = Product(SPACE, ((0, 1, 2), (0, 1), (1,), (1,), (1,), (3,)))
    how = Splitting(None, Branching((2, 3)), Random(), InTurn((1, 0)))
    assert len(split(SPACE, how, region=part).plan.sizes) == 6
    with pytest.raises(InputError, match=r"choice: 1, in turn on level 1, .* left are \[\]"):
        split(SPACE, replace(how, choice=InTurn((0, 1))), region=part)


class Own(RandomDistances):
    """A metric that returns what it is told to."""

    def __init__(self, found):
        object.__setattr__(self, "found", found)

    def __call__(self, subject):
        return self.found


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (
            [[0, 1], [1, 0]],
            "metric random: what it returns must be a Relation, got [[0, 1], [1, 0]]",
        ),
        (
            Relation.of([[0, 1], [1, 0]], "distance"),
            "metric random: expected a Relation of the 5 options of 0->1, got one of 2",
        ),
    ],
)
def test_what_a_metric_returns_is_looked_at(found, message):
    for metric in (Own(found), WeightedSum(((1.0, Own(found)),))):
        with pytest.raises(InputError) as raised:
            split(SPACE, Splitting(metric, Branching((2,))))
        assert str(raised.value) == message


@pytest.mark.parametrize(("places", "got"), [([77], r"\[77\]"), ([], "none")])
def test_a_rule_may_look_at_no_choice_but_those_that_can_be_split(places, got):
    class Rule(AnyChoice):
        def places(self, left, level, rng):
            return places

    how = Splitting(None, Branching((2,)), Random(), Rule())
    expected = rf"places of Rule must be some of \[0, 1, 2, 3, 4, 5\], .* level 0, got {got}"
    with pytest.raises(InputError, match=expected):
        split(SPACE, how)


def test_batches_come_as_a_list_too():
    made = batches()
    pairs = [made[place] for place in range(len(made))]
    how = Splitting(ProxyDifference(proxies.get("zico"), repeats=1), Branching((2,)))
    found, expected = (
        split(SPACE, how, supernet=SPACE.supernet(), batches=b) for b in (pairs, made)
    )
    assert found.plan == expected.plan


def test_paths_may_be_texts(tmp_path):
    how = Splitting(RandomDistances(), Branching((2,)))
    kept, saved = f"{tmp_path}/kept.json", f"{tmp_path}/saved.json"
    plan = split(SPACE, how, checkpoint=kept).plan
    save_plan(saved, plan)
    assert load_plan(kept, SPACE)[0] == load_plan(saved, SPACE)[0] == plan
    draw_plan(plan, f"{tmp_path}/plan.svg")
    assert (tmp_path / "plan.svg").stat().st_size
    folder = f"{tmp_path}/new/family"  # which is made
    Family(plan, (SPACE.supernet(), SPACE.supernet(seed=1)), (0, 0)).save(folder, {})
    assert load_family(folder, SPACE).plan == plan


class Given(Exact):
    """Makes the groups that it is given."""

    def __init__(self, found):
        super().__init__()
        object.__setattr__(self, "found", found)

    def __call__(self, relation, groups, rng):
        return self.found


@pytest.mark.parametrize(
    "found",
    [
        *([[0], [1, 2, 3, 9]], [[0, 1, 2, 3, -1]], [[0, 1], [1, 2, 3, 4]], [[0, 1, 2, 3, 4]]),
        *([["0"], [1, 2, 3, 4]], [[0.0], [1, 2, 3, 4]], [{0}, {1, 2, 3, 4}], [[], range(5)]),
        *(None, 2, (0, 1), iter([[0], [1, 2, 3, 4]]), np.eye(3)),
    ],
)
def test_groups_of_a_partitioner_of_ones_own_that_are_no_partition(found):
    wanted = "expected 2 groups that hold each of 0 to 4 once, none empty, got .*$"
    with pytest.raises(InputError, match=wanted) as caught:
        split(SPACE, Splitting(RandomDistances(), Branching((2,)), Given(found), InTurn()))
    assert "\n" not in str(caught.value)


def test_groups_of_a_partitioner_of_ones_own_may_be_lists():
    cuts = [
        split(SPACE, Splitting(RandomDistances(), Branching((2,)), Given(found), InTurn())).plan
        for found in (((0,), (1, 2, 3, 4)), [[0], [1, 2, 3, 4]], [[np.int64(0)], range(1, 5)])
    ]
    assert cuts[0] == cuts[1] == cuts[2]


class Peeled:
    """The first option left apart from all others."""

    compares = False

    def check(self, options, groups):
        pass

    def __call__(self, relation, groups, rng):
        return (0,), tuple(range(1, relation.count))


class Preferred:
    """The first in an order of the choices that can be split."""

    compares = False
    order = (0, 1, 3, 2, 4, 5)

    def places(self, left, level, rng):
        return left

    def score(self, candidate):
        return -self.order.index(candidate.place)


def test_parts_that_are_trained_have_networks(tmp_path):
    how = Splitting(None, Branching((2, 2, 2)), Peeled(), Preferred())
    anyhow, connected = (split(SPACE, how, connected=only).plan for only in (False, True))
    last = [
        [node.cut.by for child in plan.root.children for node in child.children]
        for plan in (anyhow, connected)
    ]
    assert last == [[3, 3, 3, 3], [2, 3, 3, 3]]
    alive = [any(map(SPACE.connected, region)) for region in anyhow.leaves]
    assert alive == [False] + [True] * 7
    assert all(any(map(SPACE.connected, region)) for region in connected.leaves)
    kept = tmp_path / "cuts.json"
    split(SPACE, how, checkpoint=kept)
    assert split(SPACE, how, connected=True, checkpoint=kept).plan == connected
    given = replace(how, choice=InTurn((0, 1, 3)))
    with pytest.raises(InputError, match=r"no output depends on the input \(0->1 none, 0->2 none"):
        split(SPACE, given, connected=True)
    recipe = Recipe("peeled", "this test", splitting=given)
    with pytest.raises(InputError, match="every cut leaves a part in which no output depends"):
        develop(recipe, study(), seed=0)
