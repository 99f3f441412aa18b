"""The one-shot to few-shot training scheme: trainings, step sizes, gradients, kills."""

from __future__ import annotations

import pickle
import random
from collections import Counter

import pytest
import torch
import torch.nn.functional as F

from sigeo import InputError, spaces
from sigeo.fewshot import comparison, recipes
from sigeo.fewshot.develop import develop
from sigeo.fewshot.family import load_family
from sigeo.fewshot.recipe import Ground
from sigeo.fewshot.recipes.gradual import scales
from sigeo.fewshot.study import Study
from sigeo.spaces.elastic.parts import part
from sigeo.supernet import Trainer, evaluate, load_checkpoint
from sigeo.supernet.randomness import drawing
from tests.sigeo.fewshot.ground import DATA

SPACE = spaces.get(
    "resnet", spaces.InputShape(1, 8, 2), channels=8, depths=(1, 2), ratios=(0.6, 0.8, 1)
)
STEP = 8 * 4


def study(budget=40 * STEP, **changes):
    settings = {"batch_size": 8, "lr": 0.1, "schedule": "constant"}
    return Study(SPACE, DATA, budget, **{"held_out": 24, "settings": settings, **changes})


def made(**options):
    return recipes.get("gradual", SPACE, **{"calibration": 2, **options})


def weights(family):
    return dict(family.supernets[0].state_dict())


def copies(names):
    """How many each stage's blocks have, by the names of parameters."""
    blocks = [name.split(".")[:2] for name in names if name.startswith("stage")]
    found = {(block.partition("_")[0], copy) for block, copy in blocks}
    return dict(Counter(stage for stage, _ in found))


def assert_same(a, b):
    assert a.plan == b.plan and a.cost == b.cost
    mine, theirs = weights(a), weights(b)
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_trainings_of_the_published_lengths_with_one_group_more_each(tmp_path):
    ground = study(70 * STEP)
    family = develop(made(), ground, 0, folder=tmp_path)
    assert family.cost.trained == 70 * STEP and family.cost.evaluated == 0
    assert family.plan.sizes == (SPACE.size,)
    states = [load_checkpoint(tmp_path / f"stage-{number}.safetensors") for number in range(3)]
    assert [state.step for state, _ in states] == [50, 10, 10]  # 100, 20 and 20 epochs
    for number, (state, settings) in enumerate(states):
        assert copies(state.weights) == {"stage1": number + 1, "stage2": number + 1}
        assert f"head.{number}.linear.bias" in state.weights
        assert f"head.{number + 1}.linear.bias" not in state.weights
        training = settings["training"]
        assert training["lr"] == pytest.approx(0.1 * (1, 0.01, 0.02)[number])
        assert training["schedule"] == "cosine" and training["floor"] == 0
        assert training["momentum"] == 0.9
        assert training["clip"] == 1.0 and training["clip_by"] == "value"
        assert training["weight_decay"] == 1e-5 and training["decay_norms"] is False
        assert training.get("rise", 0) == (2 if number == 0 else 0)  # a twentieth, rounded
        for name, value in family.trainings[number].items():
            told = {"steps": state.step, "rise": training.get("rise", 0)}
            told["scales"] = tuple(map(tuple, training.get("scales", ())))
            assert value == {**training, **told}[name], name
        assert settings["sampler"]["count"] == 2
        assert settings["objective"]["label_smoothing"] == 0.1


def test_each_training_starts_from_the_leading_slices_of_the_one_before(tmp_path):
    # With step sizes of 0 a later training leaves its weights as they were inherited.
    develop(made(rates=[1, 1e-30]), study(), 0, folder=tmp_path)
    first, second = (
        load_checkpoint(tmp_path / f"stage-{number}.safetensors")[0].weights for number in (0, 1)
    )
    drawn = dict(study().supernet(0).state_dict())
    moved = 0
    for name, tensor in second.items():
        piece, _, rest = name.split(".", 2)
        old = first[name if piece == "stem" else f"{piece}.0.{rest}"]
        assert torch.equal(tensor, part(old, tensor.shape)), name
        source = drawn[name if piece == "stem" else f"{piece}.{rest}"]
        moved += not torch.equal(tensor, part(source, tensor.shape))
    assert moved > len(second) // 2


def test_step_sizes_of_copies_are_those_published():
    """2, 5, 6 and 6 times for the new copy, then 1/2 to 1/5 for the old one, then all alike."""
    published = spaces.ResNet.published(spaces.InputShape(3, 224, 1000))

    def factors(groups):
        found = dict(scales(published, groups))
        return {
            (stage, copy): found[name]
            for stage in range(1, 5)
            for copy in range(7)
            if (name := f"stage{stage}_block2.{copy}.") in found
        }

    assert factors(1) == {}
    assert factors(2) == {(1, 1): 2, (2, 1): 5, (3, 1): 6, (4, 1): 6}
    assert factors(3) == {(2, 0): 1 / 4, (3, 0): 1 / 5, (4, 0): 1 / 5}
    assert factors(4) == {(2, 0): 1 / 3, (3, 0): 1 / 4, (4, 0): 1 / 4}
    assert factors(5) == {(2, 0): 1 / 2, (3, 0): 1 / 3, (4, 0): 1 / 3}
    assert factors(6) == {(3, 0): 1 / 2, (4, 0): 1 / 2}
    assert factors(7) == {}
    assert dict(scales(published, 2))["head.1."] == 6


def test_the_optimiser_has_those_step_sizes():
    supernet = SPACE.supernet(seed=0).divided(SPACE.width_groups(2))
    config = study().training(5, scales=scales(SPACE, 2), decay_norms=False)
    trainer = Trainer(supernet, lambda batch, step: torch.zeros(()), config)
    trainer.take(None)
    names = {id(p): name for name, p in supernet.named_parameters()}
    rates = {
        names[id(p)]: group["lr"] for group in trainer.optimizer.param_groups
        for p in group["params"]
    }  # fmt: skip
    for name, rate in rates.items():
        newest = name.partition(".")[2].startswith("1.")  # alone, beside one copy for two widths
        assert rate == pytest.approx(0.2 if newest else 0.1), name


def test_the_gradients_of_a_step_by_hand():
    """The largest on the labels, three others on its predictions alone, added up."""
    recipe = made()
    supernet = recipe.gradual.grow(study().supernet(0), 0)
    supernet = recipe.gradual.grow(supernet, 1).double()
    with torch.no_grad():  # off the start, where branches are zero
        for number, parameter in enumerate(supernet.parameters()):
            generator = torch.Generator().manual_seed(number)
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    ground = study()
    sampler = recipe.paths.sampler(Ground(SPACE, None, 3, supernet, [], 10))
    paths = sampler.paths(0)
    assert paths[0] == SPACE.largest and paths[3] == SPACE.smallest and len(paths) == 4
    images, labels = ground.validation(16)[0]
    images = images.double()
    with drawing("a step", torch.device("cpu")):
        loss = recipe.objective(ground, 0)(supernet, paths, (images, labels), 0)
    found = {name: parameter.grad for name, parameter in supernet.named_parameters()}
    supernet.zero_grad(set_to_none=True)

    with drawing("a step", torch.device("cpu")):
        largest = supernet(images, paths[0])  # with its dropout
    log = largest.log_softmax(1)
    targets = 0.9 * F.one_hot(labels, 2) + 0.1 / 2
    total = -(targets * log).sum(1).mean()
    torch.testing.assert_close(loss, total.detach())
    told = largest.detach().softmax(1)
    for path in paths[1:]:
        answer = supernet.subnet(path)(images).log_softmax(1)  # for its value: without dropout
        again = supernet(images, path).log_softmax(1)
        torch.testing.assert_close(again, answer)
        total = total + (told * (told.log() - again)).sum(1).mean()
    total.backward()
    for name, parameter in supernet.named_parameters():
        if parameter.grad is None:
            assert found[name] is None, name
        else:
            torch.testing.assert_close(found[name], parameter.grad)
    used = {name.split(".")[1] for name in found if found[name] is not None and "block" in name}
    assert used == {"0", "1"}


def test_every_block_starts_as_its_shortcut():
    supernet = made().gradual.grow(study().supernet(0), 0)
    scale = {n: p for n, p in supernet.named_parameters() if n.endswith("second.norm.weight")}
    assert len(scale) == 3 and not any(bool(p.any()) for p in scale.values())
    others = [p for n, p in supernet.named_parameters() if n.endswith("first.norm.weight")]
    assert all(bool((p == 1).all()) for p in others)
    assert supernet.noisy and pickle.loads(pickle.dumps(supernet)).noisy
    assert not made(dropout=0.0, drop_path=0.0).gradual.grow(study().supernet(0), 0).noisy
    # A second growth is not to forget what was learnt.
    with torch.no_grad():
        for parameter in scale.values():
            parameter.fill_(0.5)
    grown = made().gradual.grow(supernet, 1)
    assert all(
        bool((p == 0.5).all())
        for n, p in grown.named_parameters()
        if n.endswith("second.norm.weight")
    )


def test_it_learns_and_is_evaluated_on_recalibrated_norms():
    ground = study(150 * STEP)
    family = develop(made(rates=[1, 0.1], groups=2), ground, 0)
    archs = spaces.distinct(SPACE, 8, random.Random(0))
    calibration = ground.calibration(0, 4)
    assert [len(labels) for _, labels in calibration] == [8] * 4
    accuracy, loss = family.evaluated(archs, ground.validation(), calibration)
    assert accuracy.mean() > 0.85
    _, again = family.evaluated(archs, ground.validation(5), calibration)
    assert again == pytest.approx(loss, rel=1e-4)  # whatever the batches are
    _, by_batch = family.evaluated(archs, ground.validation())
    assert by_batch != pytest.approx(loss, rel=1e-3)


def test_what_is_kept_is_read_again(tmp_path):
    family = develop(made(), study(), 0)
    assert not family.supernets[0].noisy
    family.save(tmp_path, {"width": 1.0})
    read = load_family(tmp_path, SPACE)
    assert read.plan == family.plan
    mine, theirs = weights(family), weights(read)
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[n], theirs[n]) for n in mine)
    archs = [SPACE.largest, SPACE.smallest, SPACE.at(77)]
    found = [one.evaluated(archs, study().validation())[1] for one in (family, read)]
    assert found[0] == pytest.approx(found[1], rel=1e-5)


def test_the_last_training_keeps_checkpoints_without_its_noise(tmp_path):
    settings = {"batch_size": 8, "lr": 0.1, "schedule": "constant", "keep": 2}
    ground = study(held_out=104, settings=settings)  # a pass is two steps
    family = develop(made(), ground, 0, folder=tmp_path)
    kept = {path.stem: len(load_checkpoint(path)[0].kept) for path in tmp_path.glob("stage-*")}
    assert kept == {"stage-0": 0, "stage-1": 0, "stage-2": 1}
    ((earlier,),) = family.earlier
    assert not earlier.noisy and earlier.groups == family.supernets[0].groups
    expected = load_checkpoint(tmp_path / "stage-2.safetensors")[0].kept[0]
    found = earlier.state_dict()
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    loss = [
        evaluate(one, [SPACE.largest], ground.validation()).loss
        for one in (earlier, *family.supernets)
    ]
    assert float(loss[0]) != float(loss[1])
    mean = family.evaluated([SPACE.largest], ground.validation())[1]
    assert mean == pytest.approx(float(sum(loss)) / 2)


def test_a_stage_of_fewer_widths_has_a_copy_of_each(tmp_path):
    space = spaces.get(
        "resnet", spaces.InputShape(1, 8, 2), channels=2, depths=(1, 1), ratios=(0.6, 0.8, 1)
    )
    widths = {c.name: c.options for c in space.choices if c.name.startswith("width")}
    assert widths == {"width1": ("1", "2"), "width2": ("2", "3", "4")}
    ground = Study(space, DATA, 14 * STEP, held_out=24, settings=study().settings)
    family = develop(recipes.get("gradual", space), ground, 0, folder=tmp_path / "work")
    found = []
    for number in range(3):
        state, _ = load_checkpoint(tmp_path / "work" / f"stage-{number}.safetensors")
        found.append(copies(state.weights))
    assert [one["stage1"] for one in found] == [1, 2, 2]
    assert [one["stage2"] for one in found] == [1, 2, 3]
    family.save(tmp_path, {"width": 1.0})
    read = load_family(tmp_path, space)
    assert read.supernets[0].groups == space.width_groups(3)
    mine, theirs = weights(family), weights(read)
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[n], theirs[n]) for n in mine)


def test_calibration_batches_are_as_many_as_there_are():
    ground = study()
    there = len(DATA.train) - 24
    found = ground.calibration(0, 1000)
    assert len(found) == there // 8 and all(len(labels) == 8 for _, labels in found)
    message = f"study: a batch needs {there + 1} training images, got {there}"
    with pytest.raises(InputError, match=message):
        ground.calibration(0, 1, there + 1)


class Killed(Exception):
    """A run was interrupted."""


def test_a_killed_run_goes_on_to_the_same_end(tmp_path, monkeypatch):
    monkeypatch.setattr("sigeo.supernet.loop._SECONDS_BETWEEN_SAVES", -1.0)
    undisturbed = develop(made(), study(), 0)

    def killed_after(images):
        def progress(done, total):
            assert total == 40 * STEP
            if done > images:
                raise Killed

        return progress

    for steps in (3, 20, 30, 37):  # in the first, second and third training
        with pytest.raises(Killed):
            develop(made(), study(), 0, folder=tmp_path, progress=killed_after(steps * STEP))
    for _ in range(2):  # goes on; then finds all of it done
        assert_same(develop(made(), study(), 0, folder=tmp_path), undisturbed)
    with pytest.raises(InputError, match="made with other settings"):
        develop(made(dropout=0.1), study(), 0, folder=tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"groups": 4}, "groups must be from 1 to 3, the most widths of a stage, got 4"),
        ({"groups": 0}, "groups must be from 1 to 3"),
        ({"groups": 1.5}, "groups must be a whole number or None, got 1.5"),
        ({"rates": []}, "rates must be one number or more above 0, got"),
        ({"rates": [1, 0]}, "rates must be one number or more above 0, got"),
        ({"rise": 1.5}, "rise must be from 0 to below 1, got 1.5"),
        ({"dropout": 1.0}, "dropout must be from 0 to below 1, got 1.0"),
        ({"drop_path": -0.1}, "drop_path must be from 0 to below 1, got -0.1"),
        ({"calibration": -1}, "calibration must be at least 0, got -1"),
        ({"count": -1}, "count must be at least 0, got -1"),
        ({"label_smoothing": 1.5}, "label_smoothing: must be from 0 to 1, got 1.5"),
        ({"after": -1}, "lengths of training must be at least 0"),
        ({"depth": 3}, "has no option depth"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        recipes.get("gradual", SPACE, **options)


def test_other_spaces_and_small_budgets_are_refused():
    other = spaces.get("mlp", spaces.InputShape(1, 8, 2))
    with pytest.raises(InputError, match="divides the stages of the space resnet .*, got mlp"):
        recipes.get("gradual", other)
    with pytest.raises(InputError, match="needs a budget of at least"):
        develop(made(), study(5 * STEP), 0)
    one = recipes.get("gradual", SPACE, groups=1)
    assert one.before == () and one.after == 100 and one.nodes(SPACE) == (1,)
    assert recipes.get("gradual", SPACE).nodes(SPACE) == (1, 1, 1)
    assert recipes.get("gradual", SPACE).units(SPACE) == 140


def test_a_comparison_evaluates_it_on_recalibrated_norms(tmp_path):
    archs = [SPACE.largest, SPACE.smallest, SPACE.at(77)]
    entrant = comparison.Entrant.parse("gradual:calibration=2,groups=2")
    ground = study(30 * STEP)
    store = tmp_path / "run.sqlite"
    outcome = comparison.run(ground, entrant, 0, archs, [], store, tmp_path / "work")
    family = develop(made(groups=2), ground, 0)
    _, loss = family.evaluated(archs, ground.validation(), ground.calibration(0, 2))
    assert outcome.rankings["-loss"] == pytest.approx(-loss)
    _, by_batch = family.evaluated(archs, ground.validation())
    assert by_batch != pytest.approx(loss)
    assert outcome.plan.sizes == (SPACE.size,) and outcome.processed == 30 * STEP
