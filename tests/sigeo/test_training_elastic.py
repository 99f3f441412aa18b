"""Training and evaluation on elastic spaces: the sandwich rule, recalibrated norms, dropout."""

from __future__ import annotations

import random

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sigeo import InputError
from sigeo.supernet import (
    Budget,
    CrossEntropy,
    InPlaceDistillation,
    Sandwich,
    Source,
    Uniform,
    evaluate,
    project,
    train_supernet,
)
from tests.sigeo.elastic_spaces import NAMES, SHAPE, space
from tests.sigeo.training import Stopped, assert_same, training

IMAGES = torch.randn(
    24, SHAPE.channels, SHAPE.size, SHAPE.size, generator=torch.Generator().manual_seed(0)
)
LABELS = torch.arange(24) % SHAPE.classes
SOURCE = Source(torch.arange(24), lambda places: (IMAGES[places], LABELS[places]), seed=3)
CONFIG = training(images=24, epochs=2, batch_size=12, clip=1.0, clip_by="value", rise=1)


def run(chosen, supernet, sampler, objective, **options):
    return train_supernet(
        supernet, CONFIG, SOURCE, sampler, objective, settings=chosen.describe(), **options
    )


@pytest.mark.parametrize("name", NAMES)
def test_the_sandwich_rule_trains_and_goes_on(name, tmp_path, monkeypatch):
    chosen = space(name)
    sampler, objective = Sandwich(chosen, seed=1, count=1), InPlaceDistillation()
    paths = sampler.paths(0)
    assert paths[0] == chosen.largest and paths[-1] == chosen.smallest and len(paths) == 3
    undisturbed = chosen.supernet(seed=0)
    start = {n: p.clone() for n, p in undisturbed.named_parameters()}
    assert run(chosen, undisturbed, sampler, objective) == Budget(trained=3 * 48)
    assert all(not torch.equal(p, start[n]) for n, p in undisturbed.named_parameters())
    monkeypatch.setattr("sigeo.supernet.loop._SECONDS_BETWEEN_SAVES", -1.0)

    def stop(step, steps):
        if step == 3:
            raise Stopped

    path = tmp_path / "c"
    with pytest.raises(Stopped):
        run(chosen, chosen.supernet(seed=0), sampler, objective, checkpoint=path, progress=stop)
    resumed = chosen.supernet(seed=0)
    run(chosen, resumed, sampler, objective, checkpoint=path)
    assert_same(resumed, undisturbed)


@pytest.mark.parametrize("name", NAMES)
def test_several_paths_get_the_gradients_of_each(name):
    chosen = space(name)
    paths = Uniform(chosen, seed=0, paths=3).paths(0)
    together, apart = chosen.supernet(seed=0).train(), chosen.supernet(seed=0).train()
    for net in (together, apart):
        for module in net.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
    CrossEntropy()(together, paths, (IMAGES[:8], LABELS[:8]), 0)
    for path in paths:
        F.cross_entropy(apart(IMAGES[:8], path), LABELS[:8]).backward()
    for (n, a), b in zip(together.named_parameters(), apart.parameters(), strict=True):
        found, expected = (torch.zeros_like(p) if p.grad is None else p.grad for p in (a, b))
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5, msg=n)


@pytest.mark.parametrize("name", ["resnet", "mobilenet"])
def test_recalibrated_norms_are_those_of_the_network_itself(name):
    chosen = space(name)
    supernet = chosen.supernet(seed=0).train()
    archs = [chosen.sample(random.Random(seed)) for seed in range(3)]
    batches = [(IMAGES[:8], LABELS[:8]), (IMAGES[8:16], LABELS[8:16])]
    found = evaluate(supernet, archs, batches[:1], norm="recalibrated", calibration=batches)
    for arch, loss in zip(archs, found.loss, strict=True):
        network = supernet.extracted(arch, track=True).train()
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = None
        with torch.no_grad():
            for inputs, _ in batches:
                network(inputs)
            expected = F.cross_entropy(network.eval()(IMAGES[:8]), LABELS[:8]).double()
        torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)
    norms = [m for m in supernet.modules() if isinstance(m, nn.BatchNorm2d)]
    assert all(m.running_mean is None and m.training and not m._forward_pre_hooks for m in norms)


def test_layers_of_elastic_supernets_are_not_replaced():
    with pytest.raises(InputError, match="ElasticSupernet has no linear layer 'head.linear'"):
        project(space("resnet").supernet(seed=0), seed=0)
