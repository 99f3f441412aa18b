"""MeCo spelled out in NumPy, what containers add, and maps whose smallest eigenvalue is 0."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

import sigeo
from sigeo import InputError, proxies
from tests.sigeo.models import TwoInputs, assert_unchanged, golden_net, image_batches, state_of


def meco(model, inputs, **options):
    batch = inputs, torch.zeros(1)
    return sigeo.score(model, [batch], [proxies.get("meco", **options)])["meco"]


def drawn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).double()


def smallest(output):
    """The smallest eigenvalue of a map's channel correlations, as the published code has it."""
    channels = output[0].detach().numpy().reshape(len(output[0]), -1)
    with np.errstate(all="ignore"):
        matrix = np.nan_to_num(np.corrcoef(channels), nan=0, posinf=0, neginf=0)
    return np.linalg.eig(np.atleast_2d(matrix))[0].real.min()


@pytest.mark.filterwarnings("ignore:Degrees of freedom")  # of one position, in NumPy
@pytest.mark.parametrize(("size", "seed"), [(64, 0), (12, 5), (None, 0)])
def test_meco_is_its_formula(size, seed):
    torch.manual_seed(0)
    model, images = golden_net().double(), image_batches(1, 3, torch.float64)[0][0]
    pixels = size or 8
    x = drawn(1, 3, pixels, pixels, seed=seed)
    expected = []
    for module in model.train()[:6]:
        x = module(x)
        expected.append(smallest(x))
    score = meco(model, images, size=size, seed=seed)
    assert score.finite and not score.notes and score.value > 0.1
    assert score.value == pytest.approx(sum(expected), abs=1e-10)
    assert score.terms["maps"] == 6


def test_containers_count_again_if_asked():
    torch.manual_seed(0)
    inner = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    model = nn.Sequential(nn.Sequential(inner, nn.Tanh()), nn.Conv2d(4, 2, 1)).double()
    x = drawn(1, 3, 64, 64)
    conv = inner[0](x)
    norm = inner[1](conv)
    tanh = torch.tanh(norm)
    last = model[1](tanh)
    images = image_batches(1, 3, torch.float64)[0][0]
    leaves = [smallest(y) for y in (conv, norm, tanh, last)]
    assert meco(model, images).value == pytest.approx(sum(leaves), rel=1e-10)
    around = [smallest(y) for y in (norm, tanh, last)]  # inner, what holds it, the model
    score = meco(model, images, modules="all")
    assert score.value == pytest.approx(sum(leaves) + sum(around), rel=1e-10)
    assert score.terms["maps"] == 7


def test_a_module_counts_as_often_as_it_is_called():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3)

        def forward(self, x):
            return self.conv(self.conv(x))

    model = Twice()
    images = image_batches(1, 3)[0][0]
    twice = nn.Sequential(model.conv, model.conv)
    assert meco(model, images) == meco(twice, images)
    assert meco(model, images).terms["maps"] == 2


def test_dead_channels_and_few_positions_give_exactly_zero():
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU())
    model[0].bias.data[1] = -100.0  # this channel is dead behind the ReLU
    images = image_batches(1, 3)[0][0]
    score = meco(model, images)
    assert score.terms == {"maps": 2, "maps_of_zero": 1}
    assert score.value == meco(model[:1], images).value > 0
    wide = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1))
    assert meco(wide, images, size=4).value == 0  # 16 positions of 16 channels
    assert meco(wide, images, size=5).value > 0


def test_one_channel_has_the_eigenvalue_one():
    assert meco(nn.Sequential(nn.Conv2d(3, 1, 3)), image_batches(1)[0][0]).value == 1


def test_neither_data_nor_modes_matter_and_the_model_comes_back_as_it_was():
    class Broken(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.error = golden_net(), None
            self.net.insert(2, nn.Dropout(0.5))

        def forward(self, x):
            y = self.net(x)
            if self.error is not None:
                raise self.error
            return y

    model, images = Broken().eval(), image_batches(1)[0][0]
    before, random = state_of(model), torch.get_rng_state()
    first = meco(model, images)
    assert first.finite and first == meco(model, torch.zeros_like(images[:2]))
    assert not any(module.training for module in model.modules())
    assert meco(model.train(), images) == first
    model.error = KeyError("broken")
    with pytest.raises(KeyError, match="broken"):
        meco(model, images)
    assert_unchanged(model, before)
    assert torch.equal(random, torch.get_rng_state())
    assert all(module.training and not module._forward_hooks for module in model.modules())


def test_a_network_of_one_size_says_so():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 5))
    images = image_batches(1)[0][0]
    score = meco(model, images)
    assert score.value == -math.inf
    assert score.notes[0].startswith("does not run on one random image of 64 x 64; size=None takes")
    assert meco(model, images, size=None).finite
    one = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BatchNorm1d(3))
    score = meco(one, images, size=None)
    assert not score.finite
    assert score.notes[0].startswith("does not run on one random image: Expected more than 1 value")


def test_networks_without_feature_maps_say_so():
    score = meco(TwoInputs(), (torch.randn(6, 4), torch.randn(6, 3)))
    assert not score.finite
    assert score.notes[0] == "no module returns a feature map [1, channels, ...]"


def test_maps_that_are_not_finite_are_not():
    model = nn.Sequential(nn.Conv2d(3, 4, 3))
    nn.init.constant_(model[0].weight, math.inf)
    assert meco(model, image_batches(1)[0][0]).notes == ("meco is nan",)


def test_what_is_refused():
    with pytest.raises(InputError, match="modules must be one of leaves, all, got 'some'"):
        proxies.get("meco", modules="some")
    with pytest.raises(InputError, match="size: must be at least 1, got 0"):
        proxies.get("meco", size=0)
    tokens = nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(12, 5))
    with pytest.raises(InputError, match="meco: needs inputs of real numbers, got none"):
        meco(tokens, torch.randint(0, 9, (4, 3)))
