"""Narrowing with supernets: what is kept on disk, how far it says it is."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sigeo import InputError, spaces
from sigeo.fewshot import recipes
from sigeo.fewshot.develop import check, develop
from sigeo.fewshot.metrics import RandomDistances
from tests.sigeo.fewshot.ground import SMALL, SPACE, study

OPTIONS = {**SMALL["hep-nas"], "before": []}


class Stopped(Exception):
    """As far as a test goes."""


def stop(done, total):
    raise Stopped


def made(**changes):
    return recipes.get("hep-nas", SPACE, **{**OPTIONS, **changes})


def test_cuts_of_other_settings_or_damaged_are_told_apart(tmp_path):
    with pytest.raises(Stopped):
        develop(made(), study(1000), 0, folder=tmp_path, progress=stop)
    with pytest.raises(InputError, match=r"^cuts \S+cuts-0.json: made with other settings"):
        develop(made(judged=2), study(1000), 0, folder=tmp_path, progress=stop)
    (tmp_path / "cuts-0.json").write_text("{}")
    with pytest.raises(InputError, match=r"^cuts \S+cuts-0.json: damaged, or something else$"):
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
