"""Weights at the ends of a training's last passes, and evaluations averaged over them."""

from __future__ import annotations

import pytest
import torch

from sigeo import InputError, proxies, score
from sigeo.data import ImageData, Split
from sigeo.scoring.averages import mean_record
from sigeo.scoring.networks import Networks, Protocol
from sigeo.scoring.shared_weights import load_shared_weights
from sigeo.store import Record
from sigeo.supernet import (
    CrossEntropy,
    MeanTeacher,
    TrainingState,
    Uniform,
    WarmUp,
    averaged,
    evaluate,
    load_checkpoint,
    save_checkpoint,
    train_supernet,
    versions,
)
from sigeo.supernet.samplers.named import named
from sigeo.supernet.trainer import Trainer
from tests.sigeo.training import (
    IMAGES,
    LABELS,
    SPACE,
    Stopped,
    assert_same,
    batches,
    source,
    trained,
    training,
)

ARCHS = [SPACE.at(index) for index in (9558, 1462, 6111)]


NAME = next(name for name, _ in SPACE.supernet(seed=0).named_parameters())


class InPlaceTeacher(CrossEntropy):
    """Keeps weights beside the trained ones."""

    def start(self, supernet):
        self.teacher = MeanTeacher(supernet)

    def memory(self):
        return self.teacher.memory()

    def resume(self, memory):
        self.teacher.resume(memory)


class Ending(Uniform):
    """Uniform paths of a training that ends early."""

    taken = 0

    def __init__(self, end):
        super().__init__(SPACE, seed=3)
        self.end = end

    @property
    def done(self):
        return self.taken >= self.end

    def paths(self, step):
        self.taken = step + 1
        return super().paths(step)


def kept_by(config, *, path=None, stop=None, end=1000):
    """A training's supernet and the weights that it keeps."""
    supernet, kept = SPACE.supernet(seed=3), []

    def progress(step, steps):
        if step == stop:
            raise Stopped

    train_supernet(
        supernet,
        config,
        source(),
        Ending(end),
        settings={},
        checkpoint=path,
        progress=progress,
        kept=kept,
    )
    return supernet, kept


def test_weights_are_those_of_shorter_trainings():
    supernet, kept = kept_by(training(epochs=4, keep=3))
    assert len(kept) == 2
    for epochs, version in zip((2, 3, 4), versions(supernet, kept), strict=True):
        assert_same(version, trained(Uniform(SPACE, seed=3), config=training(epochs=epochs))[0])
        assert version is supernet or all(p.grad is None for p in version.parameters())


@pytest.mark.parametrize(
    ("changes", "end", "ends"),
    [
        ({"keep": 2}, 12, [9]),
        ({"keep": 4}, 12, [3, 6, 9]),
        ({"keep": 3, "limit": 11}, 11, [6, 9]),
        ({"keep": 3, "limit": 9}, 9, [3, 6]),
        ({"keep": 1}, 12, []),
        ({"keep": 3}, 9, [3, 6]),
        ({"keep": 3}, 7, [3, 6]),
        ({"keep": 3}, 6, [3]),
        ({"keep": 3}, 2, []),
    ],
)
def test_the_end_of_a_training_is_that_of_its_last_pass(changes, end, ends):
    """Also where the sampler ends it."""
    config = training(epochs=4, **changes)
    assert config.steps_per_epoch == 3
    supernet, kept = kept_by(config, end=end)
    assert len(kept) == len(ends)
    for steps, version in zip([*ends, end], versions(supernet, kept), strict=True):
        assert_same(version, kept_by(training(epochs=4, limit=steps))[0])


def test_a_killed_training_keeps_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr("sigeo.supernet.loop._SECONDS_BETWEEN_SAVES", -1.0)
    config = training(epochs=3, keep=3)
    supernet, kept = kept_by(config)
    for stop in (5, 8):  # between the ends of passes
        path = tmp_path / f"{stop}.safetensors"
        with pytest.raises(Stopped):
            kept_by(config, path=path, stop=stop)
        for _ in range(2):  # the second time it is at its end
            resumed, again = kept_by(config, path=path)
            assert_same(resumed, supernet)
            assert len(again) == len(kept) == 2
            for mine, theirs in zip(again, kept, strict=True):
                assert mine.keys() == theirs.keys()
                assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_more_passes_than_there_are_are_refused():
    with pytest.raises(
        InputError, match="keep must be at most 2, its passes over 40 images, got 3"
    ):
        training(epochs=2, keep=3)
    with pytest.raises(InputError, match="keep must be a whole number of at least 1, got 0"):
        training(keep=0)
    with pytest.raises(InputError, match="keep must be at most 2, its passes over 8 images, got 3"):
        WarmUp.of_steps(2, 8, batch_size=8, keep=3)
    assert WarmUp.of_steps(3, 8, batch_size=8, keep=3).passes == 3
    assert WarmUp(0, keep=3).keep == 3  # settings of trainings to be made


def test_settings_of_one_checkpoint_are_as_ever():
    assert "keep" not in training().describe() and training(keep=2).describe()["keep"] == 2


def test_evaluations_are_averaged():
    supernet, kept = kept_by(training(epochs=3, keep=3))
    found = [evaluate(version, ARCHS, batches()) for version in versions(supernet, kept)]
    mean = averaged(found)
    torch.testing.assert_close(mean.loss, sum(one.loss for one in found) / 3)
    torch.testing.assert_close(mean.accuracy, sum(one.accuracy for one in found) / 3)
    assert mean.images == 3 * 3 * 16
    assert (found[0].loss != found[2].loss).all()


def data():
    pixels = ((IMAGES - IMAGES.min()) * 40).to(torch.uint8)
    return ImageData("noise", Split(pixels, LABELS), Split(pixels[:8], LABELS[:8]), classes=4)


def protocol(**changes):
    warmup = WarmUp(40, 3, batch_size=16, lr=0.1, keep=3)
    given = {"init": "supernet", "warmup": warmup, "batches": 2, "batch_size": 8, **changes}
    return Protocol((proxies.get("zico"), proxies.get("sigeo"), proxies.get("params")), **given)


def test_scores_are_means_over_the_checkpoints(tmp_path):
    networks = Networks(SPACE, data(), protocol(), folder=tmp_path)
    path = networks.checkpoint_path(tmp_path)
    assert networks.checkpoints == 3
    assert len(load_checkpoint(path)[0].kept) == 2
    shared = load_shared_weights(path, SPACE, 0)
    assert len(shared.identity["kept"]) == 2
    loaded = Networks(SPACE, data(), protocol(warmup=None), shared=shared)
    for arch in ARCHS:
        alone = [
            score(version.subnet(arch), networks.batches, ["zico", "sigeo"])
            for version in (*shared.earlier, shared.supernet)
        ]
        for ground in (networks, loaded):
            found = ground.score(arch, ground.protocol.proxies)
            for name in ("zico", "sigeo"):
                expected = sum(scores[name].value for scores in alone) / 3
                assert found[name].value == pytest.approx(expected, rel=1e-5)
            terms = [scores["sigeo"].terms["fr"] for scores in alone]
            assert found["sigeo"].terms["fr"] == pytest.approx(sum(terms) / 3, rel=1e-5)
            assert found["params"].value == SPACE.cost(arch).parameters
    many = loaded.score_many(ARCHS, [proxies.get("grad_norm")])
    one_by_one = [loaded.score(arch, [proxies.get("grad_norm")]) for arch in ARCHS]
    for together, alone in zip(many, one_by_one, strict=True):
        assert together["grad_norm"].value == pytest.approx(alone["grad_norm"].value, rel=1e-3)


def _without(name):
    return lambda state, settings: settings.pop(name)


def _steps(value):
    return lambda state, settings: settings.update(warmup={"steps": value})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_without("data"), "damaged metadata .KeyError 'data'"),
        (_steps("many"), "damaged metadata .ValueError"),
        (lambda state, settings: settings.update(warmup=7), "damaged metadata .TypeError"),
        (lambda state, settings: settings.update(supernet=7), "damaged metadata .TypeError"),
        (lambda state, settings: state.kept[0].popitem(), "does not fit the networks .*Missing"),
    ],
)
def test_damaged_weights_are_refused(damage, message, tmp_path):
    networks = Networks(SPACE, data(), protocol(), folder=tmp_path)
    state, settings = load_checkpoint(networks.checkpoint_path(tmp_path))
    damage(state, settings)
    save_checkpoint(tmp_path / "damaged.safetensors", state, settings)
    with pytest.raises(InputError, match=message) as refused:
        load_shared_weights(tmp_path / "damaged.safetensors", SPACE, 0)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda state: state.momentum.update(w=torch.ones(1)), "momentum of w .1., which is no"),
        (lambda state: state.momentum.update({NAME: torch.ones(1)}), f"momentum of {NAME} .1., "),
        (lambda state: state.memory.update(w=torch.ones(1)), "RuntimeError Error.s. in loading"),
        (lambda state: state.progress.update(sampler={}), "KeyError 'pool'"),
        (
            lambda state: state.progress.update(sampler={"pool": [[1, 2.0]]}),
            "InputError space: text must be a text, got 1",
        ),
        (lambda state: state.progress.update(budget={"x": 1}), "TypeError .*argument 'x'"),
    ],
)
def test_a_training_does_not_go_on_from_what_is_damaged(damage, message, tmp_path):
    path = tmp_path / "c.safetensors"

    def again(stop=None):
        sampler = named(
            "greedy", SPACE, seed=3, steps=6, score=lambda archs: torch.ones(len(archs))
        )
        return trained(sampler, InPlaceTeacher(), stop=stop, path=path)

    again()
    state, settings = load_checkpoint(path)
    damage(state)
    save_checkpoint(path, state, settings)
    with pytest.raises(InputError, match=rf"c.safetensors: damaged, this training .*{message}"):
        again()


def test_a_mean_of_what_is_not_finite_is_not():
    records = [
        Record(1.0, {"a": 2.0, "b": None}, ("x",), 0.5),
        Record(None, {"a": 4.0}, ("x", "y")),
    ]
    assert mean_record(records) == Record(None, {"a": 3.0, "b": None}, ("x", "y"), 0.5)


def test_candidates_keep_nothing():
    with pytest.raises(InputError, match="keep must be 1 for networks warmed up alone, got 3"):
        Networks(SPACE, data(), protocol(init="candidate"))
    alone = WarmUp(40, 3, batch_size=16, lr=0.1)
    assert Networks(SPACE, data(), protocol(init="candidate", warmup=alone)).checkpoints == 1


def test_equal_checkpoints_are_equal_files(tmp_path):
    supernet = SPACE.supernet(seed=0)
    weights = dict(supernet.state_dict())
    state = TrainingState(3, weights, {"a": torch.ones(3)}, kept=[weights], progress={"b": 1})
    paths = [tmp_path / str(number) for number in range(8)]
    for path in paths:
        save_checkpoint(path, state, {"c": "\u00e9", "d": 2})
    first = paths[0].read_bytes()
    assert all(path.read_bytes() == first for path in paths[1:])
    assert (int.from_bytes(first[:8], "little") + 8) % 8 == 0
    back, settings = load_checkpoint(paths[0])
    assert settings == {"c": "\u00e9", "d": 2} and back.step == 3 and back.progress == {"b": 1}
    for found in (back.weights, back.kept[0]):
        assert found.keys() == weights.keys()
        assert all(torch.equal(found[name], weights[name]) for name in weights)


def test_a_checkpoint_may_be_named_by_a_string(tmp_path):
    path = tmp_path / "c.safetensors"
    supernet, budget = trained(Uniform(SPACE, seed=3), path=str(path))
    again, kept = trained(Uniform(SPACE, seed=3), path=str(path))
    assert load_checkpoint(path)[0].step == 6 and kept == budget
    assert_same(again, supernet)


@pytest.mark.parametrize("clip", [5.0, None])
def test_diverged_training_is_reported_with_its_first_broken_step(tmp_path, monkeypatch, clip):
    """The checkpoint is then the last good one, from which the same call ends the same."""

    def loss_of(supernet, paths, batch, step):
        loss = CrossEntropy()(supernet, paths, batch, step)
        return loss * float("nan") if step in (3, 4) else loss

    monkeypatch.setattr("sigeo.supernet.loop._SECONDS_BETWEEN_SAVES", -1.0)
    path = tmp_path / "c.safetensors"
    what = "the loss of step 4 of 6 is not finite; take a smaller lr, it is 0.1"
    what += "" if clip else r", or bound the gradients \(clip\)"
    for _ in range(2):
        with pytest.raises(InputError, match=f"^training: {what}$"):
            trained(Uniform(SPACE, seed=3), loss_of, path=path, config=training(clip=clip))
        assert load_checkpoint(path)[0].step == 3
    monkeypatch.setattr("sigeo.supernet.loop._SECONDS_BETWEEN_SAVES", 1e9)
    with pytest.raises(InputError, match="the loss of step 4 of 6"):  # read at the end alone
        trained(Uniform(SPACE, seed=3), loss_of, config=training(clip=clip))


def test_weights_that_the_last_step_breaks_are_not_kept(tmp_path):
    def steep(supernet, paths, batch, step):
        loss = CrossEntropy()(supernet, paths, batch, step)
        next(p.grad for p in supernet.parameters() if p.grad is not None).fill_(float("inf"))
        return loss

    path = tmp_path / "c.safetensors"
    config = training(limit=1, clip=None)
    with pytest.raises(InputError, match="a weight after step 1 of 1 is not finite; take a"):
        trained(Uniform(SPACE, seed=3), steep, path=path, config=config)
    assert not path.exists()


def test_a_loss_that_is_no_tensor_is_refused():
    with pytest.raises(InputError, match="must return the loss as a tensor, got NoneType"):
        trained(Uniform(SPACE, seed=3), lambda *step: None)


def test_a_device_without_memory_damages_no_checkpoint(tmp_path, monkeypatch):
    def fill(trainer, state):
        raise torch.OutOfMemoryError("full")

    path = tmp_path / "c.safetensors"
    trained(Uniform(SPACE, seed=0), CrossEntropy(), path=path)
    monkeypatch.setattr(Trainer, "resume", fill)
    with pytest.raises(torch.OutOfMemoryError, match="^full$"):
        trained(Uniform(SPACE, seed=0), CrossEntropy(), path=path)
