"""Systems whose batch norm has no scale and shift, as EFS-NAS and Few-Shot NAS published them."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
from torch import nn

from sigeo import InputError, proxies, spaces
from sigeo.fewshot import recipes
from sigeo.fewshot.develop import check, develop
from sigeo.fewshot.family import family_weights, load_family
from sigeo.supernet.checkpoint import OtherSettings
from tests.sigeo.fewshot.ground import SPACE, study

SYSTEMS = [
    ("one-shot", {}),
    ("fair", {}),
    ("balanced", {}),
    ("few-shot", {}),
    ("few-shot", {"transfer": False}),
    ("efs-nas", {}),
    ("efs-nas", {"shared": ["stem"]}),
    ("efs-nas", {"route": "cumulative"}),
]


def norms(supernet):
    return [part for part in supernet.modules() if isinstance(part, nn.BatchNorm2d)]


@pytest.mark.parametrize(("name", "options"), SYSTEMS)
def test_norms_are_as_asked_for_to_the_end(name, options):
    assert recipes.get(name, SPACE, **options).supernet == {}
    family = develop(recipes.get(name, SPACE, affine=False, **options), study(240), 0)
    for supernet in family.supernets:
        assert norms(supernet) and not any(part.affine for part in norms(supernet))


def test_what_is_loaded_ranks_by_every_proxy_as_what_was_trained(tmp_path):
    recipe = recipes.get("efs-nas", SPACE, affine=False, width=0.7)
    ground = study(400)
    family = develop(recipe, ground, 0)
    family.save(tmp_path, {"width": recipe.width, "supernet": recipe.supernet})
    loaded = load_family(tmp_path, SPACE)
    assert not any(part.affine for one in loaded.supernets for part in norms(one))
    assert family_weights(tmp_path, SPACE).options == {"affine": False}
    archs = spaces.distinct(SPACE, 2, random.Random(1))
    batches = ground.metric_batches(0, 8, 3)
    every = [proxies.get(proxy) for proxy in proxies.names() if proxy not in ("params", "flops")]
    found, again = (one.scored(archs, batches, every) for one in (family, loaded))
    for proxy, values in found.items():
        assert np.isfinite(values).all(), proxy
        assert again[proxy] == pytest.approx(values, rel=1e-4), proxy


def test_trainings_with_and_without_are_two(tmp_path):
    develop(recipes.get("one-shot", SPACE), study(80), 0, folder=tmp_path)
    with pytest.raises(OtherSettings, match="affine"):
        develop(recipes.get("one-shot", SPACE, affine=False), study(80), 0, folder=tmp_path)


def test_spaces_whose_norms_always_scale_are_named():
    space = spaces.get("resnet", spaces.InputShape(1, 8, 2), channels=4, depths=(1, 1))
    recipe = recipes.get("one-shot", space, affine=False)
    with pytest.raises(InputError, match="that of resnet has no option 'affine'"):
        check(recipe, replace(study(), space=space))


@pytest.mark.parametrize(
    ("supernet", "message"),
    [
        (["affine"], r"family \S+: supernet must be an object of options, got \['affine'\]"),
        ({"norms": 1}, "supernet: that of nasbench201 has no option 'norms'"),
    ],
)
def test_damaged_options_are_refused(supernet, message, tmp_path):
    develop(recipes.get("one-shot", SPACE), study(16), 0).save(tmp_path, {"supernet": supernet})
    with pytest.raises(InputError, match=message):
        load_family(tmp_path, SPACE)
