"""Splittings that cannot be carried out, choices kept for later cuts, what comparing costs."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sigeo import InputError, spaces
from sigeo.fewshot import (
    EVERY,
    AnyChoice,
    BestGroups,
    Branching,
    InTurn,
    Splitting,
    overhead,
    split,
)
from sigeo.fewshot.metrics import RandomDistances
from sigeo.fewshot.partition import Exact, Exhaustive, Random, StoerWagner
from sigeo.spaces import Product
from sigeo.supernet import Budget
from tests.sigeo.fewshot.space import SPACE


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
