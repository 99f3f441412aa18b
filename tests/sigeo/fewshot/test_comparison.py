"""Systems compared: what is kept, how they are judged, families on disk."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch

from sigeo import InputError, proxies, spaces
from sigeo.fewshot import comparison, load_plan, recipes, save_plan, whole_space
from sigeo.fewshot.comparison import ACCURACY, LOSS, Entrant, Outcome
from sigeo.fewshot.develop import develop
from sigeo.fewshot.family import Family, load_family, ranked
from sigeo.supernet.checkpoint import OtherSettings
from sigeo.tables import kendall, quality
from tests.sigeo.fewshot.ground import SMALL, SPACE, study

ARCHS = spaces.distinct(SPACE, 8, random.Random(0))


@pytest.mark.parametrize(
    "text",
    [
        "fair",
        'gm-nas:repeats=2,criterion="between_sum"',
        "efs-nas:groups=[[0, 1], [2], [3]]",
        'metric-driven:metric="zen:repeats=4,mixup=0.1",batches=1',
    ],
)
def test_entrants_are_read_as_they_are_written(text):
    entrant = Entrant.parse(text)
    assert Entrant.parse(entrant.label) == entrant
    recipes.get(entrant.recipe, SPACE, **entrant.options)


def test_plain_text_is_an_option_as_well():
    assert Entrant.parse("gm-nas:criterion=within_sum").options == {"criterion": "within_sum"}


def test_options_may_have_spaces_around_them():
    spaced = "efs-nas: groups=[[0, 1], [2], [3]], width=0.5 "
    assert Entrant.parse(spaced) == Entrant.parse("efs-nas:groups=[[0,1],[2],[3]],width=0.5")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("best", "recipe: must be one of"),
        ("fair:width", "recipe fair: expected option=value, got 'width'"),
        ("fair:=2", "expected option=value"),
    ],
)
def test_entrants_that_are_none(text, message):
    with pytest.raises(InputError, match=message):
        Entrant.parse(text)


def test_a_system_is_carried_out_once(tmp_path, monkeypatch):
    ground, entrant = study(800), Entrant("few-shot", {"before": 1, "after": 1})
    given = (ground, entrant, 0, ARCHS, [proxies.get("zico")], tmp_path / "s.sqlite", tmp_path)
    first = comparison.run(*given)
    assert set(first.rankings) == {ACCURACY, LOSS, "zico"} and len(first.plan.leaves) == 5
    assert 700 < first.processed <= 800 and first.seconds > 0 and first.weights > 0
    monkeypatch.setattr(comparison, "develop", None)
    wanted = iter(ARCHS), iter(given[4])  # as generators give them
    again = comparison.run(*given[:3], *wanted, *given[5:])
    assert again.plan == first.plan
    for name, values in first.rankings.items():
        np.testing.assert_array_equal(values, again.rankings[name])
    assert (again.processed, again.seconds, again.weights) == (
        first.processed, first.seconds, first.weights,
    )  # fmt: skip


@pytest.mark.parametrize("changed", [{"seed": 1}, {"standing": 7}, {"standing": None}])
def test_a_plan_of_another_comparison_is_refused(changed, tmp_path):
    given = (study(400), Entrant("one-shot", {}), 0, ARCHS[:4], [])
    files = (tmp_path / "s.sqlite", tmp_path)
    comparison.run(*given, *files)
    plan, settings = load_plan(tmp_path / "plan.json", SPACE)
    save_plan(tmp_path / "plan.json", plan, {**settings, **changed})
    with pytest.raises(OtherSettings, match="made with other settings than this comparison"):
        comparison.run(*given, *files)
    (tmp_path / "plan.json").unlink()
    comparison.run(*given, *files)
    assert load_plan(tmp_path / "plan.json", SPACE) == (plan, settings)


def test_more_architectures_are_ranked_on_the_same_weights(tmp_path):
    ground, entrant = study(400), Entrant("one-shot", {})
    files = (tmp_path / "s.sqlite", tmp_path)
    some = comparison.run(ground, entrant, 0, ARCHS[:4], [], *files)
    more = comparison.run(ground, entrant, 0, ARCHS, [], *files)
    np.testing.assert_array_equal(more.rankings[ACCURACY][:4], some.rankings[ACCURACY])
    family = develop(recipes.get("one-shot", SPACE), ground, 0)
    accuracy, loss = family.evaluated(ARCHS, ground.validation())
    np.testing.assert_array_equal(more.rankings[ACCURACY], accuracy)
    np.testing.assert_array_equal(more.rankings[LOSS], -loss)


def test_a_proxy_with_other_options_is_another(tmp_path):
    ground, files = study(400), (tmp_path / "s.sqlite", tmp_path)
    found = [
        comparison.run(
            ground, Entrant("one-shot", {}), 0, ARCHS[:4], [proxies.get("sigeo", **own)], *files
        ).rankings["sigeo"]
        for own in ({}, {"lambdas": [0, 0, 1]}, {})
    ]
    np.testing.assert_array_equal(found[0], found[2])
    assert not (found[0] == found[1]).any()


def test_an_evaluation_that_is_stopped_goes_on_where_it_was(tmp_path, monkeypatch):
    ground, entrant = study(400), Entrant("one-shot", {})
    given = (ground, entrant, 0, ARCHS, [])
    undisturbed = comparison.run(*given, tmp_path / "u.sqlite", tmp_path / "u")
    monkeypatch.setattr(comparison, "_AT_ONCE", 3)

    def stop(done, total):
        if total == len(ARCHS) and done > 3:
            raise KeyboardInterrupt

    files = (tmp_path / "s.sqlite", tmp_path / "s")
    with pytest.raises(KeyboardInterrupt):
        comparison.run(*given, *files, progress=stop)
    reports = []
    stopped = comparison.run(*given, *files, progress=lambda *seen: reports.append(seen))
    assert reports[-1] == (2, 2)
    for name, values in undisturbed.rankings.items():
        np.testing.assert_array_equal(stopped.rankings[name], values)


def test_leaves_that_were_chosen_among_rank_alike_whether_evaluated_at_once_or_bit_by_bit(
    tmp_path,
):
    ground = study(1600)
    entrant = Entrant("hep-nas", {**SMALL["hep-nas"], "before": [1, 1, 1], "after": 0})
    files = (tmp_path / "s.sqlite", tmp_path)
    comparison.run(ground, entrant, 0, ARCHS[:4], [], *files)
    late = comparison.run(ground, entrant, 0, ARCHS, [], *files)
    again = comparison.run(ground, entrant, 0, ARCHS[4:], [], *files)
    at_once = comparison.run(ground, entrant, 0, ARCHS, [], tmp_path / "t.sqlite", tmp_path)
    for by, ranks in at_once.rankings.items():
        np.testing.assert_array_equal(late.rankings[by], ranks)
        np.testing.assert_array_equal(np.argsort(again.rankings[by]), np.argsort(ranks[4:]))


def test_scores_are_those_of_the_supernet_that_serves():
    ground = study(400)
    family = develop(recipes.get("few-shot", SPACE, before=1, after=1), ground, 0)
    batches = ground.metric_batches(0, 8, 2)
    found = family.scored(ARCHS, batches, [proxies.get("zico")])["zico"]
    from sigeo import score

    for arch, value in zip(ARCHS, found, strict=True):
        leaf = family.plan.route(arch)
        alone = score(family.supernets[leaf].subnet(arch), batches, ["zico"])["zico"]
        assert value == pytest.approx(alone.value, rel=2e-3)  # float32, ratios to small deviations


def outcome(values, plan):
    return Outcome(plan, {ACCURACY: np.array(values)}, 100.0, 2.0, 64)


def test_judges_compare_with_the_first_system():
    plan, rng = whole_space(SPACE), np.random.default_rng(0)
    truth = rng.standard_normal(40)
    noisy = [truth + rng.standard_normal(40) for _ in range(2)]
    good = [truth + 0.1 * rng.standard_normal(40) for _ in range(2)]
    outcomes = {
        "noisy": [outcome(v, plan) for v in noisy],
        "good": [outcome(v, plan) for v in good],
    }
    first, second = comparison.judge(outcomes, truth, threshold=0.1, top=4, resamples=100)
    taus = [kendall(v, truth) for v in good]
    assert (first.label, first.gain, second.by) == ("noisy", None, ACCURACY)
    assert second.kendall.value == pytest.approx(np.mean(taus))
    assert second.spread == pytest.approx(np.std(taus, ddof=1))
    assert second.gain is not None and second.gain.low > 0
    expected = [quality(v, truth, threshold=0.1, top=4).hits for v in good]
    assert second.mean(lambda q: q.hits) == pytest.approx(np.mean(expected))
    assert second.sizes == ((15625,), (15625,)) and second.document()["seconds"] == 2.0


def test_a_family_comes_back_from_its_folder(tmp_path):
    ground = study(600)
    family = develop(recipes.get("efs-nas", SPACE, width=0.67), ground, 0)
    family.save(tmp_path, {"width": 0.67})
    back = load_family(tmp_path, SPACE)
    assert back.plan == family.plan and back.weights == family.weights
    accuracy, loss = family.evaluated(ARCHS, ground.validation())
    again = back.evaluated(ARCHS, ground.validation())
    np.testing.assert_array_equal(accuracy, again[0])
    np.testing.assert_allclose(loss, again[1], rtol=1e-6)
    (tmp_path / "leaf-1.safetensors").unlink()
    with pytest.raises(InputError, match="found no file"):
        load_family(tmp_path, SPACE)


def test_a_family_takes_the_place_of_another(tmp_path):
    many = develop(recipes.get("few-shot", SPACE, before=1, after=0), study(), 0)
    many.save(tmp_path, {"seed": 0})
    one = develop(recipes.get("one-shot", SPACE), study(100), 0)
    one.save(tmp_path, {"seed": 1})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["leaf-0.safetensors", "plan.json"]
    assert load_family(tmp_path, SPACE).plan == one.plan


def test_leaves_of_another_system_are_refused(tmp_path):
    family = develop(recipes.get("one-shot", SPACE), study(100), 0)
    for seed in (0, 1):
        (tmp_path / str(seed)).mkdir()
        family.save(tmp_path / str(seed), {"seed": seed})
    name = "leaf-0.safetensors"
    (tmp_path / "0" / name).replace(tmp_path / "1" / name)
    with pytest.raises(InputError, match=r"leaf-0\.safetensors: of another system than \S+plan"):
        load_family(tmp_path / "1", SPACE)


def test_a_system_goes_on_in_the_folder_its_family_was_saved_in(tmp_path):
    recipe = recipes.get("few-shot", SPACE, before=1, after=1)
    family = develop(recipe, study(400), 0, folder=tmp_path)
    family.save(tmp_path, {"seed": 0})
    again = develop(recipe, study(400), 0, folder=tmp_path)
    assert load_family(tmp_path, SPACE).plan == again.plan == family.plan
    for one, other in zip(family.supernets, again.supernets, strict=True):
        for name, value in one.state_dict().items():
            assert torch.equal(value, other.state_dict()[name]), name


def test_checkpoints_of_trainings_are_no_family(tmp_path):
    develop(recipes.get("one-shot", SPACE), study(100), 0, folder=tmp_path)
    (training,) = tmp_path.glob("*.safetensors")
    save_plan(tmp_path / "plan.json", whole_space(SPACE), {"seed": 0})
    with pytest.raises(InputError, match="has a plan but no weights"):
        load_family(tmp_path, SPACE)
    training.rename(tmp_path / "leaf-0.safetensors")
    with pytest.raises(InputError, match=r"leaf-0\.safetensors: a training's checkpoint"):
        load_family(tmp_path, SPACE)


def test_families_need_a_supernet_a_leaf():
    with pytest.raises(InputError, match="expected a supernet for each of 1 leaves, got 0"):
        Family(whole_space(SPACE), ())


def test_values_that_are_not_finite_rank_last_inside_their_leaf():
    plan = develop(recipes.get("few-shot", SPACE, before=1, after=0), study(), 0).plan
    archs = [SPACE.decode((option, 1, 1, 1, 1, 1)) for option in (0, 1, 2, 3)]
    ranks = ranked(plan, (0, 0, 1, 1, 1), archs, np.array([0.9, math.nan, 0.1, -math.inf]))
    assert ranks[3] < ranks[2] and ranks[1] < ranks[0] < ranks[3]


def test_held_out_images_are_never_trained_on_and_are_the_same_for_every_seed():
    ground = study()
    held = torch.cat([inputs for inputs, _ in ground.validation(10)])
    assert len(held) == 24
    trained = {
        inputs.numpy().tobytes()
        for seed in (0, 1)
        for inputs in ground.source(seed).batch(ground.source(seed).order)[0]
    }
    assert len(trained) == 96
    assert not trained & {image.numpy().tobytes() for image in held}
