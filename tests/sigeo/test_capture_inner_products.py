"""Inner products of each sample's gradient and the parameters."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sigeo.capture import sample_inner_products
from tests.sigeo.models import golden_net, image_batches


@pytest.mark.parametrize("train", [False, True])
def test_sample_inner_products_equal_one_gradient_at_a_time(train):
    torch.manual_seed(0)
    model = golden_net().double().train(train)
    images, labels = image_batches(1, 6, torch.float64)[0]
    got = sample_inner_products(model, F.cross_entropy, images, labels)
    for b in range(6):
        loss = F.cross_entropy(model(images)[b : b + 1], labels[b : b + 1])
        grads = torch.autograd.grad(loss, list(model.parameters()))
        pairs = zip(grads, model.parameters(), strict=True)
        expected = sum((g * p).sum() for g, p in pairs)
        assert got[b].item() == pytest.approx(expected.item(), rel=1e-9)


def test_sample_products_through_group_norms_of_images_in_channels_last():
    torch.manual_seed(0)
    parts = nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)
    model = nn.Sequential(*parts).double()
    images = torch.randn(6, 3, 8, 8, dtype=torch.float64)
    images, labels = images.contiguous(memory_format=torch.channels_last), torch.arange(6) % 5
    got = sample_inner_products(model, F.cross_entropy, images, labels)
    for b in range(6):
        loss = F.cross_entropy(model(images[b : b + 1]), labels[b : b + 1])
        grads = torch.autograd.grad(loss, list(model.parameters()))
        expected = sum((g * p).sum() for g, p in zip(grads, model.parameters(), strict=True))
        assert got[b].item() == pytest.approx(expected.item(), rel=1e-9)


class TwoOutputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Linear(6, 5)

    def forward(self, x):
        y = self.body(x)
        return {"logits": y, "aux": (y.square(),)}


def test_sample_products_of_a_model_with_several_outputs():
    model = TwoOutputs()
    x, y = torch.randn(8, 6), torch.arange(8) % 5

    def loss_fn(output, labels):
        return F.cross_entropy(output["logits"], labels) + output["aux"][0].mean()

    got = sample_inner_products(model, loss_fn, x, y)
    for b in range(8):
        loss = loss_fn(model(x[b : b + 1]), y[b : b + 1])
        grads = torch.autograd.grad(loss, list(model.parameters()))
        expected = sum((g * p).sum() for g, p in zip(grads, model.parameters(), strict=True))
        assert got[b].item() == pytest.approx(expected.item(), rel=1e-5)
