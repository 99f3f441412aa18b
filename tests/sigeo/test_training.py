"""The training loop: settings, budgets, objectives of one's own."""

from __future__ import annotations

import itertools
import json
import math

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from sigeo import InputError
from sigeo.supernet import (
    Budget,
    CrossEntropy,
    Fair,
    Trainer,
    Training,
    Uniform,
    WarmUp,
    load_checkpoint,
    train_supernet,
    warm_up_alone,
    warm_up_supernet,
)
from sigeo.supernet.checkpoint import difference
from tests.sigeo.training import (
    IMAGES,
    LABELS,
    SPACE,
    assert_resumes,
    assert_same,
    source,
    trained,
    training,
)


def test_settings_that_are_as_ever_are_described_as_ever():
    assert WarmUp(40, 2).describe() == {
        "images": 40,
        "epochs": 2,
        "batch_size": 64,
        "lr": 0.025,
        "schedule": "constant",
        "momentum": 0.9,
        "weight_decay": 5e-4,
        "clip": 5.0,
        "shuffle": True,
        "limit": None,
        "steps": 2,
    }
    described = WarmUp(40, paths=2, floor=0.0, clip_by="value").describe()
    assert (described["paths"], described["average"]) == (2, False)
    assert (described["floor"], described["clip_by"]) == (0.0, "value")
    assert "autocast" not in described and json.dumps(described)


def test_schedules_rise_and_fall():
    config = training(lr=0.1, schedule="linear", floor=0.0, rise=2, epochs=4)
    rates = [config.lr_at(step) for step in range(config.steps + 1)]
    assert config.steps == 12 and rates[:3] == pytest.approx([0.05, 0.1, 0.1])
    falls = [a - b for a, b in itertools.pairwise(rates[2:])]
    assert falls == pytest.approx([0.01] * 10) and rates[-1] == pytest.approx(0.0)
    steps = training(lr=0.1, schedule="steps", epochs=4, milestones=(0.5, 0.75))
    falling = [steps.lr_at(step) for step in range(12)]
    assert falling == pytest.approx([0.1] * 6 + [0.01] * 3 + [0.001] * 3)
    assert json.dumps(steps.describe()["milestones"]) == "[0.5, 0.75]"
    cosine = training(lr=0.1, schedule="cosine", floor=0.5)
    assert cosine.lr_at(cosine.steps) == pytest.approx(0.05)
    assert cosine.lr_at(cosine.steps // 2) == pytest.approx(0.075)


@pytest.mark.parametrize("images", [40, 33, 34, 16, 1])
def test_the_number_of_images_of_some_steps(images):
    config = training(images=images, epochs=3)
    order = torch.arange(images)
    taken = 0
    for step in range(config.steps):
        assert config.images_of(step) == taken
        taken += len(config.indices(order, step, 0))
    assert config.images_of(config.steps) == taken


def test_a_budget_of_processed_images_pays_for_steps():
    config = Training.of_budget(1000, 40, paths=5, batch_size=16)
    assert config.steps == 1000 // 80
    with pytest.raises(InputError, match="one step of 5 paths on 16 images, got 79"):
        Training.of_budget(79, 40, paths=5, batch_size=16)
    assert isinstance(WarmUp.of_budget(640, 40, paths=1), WarmUp)
    several = WarmUp.of_budget(1000, 40, paths=5, batch_size=16, average=True)
    assert (several.steps, several.paths) == (12, 5)
    fair = WarmUp.of_budget(1000, 40, paths=5, batch_size=16, sampler="fair")
    assert (fair.steps, fair.paths) == (12, 1)
    with pytest.raises(InputError, match="one step of 0 paths on 16 images, got 79"):
        WarmUp.of_budget(79, 40, paths=0, batch_size=16, sampler="fair")


def test_averaged_gradients_are_a_setting_of_every_sampler_of_several_paths():
    fair = {"images": 32, "batch_size": 16, "sampler": "fair"}
    described = [WarmUp(**fair, average=average).describe() for average in (False, True)]
    assert "average" not in described[0] and described[1]["average"] is True
    weights = []
    for average in (False, True):
        net = SPACE.supernet(seed=3)
        warm_up_supernet(net, SPACE, WarmUp(**fair, average=average), source(), settings={})
        weights.append(net.state_dict())
    assert not torch.equal(*(w["head.linear.weight"] for w in weights))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"average": True}, "average is of cross_entropy and several paths a step, got objective"),
        ({"average": True, "paths": 2, "objective": "in_place"}, "got objective in_place and samp"),
        ({"average": True, "sampler": "greedy"}, "cross_entropy and sampler greedy"),
        ({"objective": "in_place"}, "in_place needs several paths a step, .*; uniform takes one"),
        ({"objective": "in_place", "sampler": "greedy"}, "greedy takes one"),
        ({"label_smoothing": 1.5}, "label_smoothing: must be from 0 to 1, got 1.5"),
    ],
)
def test_settings_of_a_warm_up_without_effect_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        WarmUp(40, **changes)


def test_bad_numbers():
    for changes, message in (
        ({"floor": 1.5}, "training: floor must be from 0 to 1, got 1.5"),
        ({"milestones": (0.8, 0.6)}, "milestones must be ascending shares from 0 to 1"),
        ({"milestones": (0.8, 1.6)}, "milestones must be ascending shares .*, got .0.8, 1.6."),
        ({"milestones": (math.nan,)}, "milestones must be ascending shares"),
        ({"rise": -1}, "rise must be a whole number of at least 0, got -1"),
        ({"batch_size": 16.5}, "batch_size must be a whole number, got 16.5"),
        ({"limit": -1}, "limit must be a whole number of at least 0, got -1"),
        ({"momentum": -1.0}, "momentum must be from 0 to below 1, got -1.0"),
        ({"momentum": math.nan}, "momentum must be from 0 to below 1, got nan"),
        ({"weight_decay": -0.1}, "weight_decay must be from 0 to 1e\\+38, got -0.1"),
        ({"clip": 0.0}, "clip must be above 0, or none, got 0.0"),
        ({"clip": math.nan}, "clip must be above 0, or none, got nan"),
        ({"scales": (("stem",),)}, "scales must be pairs of a prefix and a factor of at least 0"),
        ({"scales": ((1, 2.0),)}, "scales must be pairs"),
        ({"scales": (("stem", math.nan),)}, "scales must be pairs"),
        (
            {"schedule": "sawtooth"},
            "schedule must be one of constant, cosine, linear, steps, got 'sawtooth'",
        ),
        ({"clip_by": "hand"}, "clip_by must be one of norm, value, got 'hand'"),
        ({"autocast": "float16"}, "autocast must be bfloat16 or None, got 'float16'"),
    ):
        with pytest.raises(InputError, match=message):
            training(**changes)


def test_a_training_on_more_images_than_there_are_is_refused():
    with pytest.raises(InputError, match="training: takes 45 images, got a source of 44; of_steps"):
        trained(Uniform(SPACE, seed=3), config=training(images=45))
    with pytest.raises(InputError, match="warm-up: takes 64 images, got a source of 44"):
        warm_up_alone(torch.nn.Linear(8, 4), WarmUp(64), source())


def test_a_warm_up_is_a_training_of_uniform_paths():
    config = WarmUp(40, 2, batch_size=16, lr=0.1)
    warmed = SPACE.supernet(seed=3)
    warm_up_supernet(warmed, SPACE, config, source(), settings={})
    general, budget = trained(Uniform(SPACE, seed=3))
    assert_same(warmed, general)
    assert budget == Budget(trained=80, evaluated=0)


def test_budgets_count_every_path():
    _, budget = trained(Fair(SPACE, seed=0))
    assert budget == Budget(trained=5 * 80)


def test_a_step_by_hand():
    """Cross-entropy with smoothing, summed over paths, clipped by value, no decay of norms."""
    config = training(clip=0.01, clip_by="value", decay_norms=False, momentum=0.0, weight_decay=0.3)
    paths = Uniform(SPACE, seed=3, paths=2).paths(0)
    supernet = SPACE.supernet(seed=3)
    images, labels = source().take(config, 0)
    for arch in paths:
        loss = nn.functional.cross_entropy(supernet(images, arch), labels, label_smoothing=0.2)
        loss.backward()
    expected = {}
    for name, p in supernet.named_parameters():
        if p.grad is None:
            expected[name] = p.detach().clone()
        else:
            decay = 0.3 * p.detach() if p.dim() > 1 else 0.0
            expected[name] = p.detach() - 0.1 * (p.grad.clamp(-0.01, 0.01) + decay)
    found, _ = trained(
        Uniform(SPACE, seed=3, paths=2),
        CrossEntropy(label_smoothing=0.2),
        config=training(
            limit=1, clip=0.01, clip_by="value", decay_norms=False, momentum=0.0, weight_decay=0.3
        ),
    )
    for name, p in found.named_parameters():
        torch.testing.assert_close(p.detach(), expected[name], rtol=1e-5, atol=1e-6)


def test_an_objective_may_be_a_plain_function(tmp_path):
    seen = []

    def halved(supernet, paths, batch, step):
        loss = nn.functional.cross_entropy(supernet(batch[0], paths[0]), batch[1]) / 2
        loss.backward()
        seen.append((step, len(paths), len(batch[0])))
        return loss.detach()

    path = tmp_path / "c"
    trained(Uniform(SPACE, seed=3), halved, path=path)
    assert [step for step, *_ in seen] == list(range(6)) and seen[2] == (2, 1, 8)
    settings = load_checkpoint(path)[1]
    assert "objective" not in settings and settings["made"] == "here"
    assert settings["sampler"] == Uniform(SPACE, seed=3).describe()
    assert settings["training"] == training().describe()


def test_settings_are_compared_as_json_holds_them(tmp_path):
    given = {"sizes": (1, 2)}
    for _ in range(2):
        train_supernet(
            SPACE.supernet(seed=3),
            training(scales=(("stem", 0.5),)),
            source(),
            Uniform(SPACE, seed=3),
            settings=given,
            checkpoint=tmp_path / "c",
        )
    assert load_checkpoint(tmp_path / "c")[1]["sizes"] == [1, 2]
    with pytest.raises(InputError, match="settings: must be what JSON can hold"):
        train_supernet(
            SPACE.supernet(seed=3),
            training(),
            source(),
            Uniform(SPACE, seed=3),
            settings={"a": SPACE},
        )


def test_another_sampler_does_not_go_on_from_a_checkpoint(tmp_path):
    trained(Uniform(SPACE, seed=3), path=tmp_path / "c")
    message = r"than this training \(sampler.name: there \"uniform\", here \"fair\"\); choose"
    with pytest.raises(InputError, match=message):
        trained(Fair(SPACE, seed=3), path=tmp_path / "c")


def test_another_network_does_not_go_on_from_a_checkpoint(tmp_path):
    trained(Uniform(SPACE, seed=3), path=tmp_path / "c")
    with pytest.raises(InputError, match="does not fit the networks"):
        trained(
            Uniform(SPACE, seed=3),
            path=tmp_path / "c",
            made=lambda: SPACE.supernet(seed=3, affine=False),
        )


@pytest.mark.parametrize(
    ("found", "given", "said"),
    [
        ({"a": 1}, {"a": 1}, ""),
        ({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}}, "a.c: there 2, here 3"),
        ({"a": None}, {}, "a: there null, here nothing"),
        ({}, {"a": {"b": 1}}, 'a: there nothing, here {"b": 1}'),
        ({"a": [0] * 99}, {"a": {}}, f"a: there [{'0, ' * 19}0,..., here {{}}"),
    ],
)
def test_the_setting_that_differs_is_named(found, given, said):
    assert difference(found, given) == said


def test_a_warm_up_kept_before_budgets_were_counted_goes_on(tmp_path, monkeypatch):
    path = tmp_path / "c"
    config = WarmUp(40, 2, batch_size=16, lr=0.1, paths=2)
    whole = SPACE.supernet(seed=3)
    warm_up_supernet(whole, SPACE, config, source(), settings={"a": 1})
    monkeypatch.setattr("sigeo.supernet.loop._SECONDS_BETWEEN_SAVES", -1.0)

    def stop(step, steps):
        if step == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        warm_up_supernet(
            SPACE.supernet(seed=3),
            SPACE,
            config,
            source(),
            settings={"a": 1},
            checkpoint=path,
            progress=stop,
        )
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    del metadata["progress"]
    save_file(tensors, path, metadata)
    resumed = SPACE.supernet(seed=3)
    warm_up_supernet(resumed, SPACE, config, source(), settings={"a": 1}, checkpoint=path)
    assert_same(resumed, whole)
    assert load_checkpoint(path)[0].progress["budget"] == {"trained": 160, "evaluated": 0}


def test_lower_precision_trains_and_stays_close(tmp_path, monkeypatch):
    def arguments(**changes):
        config = training(autocast="bfloat16", **changes)
        return {"sampler": Uniform(SPACE, seed=3, paths=2), "config": config}

    start = SPACE.supernet(seed=3).stem.conv.weight
    low, _ = trained(**arguments(limit=1))
    full, _ = trained(Uniform(SPACE, seed=3, paths=2), config=training(limit=1))
    moved = [(net.stem.conv.weight - start).detach().flatten() for net in (low, full)]
    assert all(p.dtype == torch.float32 for p in low.parameters())
    assert not torch.equal(*moved) and torch.cosine_similarity(*moved, dim=0) > 0.98
    assert_resumes(arguments, tmp_path, monkeypatch)


def test_the_trainer_clips_norms_of_all_gradients_together():
    module = nn.Linear(3, 2)
    before = module.weight.detach().clone(), module.bias.detach().clone()

    def backward(batch, step):
        loss = 100 * module(batch[0]).sum()
        loss.backward()
        return loss.detach()

    trainer = Trainer(module, backward, training(lr=1.0, momentum=0.0, weight_decay=0.0, clip=0.5))
    trainer.take((torch.ones(4, 3), LABELS[:4]))
    moved = [a - b.detach() for a, b in zip(before, (module.weight, module.bias), strict=True)]
    assert torch.cat([m.flatten() for m in moved]).norm() == pytest.approx(0.5, rel=1e-4)


def test_a_source_shows_no_values():
    assert repr(source()) == "Source(44 images, seed=3)"


def test_images_are_changed_before_the_step():
    class Shift:
        def __call__(self, images, step, view=0):
            return images + step

        def describe(self):
            return {"name": "shift"}

    seen = []

    def look(supernet, paths, batch, step):
        seen.append(batch[0])
        return CrossEntropy()(supernet, paths, batch, step)

    config = training(epochs=1)
    train_supernet(
        SPACE.supernet(seed=3),
        config,
        source(augment=Shift()),
        Uniform(SPACE, seed=3),
        look,
        settings={},
    )
    places = config.indices(source().order, 1, 3)
    assert torch.equal(seen[1], IMAGES[places] + 1)


def test_modules_that_draw_from_torchs_generator_follow_from_the_step(tmp_path, monkeypatch):
    def dropped(supernet, paths, batch, step):
        loss = nn.functional.cross_entropy(
            nn.functional.dropout(supernet(batch[0], paths[0]), 0.5), batch[1]
        )
        loss.backward()
        return loss.detach()

    def make():
        return {"sampler": Uniform(SPACE, seed=3), "objective": dropped}

    supernet = SPACE.supernet(seed=3)
    state = torch.get_rng_state()
    trained(**make(), made=lambda: supernet)
    assert torch.equal(state, torch.get_rng_state())
    assert_resumes(make, tmp_path, monkeypatch)
