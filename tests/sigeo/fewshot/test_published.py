"""Recipes and their parts have the numbers of their sources."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace

import pytest

from sigeo import InputError, spaces
from sigeo.fewshot import Branching, InTurn, metrics, recipes, split_by_kind
from sigeo.fewshot.choice import BestGroups
from sigeo.fewshot.develop import develop
from sigeo.fewshot.family import load_family
from sigeo.fewshot.partition import Exact, Exhaustive
from sigeo.fewshot.recipe import Ground
from sigeo.supernet import (
    Balanced,
    CrossPathContrast,
    Disjoint,
    Fair,
    Greedy,
    Training,
    Uniform,
    WarmUp,
    project,
)
from sigeo.supernet.samplers.named import named
from tests.sigeo.fewshot.ground import SPACE, study

FULL = spaces.get("nasbench201", spaces.InputShape(3, 8, 2), channels=4, cells=5)


def recipe(name, **options):
    return recipes.get(name, SPACE, **options)


def sampler(made, steps=150):
    ground = Ground(SPACE, None, 0, SPACE.supernet(), study().validation(), steps)
    return made.paths.sampler(ground)


def lengths(made):
    return (*made.before, made.after)


def test_step_sizes():
    """Of shared weights, and of SiGeo's candidates that are each warmed up alone."""
    shared = Training.of_steps(100, 10_000, schedule="cosine")
    assert (shared.lr_at(0), shared.lr_at(100)) == (0.025, pytest.approx(0.001))
    assert (shared.momentum, shared.weight_decay, shared.clip) == (0.9, 5e-4, 5.0)
    alone = WarmUp.published(6000)
    assert (alone.epochs, alone.batch_size, alone.steps) == (10, 128, 470)
    assert {alone.lr_at(step) for step in range(470)} == {1.0} and not alone.shuffle
    assert (alone.momentum, alone.weight_decay, alone.clip) == (0, 0, None)


def test_systems_that_split_edges():
    few, gm, lid = (recipe(name) for name in ("few-shot", "gm-nas", "nas-lid"))
    assert few.splitting.metric is None and few.splitting.partitioner == Exhaustive()
    assert few.splitting.choice == InTurn((0,)) and few.splitting.inherit == "always"
    assert lengths(few) == (600, 300)
    assert gm.splitting.metric == metrics.GradientMatching(100)
    assert (gm.splitting.branching, gm.splitting.partitioner) == (Branching((2, 2)), Exact(2))
    assert gm.splitting.choice == BestGroups("between_mean") and lengths(gm) == (20, 20, 50)
    assert recipe("gm-nas", restart=True).splitting.inherit == "inner"
    assert lid.splitting.metric == metrics.LID(50, 20, "correlation", divisor="k")
    assert lid.splitting.partitioner == Exact(2) and lid.metric_batches == (128, 50)
    assert lid.splitting.choice == BestGroups("separation")
    assert lengths(lid) == (20, 20, 20, 20, 10)  # trained until 20, 40, 60 and 80
    driven = recipe("metric-driven")
    assert driven.splitting.metric == metrics.gradient_matching_logits(1)
    assert driven.splitting.branching == Branching((2, 2, 2))
    assert driven.splitting.partitioner == Exact(1) and driven.splitting.inherit == "never"
    assert driven.splitting.choice == InTurn((0, 1, 2)) and lengths(driven) == (50,)
    assert driven.metric_batches[0] == 16
    for metric, usual in (("grad_norm", 8), ("gradient_matching_logits", 1), ("lid", 50)):
        for draws in (None, 3):
            drawn = recipe("metric-driven", metric=metric, draws=draws).splitting.metric
            assert (drawn.name, drawn.repeats) == (metric, draws or usual)
    warmed = recipe("metric-driven", before=5)
    assert warmed.splitting.inherit == "always" and lengths(warmed) == (5, 5, 5, 50)


def test_narrowing():
    made = recipe("hep-nas")
    how = made.hierarchy
    assert how.levels == ((0,), (1, 2), (3, 4, 5)) and how.teachers == "both"
    assert how.metric == metrics.GradientMatching(100) and how.partitioner == Exact(2)
    assert (made.before, how.children, how.rounds) == ((10, 10, 10), 10, 10)


def test_paths_of_a_step():
    found = sampler(recipe("greedy"))
    assert type(found) is Greedy
    assert (found.sampled, found.kept, found.pool.size, found.epsilon) == (10, 5, 1000, 0.8)
    assert (found.start, found.full) == (10, 144)  # thousandths of a training of 150,000 steps
    assert recipe("greedy").paths.images == 1000
    warming = named("greedy", SPACE, seed=0, steps=150, score=lambda archs: [0.0] * len(archs))
    assert (warming.start, warming.full, warming.alpha, found.alpha) == (10, 144, None, None)
    assert type(sampler(recipe("fair"))) is Fair and recipe("fair").paths.trained == 5
    assert type(sampler(recipe("one-shot"))) is Uniform
    assert type(sampler(recipe("pi-nas"))) is Disjoint and recipe("pi-nas").paths.trained == 2
    objective = recipe("pi-nas").objective(study(), 0)
    assert (objective.decay, objective.temperature) == (0.999, 1)
    projected = SPACE.supernet()
    project(projected, seed=0)  # two layers of the features' width, 128 numbers
    assert [tuple(p.shape) for p in projected.head.linear.parameters() if p.dim() > 1] == [
        (12, 12),
        (128, 12),
    ]
    contrast = CrossPathContrast(objective.views, seed=0)
    assert tuple(contrast.queue.shape) == (49_152, 128)
    assert (contrast.temperature, contrast.decay) == (0.2, 0.999)


@pytest.mark.parametrize(
    ("name", "options", "form"),
    [
        ("balanced", {}, "one"),
        ("balanced", {"form": "each"}, "each"),
        ("efs-nas", {"shared": ["stem"]}, "each"),
        ("efs-nas", {"route": "cumulative"}, "one"),
    ],
)
def test_groups_of_kinds_are_trained_as_often(name, options, form):
    made = recipe(name, **options)
    found = sampler(made)
    assert type(found) is Balanced and found.form == form
    assert [sorted(region.kinds) for region in found.regions] == [[0, 1], [2], [3]]
    assert made.paths.trained == (3 if form == "each" else 1)


@pytest.mark.parametrize(
    ("groups", "thresholds", "shared", "channels"),
    [
        (((0, 1), (2, 3)), (25,), 5, 2),
        (((0, 1), (2,), (3,)), (15, 20), 5, 1),
        (((0,), (1,), (2,), (3,)), (10, 20, 30), 0, 1),
    ],
)
def test_copies_of_cells_by_a_running_count(groups, thresholds, shared, channels):
    """EFS-NAS's networks of 15 cells for two, three and four groups."""
    made = recipes.get("efs-nas", FULL, groups=groups, route="cumulative")
    assert round(4 * made.width) == channels
    kinds, leaves = made.kinds
    assert leaves == ((0,), (1,), (2,), (3,))
    parts = made.joint(FULL.supernet(), split_by_kind(FULL, kinds, leaves).leaves)
    cells = [place for place in range(17) if place not in (5, 11)]  # the others are reductions
    for number, place in enumerate(cells, 1):
        copies = [
            0 if number <= shared else sum(depth * number > limit for limit in thresholds)
            for depth in range(4)
        ]
        for i, j in itertools.combinations(range(4), 2):
            same = parts[i].blocks[place] is parts[j].blocks[place]
            assert same == (copies[i] == copies[j]), (number, i, j)
    for part in parts[1:]:
        assert part.stem is parts[0].stem and part.head is parts[0].head
        assert all(part.blocks[place] is parts[0].blocks[place] for place in (5, 11))


@pytest.mark.parametrize("options", [{}, {"shared": ["stem", "first", "head"]}])
def test_mobile_networks_are_divided_as_published(options, tmp_path):
    """EFS-NAS's other space: by two functions a block, into groups of half the channels."""
    space = spaces.get("mobilenet", spaces.InputShape(1, 8, 2), blocks=(2, 1), channels=(8, 12),
                       strides=(1, 2), stem=6, first=4, last=16)  # fmt: skip
    made = recipes.get(
        "efs-nas", space, kind="nonlinear_count", groups=[[4], [6]], width=0.5, **options
    )
    ground = replace(study(100), space=space)
    family = develop(made, ground, 0)
    assert family.plan.sizes == (6 * 6, 6 * 6 * 6)  # the second block of the first stage, or none
    for supernet in family.supernets:
        shapes = {name: tuple(weight.shape) for name, weight in supernet.named_parameters()}
        assert shapes["stem.conv.weight"] == (3, 1, 3, 3)
        assert shapes["stage2_block1.project.conv.weight"] == (6, 4 * 6, 1, 1)
        assert shapes["head.features.conv.weight"] == (8, 6, 1, 1)
    first, second = (dict(supernet.named_parameters()) for supernet in family.supernets)
    common = {name.partition(".")[0] for name, weight in first.items() if weight is second[name]}
    assert common == set(options.get("shared", ()))
    archs = spaces.distinct(space, 24, random.Random(0))
    counts = [space.nonlinear_count(arch) for arch in archs]
    assert {4, 6} == set(counts)
    assert [family.plan.route(arch) for arch in archs] == [(n - 4) // 2 for n in counts]
    family.save(tmp_path, {"width": made.width})
    found = [
        f.evaluated(archs, ground.validation())[1] for f in (family, load_family(tmp_path, space))
    ]
    assert found[0] == pytest.approx(found[1], rel=1e-5)


def test_kinds_follow_the_sizes_of_a_space():
    shape = spaces.InputShape(3, 32, 10)
    counts = spaces.MobileNet.published(shape).nonlinear_counts()
    assert counts == frozenset(range(12, 43, 2))
    groups = [[36], [38], [40], sorted(counts - {36, 38, 40})]  # of four supernets
    published = spaces.MobileNet.published(shape)
    assert (
        recipes.get("balanced", published, kind="nonlinear_count", groups=groups).paths.trained == 1
    )
    with pytest.raises(InputError, match=r"must hold each of \[6, 8, 10, 12\] once"):
        recipes.get(
            "balanced", spaces.get("mobilenet", shape), kind="nonlinear_count", groups=groups
        )
    narrow = recipes.get("one-shot", spaces.get("mlp", shape), width=0.5)
    with pytest.raises(InputError, match="width: mlp has no narrower networks of the same arch"):
        develop(narrow, replace(study(), space=spaces.get("mlp", spaces.InputShape(1, 8, 2))), 0)
