"""Trace, diagonal and Fisher-Rao norm of the Fisher matrix against the matrix itself."""

from __future__ import annotations

import json
import math
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from sigeo import InputError
from sigeo.capture import Trace, capture, diag_fisher, fisher_rao, fisher_trace
from sigeo.capture.signs import sq_norms_by_signs
from tests.sigeo import zoo


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


@pytest.mark.parametrize("table", [nn.Embedding(9, 4), nn.EmbeddingBag(9, 4, mode="sum")])
def test_what_was_looked_up_may_be_written_to_in_place(table):
    torch.manual_seed(0)
    scaled = zoo.Function(
        lambda m, x: m.out(m.table(x).mul_(3.0)).flatten(1), table=table, out=nn.Linear(4, 3)
    )
    model = scaled.double()
    data = [(torch.randint(0, 9, (5, 2)), torch.randint(0, 3, (5,)))]
    g = rows(model, data)
    theta = torch.cat([p.detach().flatten() for p in model.parameters()])
    assert fisher_trace(model, data) == pytest.approx(float(g.square().sum(1).mean()), rel=1e-12)
    assert fisher_rao(model, data) == pytest.approx(float((g @ theta).square().mean()), rel=1e-12)


def test_bad_input():
    model, data = network(), batches(3)
    with pytest.raises(InputError, match="labels: must be"):
        fisher_trace(model, data, labels="random")
    with pytest.raises(InputError, match="expected pairs"):
        fisher_trace(model, [data[0][0]])
    with pytest.raises(InputError, match=r"or more\], got \[3, 3, 4, 4\]"):
        fisher_trace(model[:1], [data[0][0]], labels="drawn")
    with pytest.raises(InputError, match="batch norm"):
        fisher_trace(nn.Sequential(nn.BatchNorm2d(1), nn.Flatten()).double(), data)
    assert math.isfinite(fisher_trace(model, data))


def signs_variance(g: torch.Tensor) -> torch.Tensor:
    """Of ||sum_b e_b g_b||^2 over the signs."""
    products = (g @ g.T).square()
    return 2 * (products.sum() - products.diagonal().sum())


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_signs_estimate_the_trace_without_bias_and_know_their_error(reduction):
    torch.manual_seed(0)
    model, data = network(), batches(6, 4, 1)
    draws, probes, count = 200, 3, 11
    found = [
        fisher_trace(
            model,
            data,
            lambda output, labels: F.cross_entropy(output, labels, reduction=reduction),
            estimator="signs",
            probes=probes,
            seed=seed,
            reduction=reduction,
        )
        for seed in range(draws)
    ]
    exact = fisher_trace(model, data)
    parts = rows(model, data).split([6, 4, 1])
    variance = float(sum(signs_variance(g) for g in parts)) / probes / count**2
    values = torch.tensor([float(trace) for trace in found], dtype=torch.float64)
    errors = torch.tensor([trace.standard_error for trace in found], dtype=torch.float64)
    assert abs(float(values.mean()) - exact) < 4 * math.sqrt(variance / draws)
    assert float(values.var()) == pytest.approx(variance, rel=0.25)
    assert float(errors.square().mean()) == pytest.approx(variance, rel=0.25)
    assert exact.standard_error == 0


def test_signs_of_one_sample_are_exact():
    torch.manual_seed(0)
    model, data = network(), batches(1, 1)
    trace = fisher_trace(model, data, estimator="signs")
    assert trace == pytest.approx(fisher_trace(model, data), rel=1e-12)
    assert trace.standard_error == pytest.approx(0, abs=1e-12 * trace)


class Checkpointed(nn.Module):
    """A model whose forward pass is repeated in every backward pass."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return checkpoint(self.model, *inputs, use_reentrant=False)


@pytest.mark.parametrize("repeated", [False, True])
@pytest.mark.parametrize("name", zoo.MODELS)
def test_each_probe_is_the_norm_of_the_signed_gradients(name, repeated):
    torch.manual_seed(0)
    model, inputs, labels = zoo.made(name, 5)
    model = Checkpointed(model) if repeated else model
    with capture(model, {"gram"}, grads=False) as stats:
        F.cross_entropy(model(*inputs), labels).backward()
    draws = torch.Generator().manual_seed(1)
    found, samples = sq_norms_by_signs(
        model,
        inputs,
        lambda _: labels,
        F.cross_entropy,
        probes=4,
        generator=draws,
        batch_norm="refuse",
    )
    draws.manual_seed(1)
    signs = torch.stack([torch.randint(0, 2, (5,), generator=draws) for _ in range(4)]) * 2.0 - 1
    expected = torch.einsum("pb,bc,pc->p", signs.double(), stats.gram, signs.double())
    torch.testing.assert_close(found * samples**2, expected, rtol=1e-9, atol=0)


def test_signs_flip_samples_that_are_not_in_front():
    class SequenceFirst(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 4)

        def forward(self, x):
            return self.layer(x).transpose(0, 1)  # [T, B, 4], T = B

    torch.manual_seed(0)
    model = SequenceFirst().double()
    x, y = torch.randn(4, 4, 3, dtype=torch.float64), torch.randn(4, 4, 4, dtype=torch.float64)
    trace = fisher_trace(model, [(x, y)], F.mse_loss, estimator="signs", probes=400)
    exact = fisher_trace(model, [(x, y)], F.mse_loss)
    assert abs(trace - exact) < 4 * trace.standard_error


def test_signs_leave_the_model_as_it_was_and_are_seeded():
    torch.manual_seed(0)
    model, data = network().train(), batches(5)
    model.insert(1, nn.BatchNorm2d(3).double())
    model[0].weight.grad = torch.ones_like(model[0].weight)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    grad, random = model[0].weight.grad, torch.get_rng_state()
    options = {"estimator": "signs", "batch_norm": "frozen", "labels": "drawn"}
    trace = fisher_trace(model, data, seed=3, **options)
    assert trace == fisher_trace(model, data, seed=3, **options)
    assert trace != fisher_trace(model, data, seed=4, **options)
    assert model.training and model[1].training and model[0].weight.grad is grad
    assert torch.equal(grad, torch.ones_like(grad)) and model[5].weight.grad is None
    assert torch.equal(torch.get_rng_state(), random)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    long = fisher_trace(model, data, probes=300, seed=3, **options)
    exact = fisher_trace(model, data, batch_norm="frozen", labels="drawn", seed=3)
    assert abs(long - exact) < 4 * long.standard_error


def test_a_trace_is_a_number():
    trace = Trace(2.5, 0.5)
    assert trace == 2.5 and f"{trace:.1f}" == "2.5" and json.dumps(trace) == "2.5"
    again = pickle.loads(pickle.dumps(trace))
    assert again == trace and again.standard_error == 0.5


def test_what_signs_cannot_do():
    torch.manual_seed(0)
    model, data = network(), batches(3)
    with pytest.raises(InputError, match='estimator: must be "exact" or "signs", got \'sign\''):
        fisher_trace(model, data, estimator="sign")
    with pytest.raises(InputError, match="probes: expected 2 or more, .*, got 1"):
        fisher_trace(model, data, estimator="signs", probes=1)
    normed = nn.Sequential(nn.BatchNorm2d(1).double(), model)
    messages = []
    for estimator in ("exact", "signs"):
        with pytest.raises(InputError, match="batch norm uses the statistics") as caught:
            fisher_trace(normed, data, estimator=estimator)
        messages.append(str(caught.value))
    assert '(batch_norm="per_unit")' in messages[0]
    assert '"per_unit"' not in messages[1] and '"contribution"' not in messages[1]
    assert 'expected frozen statistics (batch_norm="frozen" or model.eval()), got' in messages[1]
    for policy in ("per_unit", "contribution"):
        with pytest.raises(InputError, match=f'"refuse" or "frozen" .*, got \'{policy}\''):
            fisher_trace(normed, data, estimator="signs", batch_norm=policy)
    mixing = nn.Sequential(model, nn.Softmax(0))
    with pytest.raises(InputError, match="needs the samples apart in the output: "):
        fisher_trace(mixing, data, estimator="signs")
    weight = model[0].weight
    with pytest.raises(InputError, match=r"0\.weight has no per-sample gradient here: norm"):
        fisher_trace(
            model, data, lambda o, y: F.cross_entropy(o, y) + weight.norm(), estimator="signs"
        )
    weight = model[4].weight
    with pytest.raises(InputError, match=r"needs a loss without parameter 4\.weight"):
        fisher_trace(
            model, data, lambda o, y: F.cross_entropy(o @ weight[:, :4], y), estimator="signs"
        )


@pytest.mark.parametrize("measure", [fisher_trace, fisher_rao, diag_fisher])
def test_a_sum_is_noticed_and_counts_as_a_mean_if_told(measure):
    torch.manual_seed(0)
    model, data = network(), batches(5, 3)
    summed = nn.CrossEntropyLoss(reduction="sum")
    with pytest.raises(InputError, match='the sum of the .*, expected their mean; pass .*="sum"'):
        measure(model, data, summed)
    with pytest.raises(InputError, match='the mean of the .*, expected their sum; pass .*="mean"'):
        measure(model, data, reduction="sum")
    expected, got = measure(model, data), measure(model, data, summed, reduction="sum")
    if measure is diag_fisher:
        for name, diagonal in expected.items():
            torch.testing.assert_close(got[name], diagonal)
    else:
        assert got == pytest.approx(expected, rel=1e-12)


def test_losses_that_take_whole_batches_alone_are_not_asked():
    torch.manual_seed(0)
    model, data = network(), batches(4)
    weights = torch.rand(4, dtype=torch.float64)

    def weighted(output, labels):
        return (F.cross_entropy(output, labels, reduction="none") * weights).sum()

    assert fisher_trace(model, data, weighted) > 0


def test_a_loss_without_parameters_and_labels_out_of_range():
    model, data = network(), batches(3)
    with pytest.raises(InputError, match="depends on no parameter that asks for a gradient"):
        fisher_trace(model.requires_grad_(False), data)
    data[0][1][1] = 4
    with pytest.raises(InputError, match="labels: expected classes from 0 to 3, got 4"):
        fisher_trace(network(), data, estimator="signs")
