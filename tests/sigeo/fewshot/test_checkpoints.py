"""Systems evaluated over the last checkpoints of their trainings."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from sigeo import InputError, proxies, spaces
from sigeo.fewshot import recipes
from sigeo.fewshot.develop import check, develop
from sigeo.fewshot.family import Family, load_family
from sigeo.supernet import evaluate, load_checkpoint
from tests.sigeo.fewshot.ground import SMALL, SPACE, study

ARCHS = spaces.distinct(SPACE, 4, random.Random(0))


def keeping(budget, keep=3):
    """A pass is three steps of eight images."""
    settings = {"batch_size": 8, "lr": 0.05, "schedule": "cosine", "keep": keep}
    return study(budget, held_out=96, settings=settings)


def made(name, **options):
    return recipes.get(name, SPACE, **{**SMALL.get(name, {}), **options})


SYSTEMS = [
    ("few-shot", {"before": 1, "after": 1}, 440, 5),
    ("efs-nas", {"shared": ["stem", "head"]}, 240, 3),
    ("hep-nas", {"before": [1, 1, 1], "children": 1, "after": 12}, 1700, 1),
]


@pytest.mark.parametrize(("name", "options", "budget", "trained"), SYSTEMS)
def test_values_are_means_over_the_checkpoints(name, options, budget, trained, tmp_path):
    ground = keeping(budget)
    recipe = made(name, **options)
    family = develop(recipe, ground, 0)
    assert len(family.earlier) == 2
    differ = [
        leaf
        for leaf, supernet in enumerate(family.supernets)
        if family.earlier[0][leaf] is not supernet
    ]
    assert len(differ) == trained
    accuracy, loss = family.evaluated(ARCHS, ground.validation())
    for place, arch in enumerate(ARCHS):
        leaf = family.plan.route(arch)
        found = [
            evaluate(version[leaf], [arch], ground.validation())
            for version in (*family.earlier, family.supernets)
        ]
        assert accuracy[place] == pytest.approx(np.mean([one.accuracy for one in found]))
        assert loss[place] == pytest.approx(np.mean([one.loss for one in found]), rel=1e-5)
    family.save(tmp_path, {"width": recipe.width})
    back = load_family(tmp_path, SPACE)
    again = back.evaluated(ARCHS, ground.validation())
    np.testing.assert_array_equal(again[0], accuracy)
    np.testing.assert_allclose(again[1], loss, rtol=1e-5)
    for mine, theirs in zip(back.earlier, family.earlier, strict=True):
        for a, b in zip(mine, theirs, strict=True):
            kept, expected = a.state_dict(), b.state_dict()
            assert all(torch.equal(kept[key], expected[key]) for key in expected)


def test_only_the_trainings_at_the_end_keep_weights(tmp_path):
    develop(made("few-shot", before=1, after=1), keeping(440), 0, folder=tmp_path)
    kept = {p.stem: len(load_checkpoint(p)[0].kept) for p in tmp_path.glob("*.safetensors")}
    assert kept == {"level-0-0": 0, **{f"final-{leaf}": 2 for leaf in range(5)}}


def test_scores_are_means_over_the_checkpoints():
    ground = keeping(80)
    family = develop(made("one-shot"), ground, 0)
    batches = ground.metric_batches(0, 8, 2)
    zico = [proxies.get("zico")]
    found = family.scored(ARCHS[:2], batches, zico)["zico"]
    alone = [
        Family(family.plan, version).scored(ARCHS[:2], batches, zico)["zico"]
        for version in (*family.earlier, family.supernets)
    ]
    np.testing.assert_allclose(found, np.mean(alone, axis=0))


def test_trainings_of_too_few_passes_are_refused_before_they_begin():
    with pytest.raises(InputError, match="few-shot: keep must be at most 2, the passes over the"):
        check(made("few-shot", before=1, after=1), keeping(240))
    with pytest.raises(InputError, match="gm-nas: keep must be at most 1"):
        check(made("gm-nas", after=0), keeping(4000))


def test_a_family_needs_as_many_supernets_of_every_checkpoint():
    family = develop(made("one-shot"), study(400), 0)
    with pytest.raises(InputError, match="each of 1 leaves, got 0, 1"):
        Family(family.plan, family.supernets, earlier=((),))
