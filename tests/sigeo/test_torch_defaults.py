"""`torch.set_default_device` and `set_default_dtype` change nothing of models that are there.

What is drawn or counted on the CPU stays there, and the same seed draws the same numbers.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

import sigeo
from sigeo import proxies
from sigeo.capture import capture, fisher_trace
from sigeo.data import Augmentation, load
from sigeo.spaces.initial import draw_weights
from sigeo.supernet import Uniform, train_supernet
from sigeo_ext.testing import check_per_sample
from tests.sigeo.models import golden_net
from tests.sigeo.training import SPACE, assert_same, source, training

DATA = [(torch.randn(6, 3, 8, 8), torch.arange(6) % 5) for _ in range(3)]


@pytest.fixture(params=["device", "dtype"])
def both(request):
    """What gives results without and with another default."""

    def results(function):
        expected = function()
        if request.param == "device":  # on which tensors hold no values
            with torch.device("meta"):
                return expected, function()
        torch.set_default_dtype(torch.float64)
        try:
            return expected, function()
        finally:
            torch.set_default_dtype(torch.float32)

    return results


# torch's Adagrad, which the two others take, has its steps on the default device.
@pytest.mark.parametrize("name", [n for n in proxies.names() if not n.startswith("sigeo_recsys")])
def test_proxies_stay_on_the_devices_of_model_and_batches(name, both):
    model = golden_net()

    def score():
        found = sigeo.score(model, DATA, [name])[name]
        return str((found.value, found.terms, found.notes))

    expected, found = both(score)
    assert found == expected


def test_data_stay_where_they_are(both):
    def batch():
        data = load("digits")
        return data.batch(data.order(1)[:8].tolist())

    (expected, _), (found, _) = both(batch)
    assert torch.equal(found, expected)
    views = Augmentation(seed=0, scale=(0.5, 1.0), brightness=0.1)
    expected, found = both(lambda: views(DATA[0][0], 1))
    assert torch.equal(found, expected)


def test_trainings_stay_where_the_supernet_is(both):
    def train():
        supernet = supernets.pop()
        train_supernet(supernet, training(), images, Uniform(SPACE, seed=0), settings={})
        return supernet

    images = source(augment=Augmentation(seed=0))
    supernets = [SPACE.supernet(seed=1, path_dropout=0.5, dropout=0.5) for _ in range(2)]
    assert_same(*both(train))


def test_weights_are_drawn_for_the_device_of_the_module(both):
    def draw():
        draw_weights(layer, "0", seed=1)
        return layer.weight.clone()

    layer = nn.Linear(4, 3)
    expected, found = both(draw)
    assert torch.equal(found, expected)


def test_samples_are_measured_where_the_model_is(both):
    model = golden_net().eval()

    expected, found = both(lambda: fisher_trace(model, DATA, estimator="signs", seed=1))
    assert str(found) == str(expected)

    table = nn.Embedding(9, 2, sparse=True)

    def sums():
        with capture(table, {"abs_sum"}) as stats:
            table(torch.tensor([[1], [2]], device="cpu")).sum().backward()
        return stats["weight"].abs_sum.to_dense()

    expected, found = both(sums)
    assert torch.equal(found, expected)


def test_layers_are_judged_where_they_are(both):
    layer, x = nn.Linear(4, 3), torch.randn(5, 4)
    expected, found = both(lambda: check_per_sample(layer, x))
    assert str(found) == str(expected)
