"""Warm-up: nested, resumable, and checkpoints that are whole or not there."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from sigeo import InputError, spaces
from sigeo.supernet import (
    Source,
    Trainer,
    Uniform,
    WarmUp,
    load_checkpoint,
    save_checkpoint,
    warm_up_alone,
    warm_up_supernet,
)

SHAPE = spaces.InputShape(channels=1, size=8, classes=4)
IMAGES = torch.randn(40, 1, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(40) % 4
SETTINGS = {"made": "here", "seed": 3}


def space():
    return spaces.get("nasbench201", SHAPE, channels=2, cells=1)


def source():
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    return Source(order, lambda places: (IMAGES[places], LABELS[places]), seed=3)


def config(**changes):
    return WarmUp(**{"images": 40, "epochs": 2, "batch_size": 8, **changes})


def warmed(checkpoint=None, progress=None, **changes):
    supernet = space().supernet(seed=3)
    warm_up_supernet(
        supernet,
        space(),
        config(**changes),
        source(),
        settings=SETTINGS,
        checkpoint=checkpoint,
        progress=progress,
    )
    return supernet.state_dict()


def assert_same(a, b):
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize(
    ("images", "batch_size", "epochs", "steps"),
    [(40, 8, 2, 10), (41, 8, 1, 5), (42, 8, 1, 6), (7, 8, 3, 3), (1, 8, 1, 0), (0, 8, 1, 0)],
)
def test_number_of_steps(images, batch_size, epochs, steps):
    assert WarmUp(images, epochs, batch_size=batch_size).steps == steps


def test_every_image_once_a_pass_and_a_shorter_warm_up_is_the_beginning():
    order, long = source().order, config()
    seen = torch.cat([long.indices(order, step, 3) for step in range(5)])
    assert sorted(seen.tolist()) == list(range(40)) and torch.equal(seen, order)
    second = torch.cat([long.indices(order, step, 3) for step in range(5, 10)])
    assert sorted(second.tolist()) == list(range(40)) and not torch.equal(second, order)
    short = config(images=16, epochs=1)
    assert all(torch.equal(short.indices(order, s, 3), long.indices(order, s, 3)) for s in range(2))
    unshuffled = config(shuffle=False)
    assert torch.equal(unshuffled.indices(order, 5, 3), unshuffled.indices(order, 0, 3))


def test_schedules():
    assert config(lr=0.1).lr_at(7) == 0.1
    cosine = config(lr=0.1, schedule="cosine")
    rates = [cosine.lr_at(step) for step in range(cosine.steps + 1)]
    assert rates[0] == 0.1 and rates == sorted(rates, reverse=True)
    assert rates[-1] == pytest.approx(0.004)


def test_training_moves_the_sampled_paths_and_lowers_the_loss():
    before = space().supernet(seed=3).state_dict()
    after = warmed(epochs=1)
    moved = {k for k in before if not torch.equal(before[k], after[k])}
    assert "stem.conv.weight" in moved
    used = set()
    for step in range(5):
        (cell,) = Uniform(space(), seed=3).paths(step)
        assert space().connected(cell)
        used |= {f"{edge}_{o}" for edge, o in enumerate(space().pruned(cell).operations)}
    slots = {k.split("slots.")[1].split(".")[0] for k in moved if "slots." in k}
    assert slots and slots <= used


def test_warming_one_network_up_alone():
    network = space().build(space().at(9558), seed=0)
    warm_up_alone(network, WarmUp.published(40, 6), source())
    assert network.training
    loss = torch.nn.functional.cross_entropy(network(IMAGES), LABELS)
    start = space().build(space().at(9558), seed=0).train()
    assert loss < torch.nn.functional.cross_entropy(start(IMAGES), LABELS)


def test_a_stopped_warm_up_goes_on_to_the_same_weights(tmp_path, monkeypatch):
    undisturbed = warmed()
    path = tmp_path / "c.safetensors"
    monkeypatch.setattr("sigeo.supernet.loop._SECONDS_BETWEEN_SAVES", 0.0)

    def stop(done, total):
        if done == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        warmed(path, stop)
    state, settings = load_checkpoint(path)
    assert state.step == 6 and settings == SETTINGS and state.momentum
    steps = []
    assert_same(warmed(path, lambda done, total: steps.append(done)), undisturbed)
    assert steps == [7, 8, 9, 10]
    assert_same(
        warmed(path, lambda *_: pytest.fail("a finished warm-up takes no step")), undisturbed
    )


def test_checkpoints_that_do_not_fit(tmp_path):
    path = tmp_path / "c.safetensors"
    with pytest.raises(InputError, match="found no file"):
        load_checkpoint(path)
    warmed(path)
    with pytest.raises(InputError, match="made with other settings"):
        warm_up_supernet(
            space().supernet(), space(), config(), source(), settings={}, checkpoint=path
        )
    whole = path.read_bytes()
    for length in (0, 7, 200, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match="damaged or truncated"):
            load_checkpoint(path)
    save_file({"x": torch.ones(1)}, path)
    with pytest.raises(InputError, match="expected format sigeo-supernet-1, got None"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"step": "x"},
        {"settings": "{"},
        {"settings": "[1]"},
        {"settings": "{}", "progress": "3"},
        {"settings": "{}", "tensor": "kept/x/weight"},
        {"settings": "{}", "tensor": "momentul/weight"},
    ],
)
def test_damaged_metadata_is_one_line(wrong, tmp_path):
    path = tmp_path / "c.safetensors"
    metadata = {"format": "sigeo-supernet-1", "step": "1", **wrong}
    save_file({metadata.pop("tensor", "weights/w"): torch.ones(1)}, path, metadata)
    with pytest.raises(InputError, match="^checkpoint .*: damaged metadata"):
        load_checkpoint(path)


def test_a_disk_that_takes_no_more_is_one_clear_line(tmp_path):
    resource = pytest.importorskip("resource")
    trainer = Trainer(torch.nn.Linear(2, 2), lambda batch, _: batch[0], config())
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        with pytest.raises(InputError, match="checkpoint .*: File too large"):
            save_checkpoint(tmp_path / "c.safetensors", trainer.state(), SETTINGS)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []


def test_bad_numbers():
    for changes, message in (
        ({"epochs": 0}, "epochs must be a whole number of at least 1, got 0"),
        ({"batch_size": 1}, "batch_size must be a whole number of at least 2, got 1"),
        ({"images": -1}, "images must be a whole number of at least 0, got -1"),
        ({"lr": 0.0}, r"lr must be above 0 and at most 1e\+38, got 0.0"),
        ({"lr": float("nan")}, r"lr must be above 0 and at most 1e\+38, got nan"),
    ):
        with pytest.raises(InputError, match=message):
            config(**changes)


@pytest.mark.parametrize(("steps", "epochs", "images"), [(3, 1, 24), (5, 1, 40), (11, 3, 40)])
def test_a_warm_up_of_a_number_of_steps(steps, epochs, images):
    config = WarmUp.of_steps(steps, 40, batch_size=8, lr=0.1)
    assert (config.steps, config.epochs, config.images) == (steps, epochs, images)
    assert config.lr == 0.1 and config.describe()["steps"] == steps
    taken = [config.indices(source().order, step, 3) for step in range(steps)]
    assert all(len(places) == 8 for places in taken)


def test_a_warm_up_of_no_steps_is_refused():
    with pytest.raises(InputError, match="steps must be at least 1 on at least 2 images"):
        WarmUp.of_steps(0, 40)


def test_several_paths_a_step_train_all_of_them():
    made = space().supernet(seed=3)
    before = {name: value.clone() for name, value in made.state_dict().items()}
    warm_up_supernet(made, space(), config(paths=3, epochs=1, lr=0.1), source(), settings={})
    moved = {n for n, value in made.state_dict().items() if not torch.equal(value, before[n])}
    sampler = Uniform(space(), seed=source().seed, paths=3)
    paths = [path for step in range(5) for path in sampler.paths(step)]
    assert len(set(paths)) > 5, "the paths of a step differ"
    used = {
        name
        for arch in paths
        for name in made.stack([arch]).weights
        if name.endswith("conv.weight")
    }
    assert {name for name in moved if name.endswith("conv.weight")} == used


def test_images_and_losses_of_a_warm_up_are_as_asked_for():
    """The same as a training with these parts."""
    from sigeo.data import Augmentation
    from sigeo.supernet import CrossEntropy, Training, Uniform, train_supernet

    found = warmed(epochs=1, augment="crop", label_smoothing=0.2)
    expected = space().supernet(seed=3)
    given = source()
    moved = Source(given.order, given.batch, 3, Augmentation(seed=3, flip=False, padding=1))
    plain = Training(images=40, batch_size=8)
    smoothed = CrossEntropy(label_smoothing=0.2)
    train_supernet(expected, plain, moved, Uniform(space(), seed=3), smoothed, settings={})
    assert_same(found, expected.state_dict())
    described = config(
        augment="crop", label_smoothing=0.2, objective="in_place", paths=2
    ).describe()
    assert [described[n] for n in ("augment", "label_smoothing", "objective")] == [
        "crop",
        0.2,
        "in_place",
    ]
