"""Several captures that are open at once, each of a model of its own."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sigeo import InputError
from sigeo.capture import capture
from tests.sigeo.sample_loop import EVERYTHING, SAMPLES, assert_statistics


class Mixed(nn.Module):
    """Layers that are recognised, seen through, followed and run again, and a write in place."""

    def __init__(self):
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(4), nn.MultiheadAttention(4, 2, batch_first=True)
        self.recurrent, self.scale = nn.GRU(4, 4, batch_first=True), nn.Parameter(torch.randn(4))

    def forward(self, x):
        x = self.recurrent(self.norm(x))[0] * self.scale
        shifted = torch.zeros_like(x)
        shifted[:, 1:] = x[:, :-1]
        return shifted + self.attention(x, x, x)[0]


def _loss(outputs):
    return outputs.square().mean()


def _rows(model, loss_of, x):
    """Gradients of each sample's own loss."""
    named = dict(model.named_parameters())
    rows = [torch.autograd.grad(loss_of(x[b : b + 1]), list(named.values())) for b in range(len(x))]
    return {name: torch.stack(g) for name, g in zip(named, zip(*rows, strict=True), strict=True)}


def _sequences(samples=SAMPLES, length=5):
    return torch.randn(samples, length, 4, dtype=torch.float64)


@pytest.fixture
def models():
    torch.manual_seed(0)
    return Mixed().double(), Mixed().double()


def _inner_first(a, b, x, z):
    with capture(a, EVERYTHING) as of_a:
        with capture(b, EVERYTHING) as of_b:
            _loss(b(z)).backward()
        _loss(a(x)).backward()
    return of_a, of_b


def _inner_between(a, b, x, z):
    with capture(a, EVERYTHING) as of_a:
        outputs = a(x)
        with capture(b, EVERYTHING) as of_b:
            _loss(b(z)).backward()
        _loss(outputs).backward()
    return of_a, of_b


def _one_pass(a, b, x, z):
    with capture(a, EVERYTHING) as of_a, capture(b, EVERYTHING) as of_b:
        (_loss(a(x)) + _loss(b(z))).backward()
    return of_a, of_b


@pytest.mark.parametrize("how", [_inner_first, _inner_between, _one_pass])
def test_models_side_by_side(models, how):
    (a, b), x, z = models, _sequences(), _sequences(3, 7)
    of_a, of_b = how(a, b, x, z)
    assert_statistics(of_a, _rows(a, lambda x: _loss(a(x)), x), a)
    assert_statistics(of_b, _rows(b, lambda z: _loss(b(z)), z), b)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_model_on_the_outputs_of_another(models, order):
    (a, b), x = models, _sequences()
    outer, inner = (models[i] for i in order)
    with capture(outer, EVERYTHING) as of_outer, capture(inner, EVERYTHING) as of_inner:
        _loss(a(b(x))).backward()
    for model, stats in ((outer, of_outer), (inner, of_inner)):
        assert_statistics(stats, _rows(model, lambda x: _loss(a(b(x))), x), model)


def test_a_backward_pass_counts_for_every_model_that_it_reaches():
    a, b = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 3)), nn.Linear(4, 3)
    with capture(a, params="layers") as of_a, capture(b):
        a(torch.randn(5, 4))
        (b(torch.randn(5, 4)).sum() + a[0].weight.sum()).backward()
    assert of_a.sample_sq_norm.tolist() == [0] * 5  # reached, but nothing that is measured


def test_a_model_in_the_forward_pass_of_another_is_refused(models):
    class Holding(nn.Module):
        def __init__(self, held):
            super().__init__()
            self.first, self.held = nn.Linear(4, 4).double(), [held]

        def forward(self, x):
            return self.held[0](self.first(x))

    outer = Holding(models[0])
    refused = pytest.raises(InputError, match="called in the forward pass of another")
    with refused, capture(outer), capture(models[0]):
        outer(_sequences())


class OwnNorm(nn.Module):
    """A norm that keeps its statistics in a way of its own."""

    def __init__(self, keep):
        super().__init__()
        self.layer, self.out, self.keep = nn.Linear(4, 4), nn.Linear(4, 3), keep
        self.register_buffer("running", torch.zeros(4))

    def forward(self, x):
        x = self.layer(x)
        if self.training:
            with torch.no_grad():
                self.keep(self, x.mean((0, 1)))
        return self.out(x - self.running)


def _rebind(norm, mean):
    norm.running = 0.9 * norm.running + 0.1 * mean


@pytest.mark.parametrize(
    "keep",
    [
        lambda norm, mean: norm.running.__setitem__(slice(None), 0.9 * norm.running + 0.1 * mean),
        lambda norm, mean: norm.running.lerp_(mean, 0.1),
        lambda norm, mean: norm.running.copy_(mean),
        _rebind,
    ],
)
def test_statistics_of_an_earlier_pass_are_constants(keep):
    torch.manual_seed(0)
    norm, x = OwnNorm(keep).double(), _sequences()
    with capture(norm, strict=False):  # in train mode, a part of the model or seen beside it
        _loss(norm(x)).backward()
    with capture(nn.Linear(4, 4).double(), strict=False):
        norm(x)
    norm.eval()
    with capture(norm, EVERYTHING) as stats:
        _loss(norm(x)).backward()
    assert_statistics(stats, _rows(norm, lambda x: _loss(norm(x)), x), norm)
