"""The checkpoint that ranks known networks best: what is judged, what it costs, kills."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import kendalltau

from sigeo import InputError, spaces
from sigeo.data import ImageData
from sigeo.fewshot import Known, comparison, recipes
from sigeo.fewshot.develop import develop, least_budget
from sigeo.fewshot.family import load_family
from sigeo.fewshot.selection import Selection
from sigeo.fewshot.study import FORWARD_SHARE, Study
from sigeo.supernet import evaluate, load_checkpoint
from tests.sigeo.fewshot.ground import images

SPACE = spaces.get(
    "resnet", spaces.InputShape(1, 8, 2), channels=8, depths=(1, 1), ratios=(0.6, 0.8, 1)
)
TRAIN = images(120, 0)
# Labels of other images: nothing to be learnt, so that the networks' accuracies differ.
DATA = ImageData("noise", replace(TRAIN, labels=TRAIN.labels.roll(1)), images(10, 1), classes=2)
ARCHS = spaces.distinct(SPACE, 6, random.Random(0))
STEP = 8 * 4  # images of four paths
LOOK = 6 * (96 + 2 * 8)  # six networks on the images held out and on two batches to recalibrate
# Two passes over 24 images with one group, two with two.
BUDGET = round(12 * STEP + 4 * LOOK * FORWARD_SHARE)


def study(budget=BUDGET, **changes):
    settings = {"batch_size": 8, "lr": 1.0, **changes}
    return Study(SPACE, DATA, budget, held_out=96, settings=settings)


def table(folder, values=range(6), archs=ARCHS, column="test_accuracy"):
    path = folder / "known.csv"
    rows = [f'"{arch}",{value}' for arch, value in zip(archs, values, strict=True)]
    path.write_text("\n".join([f"arch_str,{column}", *rows]) + "\n")
    return str(path)


def made(folder, **options):
    chosen = {"groups": 2, "before": 1, "after": 1, "rates": [1, 0.5], "calibration": 2, **options}
    return recipes.get("gradual", SPACE, **chosen, known=table(folder))


def weights(family):
    return dict(family.supernets[0].state_dict())


def equal(mine, theirs):
    return mine.keys() == theirs.keys() and all(torch.equal(mine[n], theirs[n]) for n in mine)


def recorded(monkeypatch):
    """What every judgement had before it: (phase, step), weights, accuracies and images."""
    found = []
    judge = Selection.judge

    def record(self, supernet, phase, step):
        calibration = study().calibration(0, 2)
        judged = evaluate(
            supernet,
            ARCHS,
            study().validation(),
            norm="recalibrated",
            calibration=calibration,
        )
        state = {name: tensor.clone() for name, tensor in supernet.state_dict().items()}
        found.append(((phase, step), state, judged.accuracy.numpy(), judged.images))
        judge(self, supernet, phase, step)

    monkeypatch.setattr(Selection, "judge", record)
    return found


def test_every_pass_is_judged_and_the_best_served(tmp_path, monkeypatch):
    looks = recorded(monkeypatch)
    family = develop(made(tmp_path), study(), 0)
    assert [place for place, *_ in looks] == [
        ("stage-0", 3), ("stage-0", 6), ("stage-1", 3), ("stage-1", 6)
    ]  # fmt: skip
    taus = [kendalltau(accuracy, range(6)).statistic for _, _, accuracy, _ in looks]
    taus = [-1 if np.isnan(tau) else tau for tau in taus]
    assert len(set(taus)) > 1
    told = [tau for training in family.trainings for _, tau in training["kendall"]]
    assert told == pytest.approx(taus)
    best = max(range(4), key=lambda place: (told[place], place))
    assert equal(weights(family), looks[best][1])
    calibration = study().calibration(0, 2)
    accuracy, _ = family.evaluated(ARCHS, study().validation(), calibration)
    assert accuracy.tolist() == looks[best][2].tolist() and not family.supernets[0].noisy


def test_judging_is_paid_for_and_leaves_the_training_as_it_is(tmp_path, monkeypatch):
    looks = recorded(monkeypatch)
    family = develop(made(tmp_path), study(), 0, folder=tmp_path / "judged")
    assert family.cost.trained == 12 * STEP
    assert family.cost.evaluated == sum(images for *_, images in looks) == 4 * LOOK
    one = {"groups": 2, "before": 1, "after": 1, "rates": [1, 0.5], "calibration": 2}
    develop(recipes.get("gradual", SPACE, **one), study(12 * STEP), 0, folder=tmp_path / "plain")
    for number in range(2):
        found = [
            load_checkpoint(tmp_path / folder / f"stage-{number}.safetensors")[0]
            for folder in ("judged", "plain")
        ]
        assert equal(found[0].weights, found[1].weights)
    # The smallest budget pays for a step of each training and for judging both at their ends.
    least = least_budget(made(tmp_path), study())
    assert least == 2 * STEP + 2 * LOOK * FORWARD_SHARE
    family = develop(made(tmp_path), study(least), 0)
    assert family.cost.trained == 2 * STEP and family.cost.evaluated == 2 * LOOK
    with pytest.raises(InputError, match=f"needs a budget of at least {least:,.0f} processed"):
        develop(made(tmp_path), study(round(least) - 1), 0)


def test_an_earlier_training_is_served_as_it_was_then(tmp_path, monkeypatch):
    """With the published rule the best may have fewer groups than the last."""
    taus = iter([0.1, 0.9, 0.5, 0.8])
    monkeypatch.setattr("sigeo.fewshot.selection.kendall", lambda *_: next(taus))
    looks = recorded(monkeypatch)
    family = develop(made(tmp_path), study(), 0)
    assert [len(one.tops) for one in family.supernets[0].groups] == [1, 1]
    assert equal(weights(family), looks[1][1])
    family.save(tmp_path, {"width": 1.0})
    assert equal(weights(load_family(tmp_path, SPACE)), looks[1][1])


@pytest.mark.parametrize(
    ("taus", "kept"),
    [([0.3, 0.7, 0.5], 1), ([0.7, 0.7, 0.2], 1), ([float("nan")] * 2, 1), ([0.0, -0.5], 0)],
)
def test_of_equal_ones_the_last_is_kept(taus, kept, monkeypatch):
    monkeypatch.setattr("sigeo.fewshot.selection.kendall", lambda *_: taus[step])
    selection = Selection(
        Known(SPACE, {str(a): i for i, a in enumerate(ARCHS)}), study().validation()
    )
    for step in range(len(taus)):
        supernet = SPACE.supernet(seed=step)
        selection.judge(supernet, "stage-0", step)
        with torch.no_grad():  # what is kept is a copy
            next(supernet.parameters()).fill_(0.0)
    assert selection.best.step == kept
    assert [one.step for one in selection.judged] == list(range(len(taus)))
    assert equal(selection.weights, dict(SPACE.supernet(seed=kept).state_dict()))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    return develop(made(tmp_path_factory.mktemp("known")), study(), 0)


class Killed(Exception):
    """A run was interrupted."""


def killer(steps):
    """Kills a run after the next steps."""
    left = iter(range(steps))

    def progress(done, total):
        if next(left, None) is None:
            raise Killed

    return progress


def test_a_killed_run_goes_on_to_the_same_end(undisturbed, tmp_path, monkeypatch):
    monkeypatch.setattr("sigeo.supernet.loop._SECONDS_BETWEEN_SAVES", -1.0)
    for steps in (1, 2, 1, 3, 4):  # until the next kill
        with pytest.raises(Killed):
            develop(made(tmp_path), study(), 0, folder=tmp_path / "w", progress=killer(steps))
    for _ in range(2):  # goes on; then finds all of it done
        family = develop(made(tmp_path), study(), 0, folder=tmp_path / "w")
        assert equal(weights(family), weights(undisturbed))
        assert family.cost == undisturbed.cost and family.trainings == undisturbed.trainings


@pytest.mark.parametrize("after", [False, True])
def test_a_kill_while_judging_changes_nothing(after, undisturbed, tmp_path, monkeypatch):
    save = Selection.judge

    def killed(self, supernet, phase, step):
        if after:
            save(self, supernet, phase, step)
        if (phase, step) == ("stage-1", 3):
            raise Killed
        if not after:
            save(self, supernet, phase, step)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Selection, "judge", killed)
        develop(made(tmp_path), study(), 0, folder=tmp_path / "w")
    family = develop(made(tmp_path), study(), 0, folder=tmp_path / "w")
    assert equal(weights(family), weights(undisturbed)) and family.cost == undisturbed.cost
    assert family.trainings == undisturbed.trainings


def test_files_that_do_not_go_together_are_refused(tmp_path):
    folder = tmp_path / "w"
    develop(made(tmp_path), study(), 0, folder=folder)
    file = folder / "selected.safetensors"
    whole = file.read_bytes()
    file.unlink()
    with pytest.raises(InputError, match="expected 2 passes of stage-0, got 0; remove the other"):
        develop(made(tmp_path), study(), 0, folder=folder)
    file.write_bytes(whole[:100])
    with pytest.raises(InputError, match=r"selected\.safetensors: damaged or truncated"):
        develop(made(tmp_path), study(), 0, folder=folder)
    file.write_bytes((folder / "stage-1.safetensors").read_bytes())
    with pytest.raises(InputError, match="made with other settings than this selection"):
        develop(made(tmp_path), study(), 0, folder=folder)
    file.write_bytes(whole)
    again = made(tmp_path)
    table(tmp_path, [0, 1, 2, 3, 5, 4])  # the same file with other values
    changed = recipes.get(
        "gradual", SPACE, **{**again.options, "known": str(tmp_path / "known.csv")}
    )
    with pytest.raises(InputError, match="made with other settings than this selection .known"):
        develop(changed, study(), 0, folder=folder)


@pytest.mark.parametrize(
    ("options", "values", "message"),
    [
        ({"metric": "acc"}, range(6), "expected a column for metric 'acc', found test_accuracy"),
        ({}, [1] * 6, "must have 5 networks or more, not all of the same test_accuracy, got 6"),
        ({}, range(4), "must have 5 networks or more, .* got 4"),
        ({"known": None, "metric": "x"}, range(6), "metric has no effect without known"),
        ({"known": "no.csv"}, range(6), "no.csv"),
        ({"known": 3}, range(6), "known must be text or None, got 3"),
    ],
)
def test_tables_that_do_not_serve_are_refused(options, values, message, tmp_path):
    path = table(tmp_path, values, ARCHS[: len(values)])
    with pytest.raises(InputError, match=message):
        recipes.get("gradual", SPACE, **{"known": path, **options})


def test_one_checkpoint_is_selected_not_a_mean(tmp_path):
    with pytest.raises(InputError, match="known selects one checkpoint, so keep must be 1, got 2"):
        develop(made(tmp_path), study(keep=2), 0)


def test_a_comparison_names_what_its_systems_know(tmp_path):
    path = table(tmp_path)
    entrants = [comparison.Entrant("gradual", {"known": path}), comparison.Entrant("one-shot", {})]
    assert comparison.known_to(entrants, SPACE) == set(map(str, ARCHS))
    assert comparison.known_to(entrants[1:], SPACE) == set()
