"""Systems carried out: budgets, schedules, what is inherited, kills."""

from __future__ import annotations

import random

import pytest
import torch

from sigeo import InputError, spaces
from sigeo.fewshot import Branching, Splitting, recipes, split
from sigeo.fewshot.choice import AnyChoice, InTurn
from sigeo.fewshot.develop import develop
from sigeo.fewshot.family import ranked
from sigeo.fewshot.partition import Exhaustive, Random
from sigeo.fewshot.recipe import Recipe
from sigeo.fewshot.stretch import Stretch
from sigeo.fewshot.study import FORWARD_SHARE
from sigeo.supernet import Budget, Training, load_checkpoint
from tests.sigeo.fewshot.ground import SMALL, SPACE, study


def made(name, **options):
    return recipes.get(name, SPACE, **{**SMALL.get(name, {}), **options})


def weights(family):
    return [dict(supernet.state_dict()) for supernet in family.supernets]


def assert_same(a, b):
    assert a.plan == b.plan and a.cost == b.cost and a.standing == b.standing
    for mine, theirs in zip(weights(a), weights(b), strict=True):
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)


@pytest.mark.parametrize("name", [name for name in recipes.names() if name != "gradual"])
def test_every_system_spends_its_budget_and_serves_the_space(name):
    ground = study(2000)
    family = develop(made(name), ground, 0)
    spent = family.cost.trained + FORWARD_SHARE * family.cost.evaluated
    step = 8 * 5  # the most that one takes
    assert 2000 - step * len(family.plan.leaves) <= spent <= 2000 + 8
    assert sum(family.plan.sizes) == SPACE.size
    archs = spaces.distinct(SPACE, 6, random.Random(0))
    accuracy, loss = family.evaluated(archs, ground.validation())
    assert ((accuracy >= 0) & (accuracy <= 1)).all() and (loss > 0).all()


@pytest.mark.parametrize("name", ["one-shot", "pi-nas"])
def test_short_last_batches_cost_what_they_hold(name):
    # 96 images are nine batches of ten and one of six: 200 full ones would be 1,920 images.
    ground = study(2000, settings={"batch_size": 10})
    cost = develop(made(name), ground, 0).cost
    step = 10 * (1 if name == "one-shot" else 2 + 2 * FORWARD_SHARE)
    assert 2000 - step < cost.trained + FORWARD_SHARE * cost.evaluated <= 2000


def test_a_supernet_learns():
    ground = study(6000)
    family = develop(made("one-shot"), ground, 0)
    archs = spaces.distinct(SPACE, 12, random.Random(1))
    accuracy, _ = family.evaluated(archs, ground.validation())
    assert accuracy.max() > 0.9


def test_trainings_keep_their_published_proportions(tmp_path):
    develop(made("gm-nas"), study(6000), 0, folder=tmp_path)
    steps = {
        path.stem: load_checkpoint(path)[0].step for path in sorted(tmp_path.glob("*.safetensors"))
    }
    assert set(steps) == {"level-0-0", "level-1-0", "level-1-1", *(f"final-{i}" for i in range(4))}
    first = steps["level-0-0"]
    assert steps["level-1-0"] == steps["level-1-1"] == first
    assert all(2.4 <= steps[f"final-{leaf}"] / first <= 2.8 for leaf in range(4))


def test_weights_trained_in_parts_see_the_images_of_one_training(monkeypatch):
    """Each part goes on in the order where the one before it ended, with draws of its own."""
    taken, seeds = {}, {}

    def recorded(supernet, config, source, sampler, objective, **options):
        phase = options["settings"]["phase"]
        seeds[phase] = source.seed
        places = [config.indices(source.order, step, source.seed) for step in range(config.steps)]
        taken[phase] = torch.cat(places).tolist()
        return Budget(len(taken[phase]), 0)

    monkeypatch.setattr("sigeo.fewshot.develop.train_supernet", recorded)
    ground = study(600)
    develop(recipes.get("random-split", SPACE, before=[2, 2], after=2), ground, 0)
    order = ground.source(0).order.tolist()
    assert set(taken) == {"level-0-0", "level-1-0", "level-1-1", *(f"final-{i}" for i in range(4))}
    assert taken["level-1-0"] == taken["level-1-1"]
    assert len(set(seeds.values())) == 3
    seen = [place for phase in ("level-0-0", "level-1-1", "final-3") for place in taken[phase]]
    assert seen == (order * 3)[: len(seen)] and len(seen) > 200


@pytest.mark.parametrize(
    ("inherit", "shares"),
    [
        ("always", [(0, 1 / 3), (1 / 3, 2 / 3), (2 / 3, 1)]),
        ("inner", [(0, 1 / 3), (1 / 3, 2 / 3), (0, 1)]),
        ("never", [(0, 1 / 3), (0, 1 / 2), (0, 1)]),
    ],
)
def test_images_and_schedule_start_anew_where_weights_do(inherit, shares, monkeypatch):
    found = {}

    def recorded(supernet, config, source, sampler, objective, **options):
        begins_anew = torch.equal(source.order, ground.source(0).order)
        found[options["settings"]["phase"]] = (config.begin, config.end, begins_anew)
        return Budget(config.images_of(config.steps), 0)

    monkeypatch.setattr("sigeo.fewshot.develop.train_supernet", recorded)
    ground = study(600)
    splitting = Splitting(None, Branching((2, 2)), Random(), AnyChoice(), inherit=inherit)
    develop(Recipe("parts", "", 2.0, (2.0, 2.0), splitting), ground, 0)
    for phase, (begin, end) in zip(("level-0-0", "level-1-1", "final-3"), shares, strict=True):
        assert found[phase] == (pytest.approx(begin), pytest.approx(end), begin == 0)


def test_scoring_paths_takes_no_more_images_than_are_held_out():
    ground = study(4000)
    family = develop(made("greedy", images=1000), ground, 0)
    assert family.cost.evaluated > 0
    spent = family.cost.trained + FORWARD_SHARE * family.cost.evaluated
    assert 4000 - (8 + 4 * 24 * FORWARD_SHARE) < spent <= 4000  # a step and a round


def test_views_are_cut_for_the_size_of_the_images():
    objective = made("pi-nas").objective(study(), 3)
    assert objective.views.padding == 1 and objective.views.seed == 3
    assert made("pi-nas", padding=2).objective(study(), 0).views.padding == 2


def test_a_schedule_goes_on_through_the_parts_of_a_training():
    whole = Training.of_steps(100, 96, lr=0.1, schedule="cosine", batch_size=8)
    parts = [
        Stretch(**vars(Training.of_steps(n, 96, lr=0.1, schedule="cosine", batch_size=8)),
                begin=begin, end=end)
        for n, begin, end in ((30, 0.0, 0.3), (70, 0.3, 1.0))
    ]  # fmt: skip
    joined = [part.lr_at(step) for part in parts for step in range(part.steps)]
    assert joined == pytest.approx([whole.lr_at(step) for step in range(100)])


def test_a_schedule_rises_at_its_beginning_alone():
    settings = {"lr": 0.1, "schedule": "cosine", "batch_size": 8, "rise": 40}
    whole = Training.of_steps(100, 96, **settings)
    parts = [
        Stretch(**vars(Training.of_steps(n, 96, **settings)), begin=begin, end=end)
        for n, begin, end in ((30, 0.0, 0.3), (70, 0.3, 1.0))
    ]
    joined = [part.lr_at(step) for part in parts for step in range(part.steps)]
    assert joined == pytest.approx([whole.lr_at(step) for step in range(100)])
    assert joined[0] == pytest.approx(0.1 / 40) and joined[39] == pytest.approx(0.1)
    still = Stretch(**vars(Training.of_steps(60, 96, **settings)), begin=0.0, end=0.0)
    assert [still.lr_at(step) for step in (0, 39, 59)] == pytest.approx([0.1 / 40, 0.1, 0.1])


@pytest.mark.parametrize("inherit", ["never", "inner"])
def test_narrow_children_start_from_narrow_weights_as_drawn(inherit):
    splitting = Splitting(None, Branching.exhaustive(), Exhaustive(), InTurn((0,)), inherit=inherit)
    ground = study(500)
    family = develop(Recipe("narrow", "", 0.0, (1.0,), splitting, width=0.67), ground, 0)
    drawn = dict(ground.supernet(0, width=0.67).state_dict())
    for child in weights(family):
        assert all(torch.equal(child[name], drawn[name]) for name in drawn)


def test_a_supernet_of_other_sizes_has_no_weights_as_drawn():
    how = Splitting(None, Branching.exhaustive(), Exhaustive(), InTurn((0,)), inherit="never")
    with pytest.raises(InputError, match="weights as drawn do not fit the supernet given"):
        split(SPACE, how, supernet=study().supernet(0, width=0.67))


def test_children_start_from_their_parent_or_from_the_draw(tmp_path):
    options = {"before": 1, "after": 0}
    ground = study()
    transferred = develop(made("few-shot", **options), ground, 0, folder=tmp_path)
    parent = load_checkpoint(tmp_path / "level-0-0.safetensors")[0].weights
    drawn = dict(ground.supernet(0).state_dict())
    for child in weights(transferred):
        assert all(torch.equal(child[name], parent[name]) for name in parent)
    assert len(transferred.plan.leaves) == 5
    fresh = develop(made("few-shot", transfer=False, **options), ground, 0)
    for child in weights(fresh):
        assert all(torch.equal(child[name], drawn[name]) for name in drawn)


def test_narrow_supernets():
    family = develop(made("efs-nas"), study(), 0)
    assert family.plan.sizes == (9105, 5520, 1000)
    assert {s.skeleton.channels for s in family.supernets} == {1}  # a third of 3
    half = develop(made("one-shot", width=0.67), study(), 0)
    assert half.supernets[0].skeleton.channels == 2


def ids(module):
    return {id(parameter) for parameter in module.parameters()}


def test_efs_supernets_can_share_their_ends():
    family = develop(made("efs-nas", shared=["stem", "head"], width=1.0), study(), 0)
    first, second, _ = family.supernets
    common = ids(first) & ids(second)
    assert common == ids(first.stem) | ids(first.head)
    apart = develop(made("efs-nas", width=1.0), study(), 0)
    assert apart.weights > family.weights
    assert all(bool(p.grad is None or p.isfinite().all()) for p in first.parameters())


def test_efs_copies_of_cells_follow_the_running_count():
    family = develop(made("efs-nas", route="cumulative", width=1.0), study(), 0)
    assert family.plan.sizes == (1983, 7122, 5520, 1000)
    cells = [[ids(s.blocks[place]) for place in (0, 2, 4)] for s in family.supernets]
    assert all(part[0] == cells[0][0] for part in cells)  # the first third is shared
    # Depths 0 and 1 count to 3 at most; depth 2 to 4 and 6, depth 3 to 6 and 9; limits 3 and 4.
    assert cells[0] == cells[1]
    assert cells[2][1] != cells[0][1] and cells[3][1] != cells[2][1]
    assert cells[2][2] == cells[3][2]
    reductions = [ids(s.blocks[1]) for s in family.supernets]
    assert all(r == reductions[0] for r in reductions)
    archs = spaces.distinct(SPACE, 5, random.Random(0))
    accuracy, _ = family.evaluated(archs, study().validation())
    assert ((accuracy >= 0) & (accuracy <= 1)).all()


def test_narrowing_keeps_the_part_that_does_best_and_ranks_by_how_far_parts_came():
    ground = study(3000)
    family = develop(made("hep-nas", after=0, before=[1, 1, 1]), ground, 0)
    # 2, 4 and 8 parts, of which one goes on each time.
    assert len(family.plan.leaves) == 1 + 3 + 8
    assert sorted(family.standing) == [0] + [1] * 3 + [2] * 7 + [3]
    assert sum(family.plan.sizes) == SPACE.size
    sizes = dict(zip(family.standing, family.plan.sizes, strict=True))
    assert sizes[0] in (6250, 9375)  # two or three of five options on the first edge
    archs = spaces.distinct(SPACE, 60, random.Random(0))
    accuracy, _ = family.evaluated(archs, ground.validation())
    ranks = ranked(family.plan, family.standing, archs, accuracy)
    standing = [family.standing[family.plan.route(arch)] for arch in archs]
    for i in range(60):
        for j in range(60):
            if standing[i] > standing[j]:
                assert ranks[i] > ranks[j]
            elif standing[i] == standing[j]:
                assert (ranks[i] > ranks[j]) == (accuracy[i] > accuracy[j])


@pytest.mark.parametrize("teachers", ["both", "parent", "siblings", "none"])
def test_who_parts_learn_from_changes_what_they_learn(teachers):
    options = {"after": 1, "rounds": 2, "teachers": teachers}
    family = develop(made("hep-nas", **options), study(2000), 0)
    forward = family.cost.evaluated / family.cost.trained
    assert len(family.plan.leaves) == 12
    low, high = {"both": (1.5, 5), "parent": (0.5, 1.5), "siblings": (1, 4), "none": (0, 0.5)}[
        teachers
    ]
    assert low < forward < high


class Killed(Exception):
    """A run was interrupted."""


@pytest.mark.parametrize("name", ["greedy", "pi-nas", "few-shot", "gm-nas", "hep-nas", "efs-nas"])
def test_a_killed_run_goes_on_to_the_same_end(name, tmp_path, monkeypatch):
    monkeypatch.setattr("sigeo.supernet.loop._SECONDS_BETWEEN_SAVES", -1.0)
    ground = study(1200)
    undisturbed = develop(made(name), ground, 0)

    def killed_after(images):
        def progress(done, total):
            assert total == 1200
            if done > images:
                raise Killed

        return progress

    for images in (100, 500, 1000):
        with pytest.raises(Killed):
            develop(made(name), ground, 0, folder=tmp_path, progress=killed_after(images))
    for _ in range(2):  # goes on; then finds all of it done
        assert_same(develop(made(name), ground, 0, folder=tmp_path), undisturbed)


def test_other_settings_are_not_gone_on_with(tmp_path):
    develop(made("few-shot"), study(), 0, folder=tmp_path)
    with pytest.raises(InputError, match="made with other settings"):
        develop(made("few-shot", choice=1), study(), 0, folder=tmp_path)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: recipes.get("best", SPACE), "recipe: must be one of one-shot, fair"),
        (lambda: recipes.get("fair", SPACE, paths=2), "fair: has no option paths, options are"),
        (
            lambda: develop(made("gm-nas", repeats=9), study(400), 0),
            "of which comparing options takes",
        ),
        (
            lambda: develop(made("fair"), study(30), 0),
            "fair: needs a budget of at least 40 processed images, got 30",
        ),
        (lambda: study(held_out=118), "holding 118 images out needs as many and a batch"),
        (lambda: made("efs-nas", route="cumulative", shared=["stem"]), "say what is shared"),
        (
            lambda: made(
                "efs-nas",
                route="cumulative",
                kind="convolution_count",
                groups=[[0, 1, 2, 3], [4, 5, 6]],
            ),
            "cumulative routes are those of nonlinear_depth",
        ),
        (lambda: made("efs-nas", groups=[[0, 1, 2, 3]], route="cumulative"), "for 2 to 4 groups"),
        (lambda: study(4), "a budget must pay for at least one batch of 8, got 4"),
        (lambda: study().supernet(0, width=1.5), "width: must be above 0 and at most 1"),
    ],
)
def test_bad_recipes_are_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()
