"""Proxies of the neural tangent kernel: their terms from a Jacobian, and what they refuse."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import sigeo
from sigeo import InputError, proxies
from sigeo.capture import select
from tests.sigeo.models import golden_net, image_batches


def eigenvalues(model, images):
    """Of the kernel of summed outputs, over the weights of layers."""
    weights = list(select(model, "layers").values())
    rows = []
    for b in range(len(images)):
        grads = torch.autograd.grad(model(images[b : b + 1]).sum(), weights)
        rows.append(torch.cat([g.flatten() for g in grads]))
    j = torch.stack(rows)
    return torch.linalg.eigvalsh(j @ j.t())


def test_terms_are_means_over_batches():
    torch.manual_seed(0)
    model, batches = golden_net().double().eval(), image_batches(3, 9, torch.float64)
    options = {"samples": 6, "batches": 3, "batch_norm": "refuse"}
    wanted = [proxies.get(name, **options) for name in ("ntk_min_eig", "ntk_cond")]
    scores = sigeo.score(model, batches, wanted)
    values = torch.stack([eigenvalues(model, images[:6]) for images, _ in batches])
    smallest, largest = values[:, 0], values[:, -1]
    assert scores["ntk_min_eig"].value == pytest.approx(float(smallest.mean()), rel=1e-8)
    assert scores["ntk_cond"].value == pytest.approx(-float((largest / smallest).mean()), rel=1e-8)
    terms = scores["ntk_min_eig"].terms
    assert terms["largest"] == pytest.approx(float(largest.mean()))
    assert terms["trace"] == pytest.approx(float(values.sum(1).mean()))
    assert not scores["ntk_min_eig"].notes


def test_coupled_rows_are_an_option():
    torch.manual_seed(0)
    model, batches = golden_net().double().train(), image_batches(1, 8, torch.float64)
    wanted = proxies.get("ntk_cond", samples=8, batches=1, batch_norm="coupled")
    weights = list(select(model, "layers").values())
    outputs = model(batches[0][0]).sum(1)
    grads = [torch.autograd.grad(y, weights, retain_graph=True) for y in outputs]
    j = torch.stack([torch.cat([g.flatten() for g in row]) for row in grads])
    values = torch.linalg.eigvalsh(j @ j.t())
    score = sigeo.score(model, batches, [wanted])["ntk_cond"]
    assert score.value == pytest.approx(-float(values[-1] / values[0]), rel=1e-8)


def test_batch_norm_in_training_counts_contributions_and_the_model_stays_as_it_was():
    torch.manual_seed(0)
    model, batches = golden_net(), image_batches(3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    scores = sigeo.score(model, batches, ["ntk_min_eig", "ntk_cond"])
    assert all(score.finite for score in scores.values())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_equal_samples_are_unresolved():
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    images = torch.randn(1, 3, 2, 2).expand(4, -1, -1, -1)
    wanted = proxies.get("ntk_cond", samples=4, batches=1)
    score = sigeo.score(model, [images], [wanted])["ntk_cond"]
    assert score.notes == ("smallest eigenvalue unresolved in 1 of 1 batches",)
    assert score.value == pytest.approx(-1 / (4 * torch.finfo(torch.float32).eps))


def test_a_network_without_gradients_is_not_finite():
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    nn.init.zeros_(model[1].weight)
    score = sigeo.score(model, [torch.zeros(4, 3, 2, 2)] * 3, ["ntk_cond"])["ntk_cond"]
    assert score.value == -math.inf
    assert not score.finite


def test_what_is_refused():
    with pytest.raises(InputError, match="samples: a kernel needs at least 2, got 1"):
        proxies.get("ntk_cond", samples=1)
    with pytest.raises(InputError, match="batches: must be at least 1, got 0"):
        proxies.get("ntk_cond", batches=0)
    with pytest.raises(InputError, match="ntk_cond needs at least 3 batches, got 2"):
        sigeo.score(golden_net(), image_batches(2), ["ntk_cond"])


def test_a_model_without_trainable_weights_is_not_finite():
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 3)).requires_grad_(False)
    score = sigeo.score(model, [torch.randn(4, 3, 2, 2)] * 3, ["ntk_cond"])["ntk_cond"]
    assert not score.finite
    assert score.notes[0] == "no weight of a layer asks for a gradient"


def test_eigenvalues_are_resolved_as_the_measured_weights_are():
    class Shifted(nn.Module):
        """With whole numbers as the first of its parameters, and float64 after it."""

        def __init__(self):
            super().__init__()
            self.shift = nn.Parameter(torch.tensor([1, 2, 3]), requires_grad=False)
            self.linear = nn.Linear(12, 3, dtype=torch.float64)

        def forward(self, x):
            return self.linear(x.flatten(1)) + self.shift

    torch.manual_seed(0)
    model, batches = Shifted(), [torch.randn(4, 3, 2, 2, dtype=torch.float64)] * 3
    plain = nn.Sequential(nn.Flatten(), model.linear)
    assert sigeo.score(model, batches, ["ntk_cond"]) == sigeo.score(plain, batches, ["ntk_cond"])
