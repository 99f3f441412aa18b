"""Switches of the NAS-Bench-201 supernet: norms without scale, running statistics, dropout."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sigeo import InputError
from sigeo.data import Augmentation
from sigeo.spaces.dropout import ScheduledDropout, path_keep
from sigeo.supernet import (
    CrossPath,
    Disjoint,
    Fair,
    Uniform,
    add_gradients,
    evaluate,
    shares_passes,
    train_supernet,
)
from tests.sigeo.training import (
    IMAGES,
    LABELS,
    SPACE,
    assert_resumes,
    batches,
    source,
    training,
)

ARCHS = [SPACE.at(index) for index in (9558, 1462, 8001, 14)]


def norms(supernet):
    return {n: m for n, m in supernet.named_modules() if isinstance(m, nn.BatchNorm2d)}


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("track", [True, False])
def test_norms_are_as_asked_for_and_weights_as_ever(affine, track):
    supernet = SPACE.supernet(seed=1, affine=affine, track=track)
    assert all(
        m.affine == affine and (m.running_mean is not None) == track
        for m in norms(supernet).values()
    )
    usual = SPACE.supernet(seed=1)
    for name, value in supernet.named_parameters():
        assert torch.equal(value, usual.get_parameter(name))
    with torch.no_grad():
        for arch in ARCHS:  # scales are 1 and shifts 0 at the start
            torch.testing.assert_close(supernet(IMAGES[:8], arch), usual(IMAGES[:8], arch))


def test_many_paths_in_one_pass_without_scale_and_shift():
    together, apart = (SPACE.supernet(seed=1, affine=False) for _ in range(2))
    assert shares_passes(together)
    images, labels = IMAGES[:8], LABELS[:8]
    losses = add_gradients(together, ARCHS, images, labels)
    for arch, loss in zip(ARCHS, losses, strict=True):
        own = F.cross_entropy(apart(images, arch), labels)
        own.backward()
        torch.testing.assert_close(loss, own.detach(), rtol=1e-5, atol=1e-5)
    for (name, a), b in zip(together.named_parameters(), apart.parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None), name
        if a.grad is not None:
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-4, msg=name)


def test_running_statistics_are_those_of_the_paths_that_came_by():
    supernet = SPACE.supernet(seed=1, track=True).train()
    assert not shares_passes(supernet)
    add_gradients(supernet, ARCHS[:1] * 2, IMAGES[:8], LABELS[:8])
    used = {n for n, m in norms(supernet).items() if int(m.num_batches_tracked) == 2}
    assert used == {
        name.removesuffix(".weight")
        for name in SPACE.supernet().stack(ARCHS[:1]).weights
        if name.endswith("norm.weight")
    }
    assert all(int(m.num_batches_tracked) in (0, 2) for m in norms(supernet).values())
    evaluate(supernet, ARCHS, batches(), norm="tracked")


def test_zeros_go_through_norms_with_running_statistics_of_other_paths():
    """1 -> 2 convolves node 1, which is zero; the slot's statistics come from other paths."""
    arch = SPACE.decode((0, 1, 3, 0, 0, 1))
    supernet = SPACE.supernet(seed=1, track=True)
    slot = supernet.blocks[0].slot(2, 3)
    with torch.no_grad():
        slot.norm.running_mean.fill_(0.5)
        slot.norm.running_var.fill_(0.25)
    supernet.eval()
    seen = []
    supernet.blocks[1].register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    with torch.no_grad():
        supernet(IMAGES[:8], arch)
        expected = supernet.stem(IMAGES[:8]) - 0.5 / (0.25 + 1e-5) ** 0.5
    torch.testing.assert_close(seen[0], expected)


def test_path_dropout_schedule():
    """k1 = 1 - (l+1)/L (1 - keep), k = 1 - (s+1)/S (1 - k1)."""
    assert path_keep(0, 4, 0, 10, 0.4) == pytest.approx(1 - 0.1 * 0.25 * 0.4)
    assert path_keep(3, 4, 9, 10, 0.4) == pytest.approx(0.6)
    assert path_keep(1, 4, 4, 10, 0.4) == pytest.approx(1 - 0.5 * 0.5 * 0.4)


def test_dropout_drops_as_many_as_it_says_and_scales_the_others():
    dropout = ScheduledDropout(0.5, 0.25, layers=2)
    dropout.start_step(1, 4, seed=7)
    ones = torch.ones(8000, 2, 3, 3)
    keep = 1 - 0.5 * 1.0 * 0.5  # half of the steps, the last layer
    dropped = dropout.path(1)(ones)
    kept = dropped[:, 0, 0, 0] != 0
    assert torch.equal(dropped, (kept.view(-1, 1, 1, 1) / keep).expand_as(ones).float())
    assert kept.float().mean().item() == pytest.approx(keep, abs=0.02)
    features = dropout.features(torch.ones(4000, 4))
    assert features.unique().tolist() == pytest.approx([0.0, 1 / 0.75])
    assert (features != 0).float().mean().item() == pytest.approx(0.75, abs=0.02)
    assert not torch.equal(dropout.path(1)(ones), dropped), "every edge has a draw of its own"
    again = ScheduledDropout(0.5, 0.25, layers=2)
    again.start_step(1, 4, seed=7)
    assert torch.equal(again.path(1)(ones), dropped)


def test_dropout_is_of_training_alone():
    supernet = SPACE.supernet(seed=1, path_dropout=0.5, dropout=0.3)
    usual = SPACE.supernet(seed=1)
    assert supernet.noisy and not shares_passes(supernet)
    images, labels = IMAGES[:8], LABELS[:8]
    state = torch.get_rng_state()
    noisy = supernet(images, ARCHS[0])
    assert torch.equal(state, torch.get_rng_state())
    assert not torch.equal(noisy, supernet(images, ARCHS[0]))
    supernet.start_step(0, 1, 1)
    assert torch.equal(noisy, supernet(images, ARCHS[0]))
    add_gradients(supernet, ARCHS, images, labels)
    found, expected = (evaluate(s, ARCHS, batches(), at_once=2) for s in (supernet, usual))
    assert torch.equal(found.loss, expected.loss) and supernet.training
    with pytest.raises(InputError, match="path_dropout must be from 0 to below 1, got 1"):
        SPACE.supernet(path_dropout=1)


def test_the_loop_tells_a_supernet_its_step():
    seen = []
    supernet = SPACE.supernet(seed=3, dropout=0.1)
    supernet.start_step = lambda *numbers: seen.append(numbers)
    train_supernet(supernet, training(epochs=1), source(), Uniform(SPACE, seed=3), settings={})
    assert seen == [(0, 3, 3), (1, 3, 3), (2, 3, 3)]


@pytest.mark.parametrize(
    ("options", "make"),
    [
        ({"affine": False, "track": True}, lambda: {"sampler": Fair(SPACE, seed=3)}),
        ({"path_dropout": 0.4, "dropout": 0.2}, lambda: {"sampler": Uniform(SPACE, seed=3)}),
        (
            {"path_dropout": 0.4, "track": True},
            lambda: {
                "sampler": Disjoint(SPACE, seed=3),
                "objective": CrossPath(Augmentation(seed=0, padding=1)),
            },
        ),
    ],
    ids=["tracked", "dropout", "both with a teacher"],
)
def test_stopped_trainings_go_on(options, make, tmp_path, monkeypatch):
    assert_resumes(
        lambda: {"made": lambda: SPACE.supernet(seed=3, **options), **make()}, tmp_path, monkeypatch
    )
