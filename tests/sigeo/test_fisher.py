"""Trace, diagonal and Fisher-Rao norm of the Fisher matrix against the matrix itself."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sigeo import InputError
from sigeo.capture import diag_fisher, fisher_rao, fisher_trace


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.GroupNorm(1, 3), nn.Tanh(), nn.Flatten(), nn.Linear(48, 4)
    ).double()


def batches(*sizes: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [
        (torch.randn(n, 1, 6, 6, dtype=torch.float64), torch.randint(0, 4, (n,))) for n in sizes
    ]


def rows(model: nn.Module, data: list[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
    """Every sample's gradient, flat [samples, parameters]."""
    found = []
    for images, labels in data:
        for b in range(len(labels)):
            loss = F.cross_entropy(model(images[b : b + 1]), labels[b : b + 1])
            grads = torch.autograd.grad(loss, list(model.parameters()))
            found.append(torch.cat([g.flatten() for g in grads]))
    return torch.stack(found)


def test_they_are_what_the_matrix_has():
    torch.manual_seed(0)
    model, data = network(), batches(5, 3)
    g = rows(model, data)
    matrix = g.T @ g / len(g)
    theta = torch.cat([p.detach().flatten() for p in model.parameters()])
    assert fisher_trace(model, data) == pytest.approx(float(matrix.trace()), rel=1e-12)
    assert fisher_rao(model, data) == pytest.approx(float(theta @ matrix @ theta), rel=1e-12)
    diagonal = diag_fisher(model, data)
    assert list(diagonal) == [name for name, _ in model.named_parameters()]
    flat = torch.cat([d.flatten() for d in diagonal.values()])
    torch.testing.assert_close(flat, matrix.diagonal(), rtol=1e-12, atol=0)
    assert all(p.grad is None for p in model.parameters())


def test_drawn_labels_are_the_models_own_and_seeded():
    torch.manual_seed(0)
    model, data = network(), batches(400)
    inputs = [x for x, _ in data]  # no labels needed
    first = fisher_trace(model, inputs, labels="drawn")
    assert first == fisher_trace(model, inputs, labels="drawn")
    assert first != fisher_trace(model, inputs, labels="drawn", seed=1)
    images = inputs[0]
    odds = model(images).detach().softmax(1)
    norms = [
        rows(model, [(images, torch.full((400,), c))]).square().sum(1) * odds[:, c]
        for c in range(4)
    ]
    exact = torch.stack(norms).sum(0).mean()
    assert first == pytest.approx(float(exact), rel=0.2)  # 400 draws


def test_embedding_tables_come_back_sparse():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(50, 3), nn.Flatten(), nn.Linear(6, 4))
    data = [(torch.randint(0, 50, (5, 2)), torch.randint(0, 4, (5,))) for _ in range(2)]
    found = diag_fisher(model, data)["0.weight"]
    assert found.is_sparse
    expected = rows(model, data)[:, :150].square().mean(0).view(50, 3)
    torch.testing.assert_close(found.to_dense(), expected)
    total = sum(float(d.to_dense().sum()) for d in diag_fisher(model, data).values())
    assert fisher_trace(model, data) == pytest.approx(total, rel=1e-5)


def test_bad_input():
    model, data = network(), batches(3)
    with pytest.raises(InputError, match="labels: must be"):
        fisher_trace(model, data, labels="random")
    with pytest.raises(InputError, match="expected pairs"):
        fisher_trace(model, [data[0][0]])
    with pytest.raises(InputError, match=r"outputs \[samples, classes\], got \[3, 3, 4, 4\]"):
        fisher_trace(model[:1], [data[0][0]], labels="drawn")
    with pytest.raises(InputError, match="batch norm"):
        fisher_trace(nn.Sequential(nn.BatchNorm2d(1), nn.Flatten()).double(), data)
    assert math.isfinite(fisher_trace(model, data))
