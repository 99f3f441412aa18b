"""A tiny space, its images, and trainings that stop halfway."""

from __future__ import annotations

import pytest
import torch

from sigeo import spaces
from sigeo.supernet import Source, Training, train_supernet

SHAPE = spaces.InputShape(channels=1, size=8, classes=4)
SPACE = spaces.get("nasbench201", SHAPE, channels=4, cells=1)
IMAGES = torch.randn(44, 1, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(44) % 4


def source(**options):
    order = torch.randperm(44, generator=torch.Generator().manual_seed(1))
    return Source(order, lambda places: (IMAGES[places], LABELS[places]), seed=3, **options)


def batches(count=2, size=8, dtype=torch.float32):
    return [
        (IMAGES[i * size : (i + 1) * size].to(dtype), LABELS[i * size : (i + 1) * size])
        for i in range(count)
    ]


def training(**changes):
    return Training(**{"images": 40, "epochs": 2, "batch_size": 16, "lr": 0.1, **changes})


class Stopped(Exception):
    """A training was interrupted."""


def trained(sampler, objective=None, *, made=None, stop=None, path=None, config=None, **options):
    """Train (until a step); the supernet and the budget."""
    supernet = SPACE.supernet(seed=3) if made is None else made()

    def progress(step, steps):
        if step == stop:
            raise Stopped

    budget = train_supernet(
        supernet,
        config or training(),
        source(**options),
        sampler,
        objective,
        settings={"made": "here"},
        checkpoint=path,
        progress=progress,
    )
    return supernet, budget


def assert_same(a, b):
    a, b = ({n: t.clone() for n, t in m.state_dict().items()} for m in (a, b))
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def assert_resumes(make, tmp_path, monkeypatch, steps=6):
    """``make()`` gives the arguments of `trained` anew; every interruption ends the same."""
    monkeypatch.setattr("sigeo.supernet.loop._SECONDS_BETWEEN_SAVES", -1.0)
    undisturbed, budget = trained(**make())
    for stop in range(2, steps + 1):  # at 1 nothing is saved yet: the first save is after it
        path = tmp_path / f"{stop}.safetensors"
        with pytest.raises(Stopped):
            trained(**make(), stop=stop, path=path)
        steps_taken, cost = trained(**make(), path=path)
        assert_same(steps_taken, undisturbed)
        assert cost == budget
