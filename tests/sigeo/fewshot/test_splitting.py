"""Splitting: choices, groups, levels, weights, training between levels, going on after a kill."""

from __future__ import annotations

import itertools
import random

import pytest
import torch

from sigeo import InputError, proxies
from sigeo.fewshot import (
    EVERY,
    AnyChoice,
    BestGroups,
    Branching,
    InTurn,
    Splitting,
    choice,
    load_plan,
    metrics,
    save_plan,
    split,
    split_by_kind,
)
from sigeo.fewshot.choice import Candidate
from sigeo.fewshot.metrics import LID, GradientMatching, RandomDistances
from sigeo.fewshot.partition import Exact, Exhaustive, Random, Relation
from sigeo.spaces import Product
from tests.sigeo.fewshot.space import EVERYTHING, SPACE, WHOLE, batches
from tests.sigeo.fewshot.toy import ToySpace, toy_batches

RANDOM_EIGHT = Splitting(RandomDistances(), Branching.of_leaves(8), Exact(1))


def covers_once(plan):
    counts = dict.fromkeys(EVERYTHING, 0)
    for region in plan.leaves:
        for arch in region:
            counts[arch] += 1
    return set(counts.values()) == {1}


@pytest.mark.parametrize(
    "how",
    [
        RANDOM_EIGHT,
        Splitting(None, Branching.exhaustive(), Exhaustive(), InTurn()),
        Splitting(None, Branching.exhaustive(2), Exhaustive(), AnyChoice()),
        Splitting(None, Branching.of_leaves(7, [3]), Random(), InTurn((5, 0))),
        Splitting(RandomDistances(), Branching((2, (3, 1), 2)), Exact(2), again=True),
    ],
    ids=["random metric", "few-shot", "few-shot twice", "random groups", "again"],
)
@pytest.mark.parametrize("seed", [0, 1])
def test_every_plan_covers_the_space_exactly_once(how, seed):
    plan = split(SPACE, how, seed=seed).plan
    assert covers_once(plan)
    assert split(SPACE, how, seed=seed).plan == plan
    served = [plan.route(arch) for arch in EVERYTHING]
    assert tuple(served.count(leaf) for leaf in range(len(plan.leaves))) == plan.sizes


def test_one_edge_one_operation_a_supernet():
    plan = split(SPACE, Splitting(None, Branching.exhaustive(), Exhaustive(), InTurn())).plan
    assert plan.sizes == (3125,) * 5
    assert [region.allowed[0] for region in plan.leaves] == [(i,) for i in range(5)]


def test_cuts_that_peel_one_operation_off_have_the_published_sizes():
    # Cosines are positive, so the minimum cut takes 1 and 4 of 5 options on each of three edges;
    # the sizes of the published gradient-matching split are these, in another order.
    supernet = SPACE.supernet(seed=0)
    how = Splitting(
        metrics.gradient_matching_logits(repeats=1), Branching.of_leaves(8), Exact(1), InTurn()
    )
    plan = split(SPACE, how, seed=3, supernet=supernet, batches=batches()).plan
    assert sorted(plan.sizes) == sorted([125, 500, 500, 2000, 500, 2000, 2000, 8000])


def test_gradient_matching_in_two_levels_finds_the_best_edge_by_hand():
    supernet, data = SPACE.supernet(seed=1), batches()
    metric = GradientMatching(repeats=2)
    how = Splitting(metric, Branching.of_leaves(4), Exact(2))
    plan = split(SPACE, how, seed=5, supernet=supernet, batches=data).plan
    cut = plan.root.cut
    found = {}
    for place in range(6):
        relation = metric(metrics.Subject(WHOLE, place, "5/0/0", supernet, data))
        for pair in itertools.combinations(range(5), 2):
            others = [o for o in range(5) if o not in pair]
            between = sum(relation.values[a][b] for a in pair for b in others) / 6
            found[between] = (place, {pair, tuple(others)})
    assert (cut.by, set(cut.groups)) == found[max(found)]
    assert cut.score == pytest.approx(max(found))
    assert all(child.cut.by != cut.by for child in plan.root.children)
    assert covers_once(plan)


def test_opposed_families_get_supernets_of_their_own():
    space = ToySpace()
    how = Splitting(GradientMatching(repeats=2), Branching((2,)), Exact(2))
    divided = split(space, how, supernet=space.supernet(), batches=toy_batches())
    assert divided.plan.root.cut.by == 0
    assert divided.plan.root.cut.groups == ((0, 2, 4), (1, 3))


def test_local_dimension_splits_as_well():
    how = Splitting(LID(repeats=1, k=6), Branching((2,)), Exact(2), BestGroups("separation"))
    plan = split(SPACE, how, supernet=SPACE.supernet(), batches=batches(1, 24)).plan
    assert sorted(map(len, plan.root.cut.groups)) == [2, 3]
    assert plan.root.cut.score > 0


def candidate(values, groups, place=0):
    return Candidate(place, Relation.of(values, "distance"), groups)


def test_criteria_rank_choices_as_they_say():
    near = candidate([[0, 1, 5], [1, 0, 6], [5, 6, 0]], ((0, 1), (2,)))
    assert BestGroups().score(near) == 5.5
    assert BestGroups("between_sum").score(near) == 11
    assert BestGroups("within_sum").score(near) == -1
    assert BestGroups("separation").score(near) == 4.5
    assert BestGroups("most_alike").score(near) == -11
    assert BestGroups().score(Candidate(0, None, ((0,), (1,)))) is None


def test_the_official_rules_rank_choices_differently():
    # Two choices of unlike scale: one is far apart everywhere, the other's groups are tight.
    scattered = candidate([[0, 8, 9], [8, 0, 9], [9, 9, 0]], ((0, 1), (2,)))
    tight = candidate([[0, 1, 7], [1, 0, 7], [7, 7, 0]], ((0, 1), (2,)), 1)

    def chosen(criterion):
        rule = BestGroups(criterion)
        return max((scattered, tight), key=rule.score).place

    assert chosen("between_mean") == chosen("between_sum") == 0
    assert chosen("within_sum") == chosen("separation") == 1
    # NAS-LID's code takes the choice whose groups are most alike, against its description.
    assert chosen("most_alike") == 1
    alike = candidate([[0, 1, 2], [1, 0, 2], [2, 2, 0]], ((0, 1), (2,)), 2)
    rule = BestGroups("most_alike")
    assert max((tight, alike), key=rule.score).place == 2
    assert max((tight, alike), key=BestGroups("separation").score).place == 1


def test_separation_does_not_depend_on_how_likeness_is_written():
    """Also of a choice of two options, whose groups hold no pair, beside one of more."""
    rule = BestGroups("separation")
    two = [[1, 0.2], [0.2, 1]], ((0,), (1,))
    three = [[1, 0.9, 0.7], [0.9, 1, 0.7], [0.7, 0.7, 1]], ((0, 1), (2,))
    for cosines, groups in (two, three):
        similar = Candidate(0, Relation.of(cosines, "similarity"), groups)
        apart = candidate([[1 - cosine for cosine in row] for row in cosines], groups)
        assert rule.score(similar) == pytest.approx(rule.score(apart))
    found = [rule.score(Candidate(0, Relation.of(c, "similarity"), g)) for c, g in (two, three)]
    assert found == [pytest.approx(0.8), pytest.approx(0.2)]


def weights(supernet):
    return {name: value.clone() for name, value in supernet.state_dict().items()}


def same(one, other):
    return all(torch.equal(value, other[name]) for name, value in one.items())


def trainer(calls):
    """Moves all weights by an amount of the node's own."""

    def train(region, supernet, level, number):
        calls.append((level, number, region.size))
        with torch.no_grad():
            for parameter in supernet.parameters():
                parameter.add_(1 + 10 * level + number)

    return train


@pytest.mark.parametrize("inherit", ["always", "inner", "never"])
def test_children_start_from_what_the_rules_say(inherit):
    supernet = SPACE.supernet(seed=4)
    before = weights(supernet)
    drawn = weights(SPACE.supernet(seed=9))
    calls = []
    how = Splitting(None, Branching((2, (2, 1))), Random(), InTurn(), inherit=inherit)
    divided = split(SPACE, how, seed=9, supernet=supernet, train=trainer(calls))
    assert same(weights(supernet), before)
    assert [(level, number) for level, number, _ in calls] == [(0, 0), (1, 0), (1, 1)]
    assert sum(size for level, _, size in calls if level == 1) == SPACE.size
    # 1 from the first level, 11 or 12 from the second; a node that is not cut is its own child.
    moved = {"always": 1 + 11, "inner": None, "never": None}[inherit]
    for leaf in (0, 1):
        expected = drawn if moved is None else {n: v + 1 + 11 for n, v in before.items()}
        found = weights(divided.supernets[leaf])
        for name in found:
            torch.testing.assert_close(found[name], expected[name])
    uncut = weights(divided.supernets[2])
    for name in uncut:
        expected = drawn[name] if moved is None else before[name] + 1 + 12
        torch.testing.assert_close(uncut[name], expected)


def test_weights_as_drawn_are_of_the_supernet_given():
    supernet = SPACE.supernet(seed=4, track=True)
    how = Splitting(None, Branching((2,)), Random(), InTurn(), inherit="never")
    with pytest.raises(InputError, match="weights as drawn do not fit the supernet given"):
        split(SPACE, how, supernet=supernet)
    divided = split(SPACE, how, supernet=supernet, draw=lambda: SPACE.supernet(seed=9, track=True))
    drawn = weights(SPACE.supernet(seed=9, track=True))
    assert all(same(weights(leaf), drawn) for leaf in divided.supernets)


def test_the_weights_of_pinned_options_are_inherited_too():
    supernet = SPACE.supernet(seed=4)
    divided = split(SPACE, Splitting(None, Branching((2,)), Random(), InTurn()), supernet=supernet)
    arch = divided.plan.leaves[1].sample(random.Random(0))
    images = torch.randn(4, 3, 8, 8)
    assert torch.equal(divided.supernets[1](images, arch), supernet(images, arch))
    with torch.no_grad():
        divided.supernets[0].head.linear.bias.add_(1)
    assert torch.equal(divided.supernets[1](images, arch), supernet(images, arch))


class Counting:
    """Random distances that count how often they are asked for, and can stop a splitting."""

    name = "counting"
    initial_weights = False

    def __init__(self, stop=None):
        self.asked, self.stop = 0, stop

    def describe(self):
        return {"name": self.name}  # whatever was asked

    def __call__(self, subject):
        if self.stop is not None and self.asked >= self.stop:
            raise KeyboardInterrupt
        self.asked += 1
        return RandomDistances()(subject)

    def cost(self, subject):
        return RandomDistances().cost(subject)


@pytest.mark.parametrize(("stop", "left"), [(3, 24), (8, 18), (20, 4)])
def test_a_killed_splitting_goes_on_with_its_cuts(stop, left, tmp_path):
    def how(metric):
        return Splitting(metric, Branching((2, (1, 2), 2)), Exact(1))

    whole = Counting()
    expected = split(SPACE, how(whole), seed=2).plan
    assert whole.asked == 6 + 5 + 5 + 4 + 4
    path = tmp_path / "plan.json"
    calls = []
    options = {"seed": 2, "checkpoint": path, "settings": {"seed": 2}}
    with pytest.raises(KeyboardInterrupt):
        split(SPACE, how(Counting(stop)), **options)

    def stopped(region, supernet, level, number):
        if level == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):  # before it has come where it was: nothing is lost
        split(SPACE, how(Counting(6)), supernet=SPACE.supernet(), train=stopped, **options)
    rest = Counting()
    again = split(SPACE, how(rest), supernet=SPACE.supernet(), train=trainer(calls), **options)
    assert again.plan == expected
    assert len(calls) == 1 + 2 + 3
    assert rest.asked == min(left, 18)
    plan, kept = load_plan(path, SPACE)
    assert plan == expected and kept.pop("splitting")["seed"] == 2 and kept == {"seed": 2}
    finished = Counting(0)
    assert split(SPACE, how(finished), **options).plan == expected
    with pytest.raises(InputError, match=r"other settings .* \(seed: there 2, here 3\); choose"):
        split(SPACE, how(finished), **{**options, "settings": {"seed": 3}})


USUAL = {
    "metric": LID(repeats=1, k=6),
    "branching": Branching((2,)),
    "partitioner": Exact(2),
    "choice": BestGroups("separation"),
}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 1}, "splitting.seed: there 0, here 1"),
        ({"branching": Branching((3,))}, "splitting.branching.levels: there [2], here [3]"),
        ({"metric": LID(repeats=1, k=5)}, "splitting.metric.k: there 6, here 5"),
        ({"metric": RandomDistances()}, "splitting.metric.blocks: there"),
        ({"partitioner": Exact(1)}, "splitting.partitioner.smallest: there 2, here 1"),
        ({"choice": BestGroups()}, 'splitting.choice.criterion: there "separation", here "betw'),
        ({"choice": InTurn((0,))}, "splitting.choice.compares: there true, here false"),
        ({"again": True}, "splitting.again: there false, here true"),
        ({"inherit": "never"}, 'splitting.inherit: there "always", here "never"'),
        ({"region": WHOLE.limited(0, (1, 2, 3))}, "(the region is another one)"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_checkpoint_is_of_one_splitting(changes, message, tmp_path):
    given = {"supernet": SPACE.supernet(), "batches": batches(1, 24)}
    given["checkpoint"] = tmp_path / "plan.json"
    split(SPACE, Splitting(**USUAL), **given)
    given |= {name: changes.pop(name) for name in ("seed", "region") if name in changes}
    with pytest.raises(InputError) as caught:
        split(SPACE, Splitting(**{**USUAL, **changes}), **given)
    assert message in str(caught.value)


def test_a_checkpoint_of_other_factors_is_refused(tmp_path):
    path = tmp_path / "plan.json"
    options = {"checkpoint": path, "settings": {"levels": (2, 2)}}
    pairs = Splitting(None, Branching((2, 2)), Random(), AnyChoice())
    assert split(SPACE, pairs, **options).plan == split(SPACE, pairs, **options).plan
    triples = Splitting(None, Branching((3,)), Random(), AnyChoice())
    with pytest.raises(InputError, match="made with other settings than this splitting"):
        split(SPACE, triples, **options)
    _, kept = load_plan(path, SPACE)
    save_plan(path, split_by_kind(SPACE, "nonlinear_depth", [[0, 1], [2, 3]]), kept)
    with pytest.raises(InputError, match="into 2 groups of options, got 2 by nonlinear_depth"):
        split(SPACE, pairs, **options)


def test_progress_counts_nodes():
    seen = []
    split(SPACE, RANDOM_EIGHT, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 1), (2, 3), (3, 3), (4, 7), (5, 7), (6, 7), (7, 7)]


def test_a_part_of_the_space_can_be_split():
    part = WHOLE.limited(0, [2, 3]).limited(1, [1])
    plan = split(SPACE, Splitting(None, Branching((2, 2)), Random(), AnyChoice()), region=part).plan
    assert sum(plan.sizes) == part.size
    with pytest.raises(InputError, match="1 or more choices with at least 5 options, got 0"):
        split(
            SPACE,
            Splitting(None, Branching((5,)), Random(), AnyChoice()),
            region=Product(SPACE, ((0, 1),) * 6),
        )


def test_a_choice_is_split_once_unless_again_is_allowed():
    part = Product(SPACE, ((0, 1, 2, 3, 4), (1,), (1,), (1,), (1,), (3,)))
    once = Splitting(None, Branching((2, 2)), Random(2), AnyChoice())
    with pytest.raises(InputError, match="cuts one below another need 2 or more choices .* got 1"):
        split(SPACE, once, region=part)
    twice = Splitting(None, Branching((2, 2)), Random(2), AnyChoice(), again=True)
    assert sorted(split(SPACE, twice, region=part).plan.sizes) == [1, 1, 1, 2]


def test_bad_input_is_one_line():
    with pytest.raises(InputError, match="needs a metric"):
        Splitting(None, Branching((2,)))
    with pytest.raises(InputError, match="inherit must be"):
        Splitting(RandomDistances(), Branching((2,)), inherit="sometimes")
    with pytest.raises(InputError, match="criterion must be one of"):
        BestGroups("colour")
    with pytest.raises(InputError, match="choice must be one of in_turn"):
        choice.get("colour")
    with pytest.raises(InputError, match="choice in_turn"):
        choice.get("in_turn", colour=1)
    assert choice.get("in_turn", order=(3,)) == InTurn((3,))
    assert choice.get("within_sum") == BestGroups("within_sum")
    synflow = Splitting(metrics.ProxyDifference(proxies.get("zico")), Branching((2,)))
    fixed = next(name for name in proxies.names() if proxies.get(name).initial_weights)
    needs = Splitting(metrics.get(fixed), Branching((2,)))
    with pytest.raises(InputError, match=f"{fixed} needs weights as drawn"):
        split(SPACE, needs, supernet=SPACE.supernet(), batches=batches(), warmed=True)
    with pytest.raises(InputError, match="got no supernet"):
        split(SPACE, synflow)
    with pytest.raises(InputError, match="training needs a supernet"):
        split(SPACE, RANDOM_EIGHT, train=trainer([]))
    with pytest.raises(InputError, match="level 1 needs one more"):
        split(SPACE, Splitting(None, Branching((2, 2)), Random(), InTurn((0,))))
    with pytest.raises(InputError, match="0, in turn on level 1, cannot be split"):
        split(SPACE, Splitting(None, Branching((2, 2)), Random(), InTurn((0, 0))))
    assert Branching((EVERY, 2)).factor(1, 17) == 2
