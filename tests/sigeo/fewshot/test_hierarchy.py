"""Narrowing with supernets: who is kept and taught by whom, what is on disk, how far it is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch

from sigeo import InputError, spaces
from sigeo.fewshot import recipes
from sigeo.fewshot.develop import check, develop
from sigeo.fewshot.metrics import RandomDistances
from sigeo.fewshot.partition import Exact
from sigeo.supernet import Budget, CrossEntropy, Evaluation
from tests.sigeo.fewshot.ground import SMALL, SPACE, study

OPTIONS = {**SMALL["hep-nas"], "before": []}


class Stopped(Exception):
    """As far as a test goes."""


def stop(done, total):
    raise Stopped


def made(**changes):
    return recipes.get("hep-nas", SPACE, **{**OPTIONS, **changes})


@dataclass
class Recorded:
    """What narrowing asks of training and evaluation, which learn and measure nothing here.

    Attributes:
        accuracies: Of the parts, in the order in which they are judged.
        trainings: Phase, supernet, settings, sampler and objective of each.
        judged: Supernet and architectures of each evaluation.
    """

    accuracies: Iterator[float]
    trainings: list[tuple[str, Any, Any, Any, Any]] = field(default_factory=list)
    judged: list[tuple[Any, list[Any]]] = field(default_factory=list)

    def train(self, supernet, config, source, sampler, objective, *, settings, **_):
        self.trainings.append((settings["phase"], supernet, config, sampler, objective))
        return Budget()

    def evaluate(self, supernet, archs, batches):
        self.judged.append((supernet, archs))
        accuracy = torch.full((len(archs),), next(self.accuracies), dtype=torch.float64)
        return Evaluation(accuracy, -accuracy, 0)


def narrowed(monkeypatch, accuracies=(0.5,) * 14, **changes):
    """A narrowing by groups that are drawn, and what it asked for."""
    recorded = Recorded(iter(accuracies))
    for module in ("develop", "hierarchy"):
        monkeypatch.setattr(f"sigeo.fewshot.{module}.train_supernet", recorded.train)
    monkeypatch.setattr("sigeo.fewshot.hierarchy.evaluate", recorded.evaluate)
    recipe = made(**{"before": [1, 1, 1], "children": 1, "after": 1, "judged": 3, **changes})
    recipe = replace(recipe, hierarchy=replace(recipe.hierarchy, metric=RandomDistances()))
    return develop(recipe, study(4000), 0), recorded


def test_the_part_with_the_best_validation_accuracy_is_kept(monkeypatch):
    """The first of equal ones; each is judged by paths of its own region."""
    accuracies = [0.2, 0.7, *(0.1, 0.4, 0.9, 0.9), *(0.3, 0.3, 0.2, 0.1, 0.0, 0.8, 0.7, 0.6)]
    family, recorded = narrowed(monkeypatch, accuracies)
    last = [2, 2, 2, 2, 2, 3, 2, 2]  # how far the parts of the last level came
    assert list(family.standing) == [0, 1, 1, *last, 1]
    places = [0, 1, 2, 11, *range(3, 11)]  # of the leaves, in the order in which they were judged
    judged = recorded.judged[:1] + recorded.judged[2:4] + recorded.judged[5:]
    for place, (supernet, archs) in zip(places, judged, strict=True):
        assert family.supernets[place] is supernet and len(set(archs)) > 1
        assert all(family.plan.route(arch) == place for arch in archs)
    phase, supernet, *_ = recorded.trainings[-1]
    assert phase == "leaf" and supernet is family.supernets[3 + 5]


def test_parts_train_in_turn_and_learn_from_their_parent_and_from_each_other(monkeypatch):
    _, recorded = narrowed(monkeypatch, rounds=3)
    trainings = iter(recorded.trainings)
    for level, count in enumerate((2, 4, 8)):
        phase, parent, whole, *_ = next(trainings)
        assert phase == f"level-{level}"
        assert (whole.begin, whole.end) == (level / 4, (level + 1) / 4)
        turns = [[next(trainings) for _ in range(count)] for _ in range(3)]
        supernets = [supernet for _, supernet, *_ in turns[0]]
        assert len({id(one) for one in (parent, *supernets)}) == count + 1
        for number, turn in enumerate(turns, 1):
            for part, (phase, supernet, config, sampler, objective) in enumerate(turn):
                assert (phase, supernet) == (f"level-{level}-part-{part}", supernets[part])
                assert (config.begin, config.end) == (whole.begin, whole.end)
                assert objective.parent.supernet is parent
                others = supernets[:part] + supernets[part + 1 :]
                assert [one.supernet for one in objective.siblings] == others
                pause = -(-config.steps * number // 3)
                done = [(sampler.paths(step), sampler.done)[1] for step in range(pause)]
                assert done == [False] * (pause - 1) + [True] and pause > 1
    phase, _, last, *_ = next(trainings)
    assert (phase, last.begin, last.end) == ("leaf", 3 / 4, 1)


@pytest.mark.parametrize("teachers", ["parent", "siblings", "none"])
def test_teachers_may_be_left_out(teachers, monkeypatch):
    _, recorded = narrowed(monkeypatch, teachers=teachers)
    objectives = [o for phase, *_, o in recorded.trainings if phase.startswith("level-1-part")]
    assert len(objectives) == 4 * 2
    for objective in objectives:
        if teachers == "none":
            assert type(objective) is CrossEntropy
        else:
            assert (objective.parent is not None) == (teachers == "parent")
            assert len(objective.siblings) == (3 if teachers == "siblings" else 0)


def test_cuts_of_other_settings_or_damaged_are_told_apart(tmp_path):
    with pytest.raises(Stopped):
        develop(made(), study(1000), 0, folder=tmp_path, progress=stop)
    with pytest.raises(InputError, match=r"^plan \S+cuts-0.json: made with other settings"):
        develop(made(judged=2), study(1000), 0, folder=tmp_path, progress=stop)
    (tmp_path / "cuts-0.json").write_text("{}")
    with pytest.raises(InputError, match=r"^plan \S+cuts-0.json: expected format"):
        develop(made(), study(1000), 0, folder=tmp_path, progress=stop)


def test_parts_say_how_far_they_are():
    said = []
    develop(made(), study(1000), 0, progress=lambda done, total: said.append(done))
    assert said == sorted(said) and len(set(said)) > 10
    assert 0 < said[0] < 200 and 900 < said[-1] <= 1000


def test_a_level_need_not_be_trained_before_its_cut(tmp_path):
    recipe = made(before=[20, 0, 20])
    family = develop(recipe, study(1000), 0, folder=tmp_path)
    assert len(family.plan.leaves) == 12
    trained = {path.stem for path in tmp_path.glob("*.safetensors") if "part" not in path.stem}
    assert trained == {"level-0", "level-2", "leaf"}


@pytest.mark.parametrize("restart", [False, True])
def test_parts_start_from_their_parent_or_from_the_draw(restart, monkeypatch):
    """And images and schedule anew where weights do."""
    drawn = study().supernet(0).head.linear.weight.detach()
    found = {}

    def train(supernet, config, source, sampler, objective, *, settings, **_):
        weight = supernet.head.linear.weight.detach()
        trainings = round(float((weight - drawn).mean()))
        found[settings["phase"]] = (trainings, (config.begin, config.end), settings["seen"] == 0)
        weight += 1
        return Budget()

    monkeypatch.setattr("sigeo.fewshot.develop.train_supernet", train)
    monkeypatch.setattr("sigeo.fewshot.hierarchy.train_supernet", train)
    recipe = made(before=[1, 1, 1], children=1, after=1, rounds=1, restart=restart)
    recipe = replace(recipe, hierarchy=replace(recipe.hierarchy, metric=RandomDistances()))
    develop(recipe, study(1500), 0)
    phases = ["level-0", "level-0-part-1", "level-1", "level-1-part-3", "level-2", "level-2-part-7"]
    trainings, shares, anew = zip(*(found[phase] for phase in [*phases, "leaf"]), strict=True)
    if restart:
        assert trainings == (0, 0, 1, 0, 1, 0, 1)
        ends = [(0, 1 / 4), (0, 1 / 4), (1 / 4, 2 / 4), (0, 1 / 3), (1 / 3, 2 / 3), (0, 1 / 2)]
        assert shares == tuple(map(pytest.approx, [*ends, (1 / 2, 1)]))
    else:
        assert trainings == (0, 1, 2, 3, 4, 5, 6)
    assert anew == tuple(number == 0 for number in trainings)


def test_restarted_parts_need_no_length_behind_them(monkeypatch):
    family, recorded = narrowed(monkeypatch, before=[1, 0, 0], after=0, restart=True)
    assert len(family.plan.leaves) == 12
    rates = {phase: config.lr_at(config.steps) for phase, _, config, *_ in recorded.trainings}
    assert rates["level-2-part-0"] == study().lr


def test_only_choices_that_are_cut_must_suit_the_partitioner():
    space = spaces.get("mlp", spaces.InputShape(1, 8, 2), widths=range(8, 8 * 13, 8))
    assert [len(choice.options) for choice in space.choices] == [4, 12, 12, 12, 12]
    ground = replace(study(10_000), space=space)

    def cutting(place):
        how = replace(made().hierarchy, metric=RandomDistances(), levels=((place,),))
        return replace(made(), before=(), hierarchy=how)

    check(cutting(0), ground)
    with pytest.raises(InputError, match="up to 10 options are enumerated, got 12"):
        check(cutting(1), ground)


def test_groups_that_may_leave_a_part_without_a_network_are_refused_before_training():
    recipe = made()
    assert recipe.hierarchy.partitioner == Exact(2)
    check(recipe, study(4000))
    alone = replace(recipe, hierarchy=replace(recipe.hierarchy, partitioner=Exact(1)))
    message = (
        r"hep-nas: hierarchy: groups of 1 option\(s\) on level 2 may leave a part in which no "
        r"output depends on the input \(0->3 none, 1->3 none, 2->3 none\)"
    )
    with pytest.raises(InputError, match=message):
        check(alone, study(4000))
    # Of one edge alone there is always another way to the output.
    one = replace(alone.hierarchy, levels=((5,), (2, 1)))
    check(replace(alone, hierarchy=one, before=recipe.before[:2]), study(4000))
