"""Systems evaluated over the last checkpoints of their trainings."""

from __future__ import annotations

import random
import re

import numpy as np
import pytest
import torch

from sigeo import InputError, proxies, score, spaces
from sigeo.fewshot import recipes
from sigeo.fewshot.develop import check, develop
from sigeo.fewshot.family import Family, family_weights, leaf_file, load_family
from sigeo.scoring.networks import Networks, Protocol
from sigeo.supernet import evaluate, load_checkpoint, train_supernet
from tests.sigeo.fewshot.ground import DATA, SMALL, SPACE, study

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


def test_leaves_of_fewer_checkpoints_are_averaged_over_theirs(tmp_path, monkeypatch):
    def train(*args, settings, kept=None, **options):
        cost = train_supernet(*args, settings=settings, kept=kept, **options)
        if settings["phase"] == "final-1":  # as where its sampler ends it in the second pass
            del kept[0]
        return cost

    monkeypatch.setattr("sigeo.fewshot.develop.train_supernet", train)
    ground = keeping(440)
    family = develop(made("few-shot", before=1, after=1), ground, 0)
    first, second, last = (version[1] for version in (*family.earlier, family.supernets))
    assert first is second is not last
    arch = next(filter(SPACE.connected, family.plan.leaves[1]))
    expected = np.mean(
        [float(evaluate(one, [arch], ground.validation()).loss) for one in (second, last)]
    )
    family.save(tmp_path, {"width": 1.0})
    assert len(load_checkpoint(leaf_file(tmp_path, 1))[0].kept) == 1
    for found in (family, load_family(tmp_path, SPACE)):
        loss = found.evaluated([arch], ground.validation())[1]
        assert loss[0] == pytest.approx(expected, rel=1e-5)

    batches, zico = ground.metric_batches(0, 8, 2), proxies.get("zico")
    alone = [score(one.subnet(arch), batches, ["zico"])["zico"].value for one in (second, last)]
    (found,) = family.scored([arch], batches, [zico])["zico"]
    assert found == pytest.approx(np.mean(alone), rel=1e-4)
    protocol = Protocol((zico,), init="supernet", batches=2, batch_size=8)
    networks = Networks(SPACE, DATA, protocol, shared=family_weights(tmp_path, SPACE))
    alone = [
        score(one.subnet(arch), networks.batches, ["zico"])["zico"].value for one in (second, last)
    ]
    assert networks.score(arch, [zico])["zico"].value == pytest.approx(np.mean(alone), rel=1e-5)
    (many,) = networks.score_many([arch], [zico])
    assert many["zico"].value == pytest.approx(np.mean(alone), rel=1e-3)


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
    with pytest.raises(InputError, match="gm-nas: has no training at the end, so keep must be 1"):
        check(made("gm-nas", after=0), keeping(4000))


@pytest.mark.parametrize("recipe", ["one-shot", "fair", "greedy", "few-shot", "random-split"])
def test_the_budget_that_pays_for_the_passes_is_named(recipe):
    with pytest.raises(InputError, match="keep must be at most") as refused:
        check(made(recipe), keeping(1200, keep=70))
    told = r"a budget of ([\d,]+) processed images, ([\d,]+) steps of 8, would do"
    found = re.search(told, str(refused.value))
    budget, steps = (int(number.replace(",", "")) for number in found.groups())
    check(made(recipe), keeping(budget, keep=70))
    assert steps == -(-budget // 8)
    with pytest.raises(InputError, match="keep must be at most 69,"):
        check(made(recipe), keeping(budget - 1, keep=70))


def test_a_family_needs_as_many_supernets_of_every_checkpoint():
    family = develop(made("one-shot"), study(400), 0)
    with pytest.raises(InputError, match="each of 1 leaves, got 0, 1"):
        Family(family.plan, family.supernets, earlier=((),))
