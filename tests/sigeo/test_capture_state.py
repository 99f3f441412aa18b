"""The model comes back as it was, whatever happened."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import sigeo
from sigeo.capture import (
    SGD,
    Request,
    capture,
    fisher_trace,
    gradient_statistics,
    preserved,
    sample_inner_products,
)
from tests.sigeo.models import assert_unchanged, golden_net, image_batches, state_of


class Fails(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = golden_net()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        if self.calls == 3:
            raise RuntimeError("out of luck")
        return self.net(x)


def test_the_model_comes_back_after_an_exception():
    torch.manual_seed(0)
    model = Fails()
    model.eval()
    model.net[1].train()
    gradient = torch.ones_like(model.net[0].weight)
    model.net[0].weight.grad = gradient
    before = state_of(model)
    states = (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy())
    with pytest.raises(RuntimeError, match="out of luck"):
        gradient_statistics(model, image_batches(), requests=[Request(steps=SGD(1.0))])
    assert_unchanged(model, before)
    assert model.net[0].weight.grad is gradient and model.net[3].weight.grad is None
    assert model.net[1].training and not model.net[0].training and not model.training
    assert torch.equal(torch.get_rng_state(), states[0]) and random.getstate() == states[1]
    assert (np.random.get_state()[1] == states[2]).all()


def test_a_buffer_that_is_replaced_comes_back():
    class Replaces(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 5)
            self.register_buffer("seen", torch.zeros(3))
            self.register_buffer("nothing", None)

        def forward(self, x):
            self.seen = self.seen + x.sum(0)
            return self.linear(x)

    model = Replaces()
    original = model.seen
    gradient_statistics(model, [(torch.randn(4, 3), torch.arange(4))] * 3)
    assert model.seen is original and torch.equal(original, torch.zeros(3))


def test_preserved_without_parameters_keeps_what_the_body_did_to_them():
    model = nn.Linear(2, 2)
    with preserved(model, parameters=False), torch.no_grad():
        model.weight.zero_()
    assert model.weight.abs().sum() == 0


@pytest.mark.parametrize("kind", [nn.Embedding, nn.EmbeddingBag])
def test_a_table_that_a_forward_pass_renorms_comes_back(kind):
    parts = kind(5, 4, max_norm=0.1), nn.Flatten(), nn.LazyLinear(3)
    model, ids = nn.Sequential(*parts), torch.randint(0, 5, (6, 2))
    with torch.no_grad():
        model(ids)
        nn.init.ones_(model[0].weight)
    before = state_of(model)
    gradient_statistics(model, [(ids, torch.arange(6) % 3)] * 2, requests=[Request("all")])
    assert_unchanged(model, before)


def test_buffers_that_cannot_be_written_do_not_stop_the_restoring():
    model = golden_net()
    model.register_buffer("wide", torch.ones(1, 5).expand(4, 5))
    before = state_of(model)
    gradient_statistics(model, image_batches())
    assert_unchanged(model, before)


def test_reading_a_shuffling_loader_draws_nothing():
    images, labels = image_batches(1)[0]
    dataset = torch.utils.data.TensorDataset(images, labels)
    loader = torch.utils.data.DataLoader(dataset, batch_size=4, shuffle=True)
    model, before = golden_net(), torch.get_rng_state()
    gradient_statistics(model, loader)
    assert torch.equal(before, torch.get_rng_state())


def test_a_loader_that_fails_has_drawn_nothing():
    def batches():
        yield torch.rand(4, 6), torch.arange(4)
        raise KeyError("the second batch")

    model, before = nn.Linear(6, 4), torch.get_rng_state()
    with pytest.raises(KeyError, match="the second batch"):
        gradient_statistics(model, batches())
    assert torch.equal(before, torch.get_rng_state())


class Recurring(nn.Module):
    """A layer and a norm at two places, weights that two layers share, and a weight of its own."""

    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU())
        self.second, self.third = self.first, nn.Linear(4, 4)
        self.fourth = nn.Linear(4, 4)
        self.fourth.weight = self.third.weight
        self.mix = nn.Parameter(torch.randn(4, 4) / 4)

    def forward(self, x):
        x = self.second(self.first(x)) @ torch.linalg.matrix_exp(self.mix)
        return self.fourth(self.third(x).tanh())


def recurring():
    torch.manual_seed(0)
    return Recurring().double().eval()


def rows_alone(model, x, y):
    """Each sample's gradient [samples, parameters], and the parameters as one vector."""
    parameters = list(model.parameters())
    rows = [
        torch.autograd.grad(F.cross_entropy(model(a[None]), b[None]), parameters)
        for a, b in zip(x, y, strict=True)
    ]
    flat = [torch.cat([g.flatten() for g in row]) for row in rows]
    return torch.stack(flat), torch.cat([p.detach().flatten() for p in parameters])


@pytest.mark.parametrize("proxy", ["synflow", "logsynflow", "sigeo_paper", "fisher_trace"])
def test_a_module_at_two_places_comes_back(proxy):
    model = recurring()
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    values = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    batch = torch.randn(6, 4, dtype=torch.float64), torch.arange(6) % 4
    found = [sigeo.score(model, [batch] * 2, [proxy])[proxy] for _ in range(2)]
    assert found[0] == found[1] and found[0].finite
    after = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    assert all(after[name] is tensor for name, tensor in tensors.items())
    assert all(torch.equal(after[name], value) for name, value in values.items())
    assert model.second is model.first and model.fourth.weight is model.third.weight


def test_products_and_traces_of_a_module_at_two_places():
    model, x, y = recurring(), torch.randn(6, 4, dtype=torch.float64), torch.arange(6) % 4
    g, theta = rows_alone(model, x, y)
    for _ in range(2):
        torch.testing.assert_close(sample_inner_products(model, F.cross_entropy, x, y), g @ theta)
        trace = torch.tensor(fisher_trace(model, [(x, y)]), dtype=torch.float64)
        torch.testing.assert_close(trace, g.square().sum(1).mean())


def test_a_capture_leaves_buffers_of_a_module_at_two_places():
    model, x = recurring(), torch.randn(6, 4, dtype=torch.float64)
    buffers = dict(model.named_buffers())
    with capture(model) as stats:
        model(x).mean().backward()
    assert "mix" in stats
    assert all(buffer is buffers[name] for name, buffer in model.named_buffers())
