"""Inner products of each sample's gradient and the parameters."""

from __future__ import annotations

import threading

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sigeo.capture import sample_inner_products
from sigeo.errors import InputError
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


class Normed(nn.Module):
    """Group norm as a module, as a function, and as torch's own with an input by keyword."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.linear = nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.Linear(4, 3)

    def forward(self, x):
        y = F.relu(self.norm(self.conv(x)))
        y = torch.group_norm(input=F.group_norm(y * x[:, :1, 1:-1, 1:-1], 4).exp(), num_groups=2)
        return self.linear((y * x[:, 1:2, 1:-1, 1:-1]).mean((2, 3)))


def expected_products(model, x, labels):
    found = []
    for b in range(len(x)):
        loss = F.cross_entropy(model(x[b : b + 1]), labels[b : b + 1])
        grads = torch.autograd.grad(loss, list(model.parameters()))
        found.append(sum((g * p).sum() for g, p in zip(grads, model.parameters(), strict=True)))
    return torch.stack(found).detach()


def test_products_through_group_norm_of_images_in_channels_last():
    torch.manual_seed(0)
    model, labels = Normed().double(), torch.arange(5) % 3
    images = torch.randn(5, 3, 6, 6, dtype=torch.float64).to(memory_format=torch.channels_last)
    got = sample_inner_products(model, F.cross_entropy, images, labels)
    torch.testing.assert_close(got, expected_products(model, images, labels))


def test_products_through_attention():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True)
    model = nn.Sequential(nn.Linear(6, 8), layer, nn.Flatten(), nn.Linear(32, 3)).double()
    x, labels = torch.randn(5, 4, 6, dtype=torch.float64), torch.arange(5) % 3
    got = sample_inner_products(model, F.cross_entropy, x, labels)
    torch.testing.assert_close(got, expected_products(model, x, labels))


def test_products_with_a_loss_that_adds_up_and_not_with_one_that_weighs():
    torch.manual_seed(0)
    model, x, labels = nn.Linear(6, 3), torch.randn(7, 6), torch.arange(7) % 3
    mean = sample_inner_products(model, F.cross_entropy, x, labels)
    added = sample_inner_products(model, nn.CrossEntropyLoss(reduction="sum"), x, labels)
    assert torch.equal(mean, added)
    weighted = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 3.0]))
    for loss_fn in (weighted, nn.CrossEntropyLoss(ignore_index=1)):
        with pytest.raises(InputError, match="expected the mean of the samples' losses, got one"):
            sample_inner_products(model, loss_fn, x, labels)


def test_two_threads_measure_at_once():
    models = [golden_net().eval() for _ in range(2)]
    images, labels = image_batches(1, 6)[0]
    expected = sample_inner_products(models[1], F.cross_entropy, images, labels)
    found = []

    def measure():
        found.append(sample_inner_products(models[1], F.cross_entropy, images, labels))

    other = threading.Thread(target=measure)

    def loss_fn(output, labels):
        if not other.ident:
            other.start()
            other.join(timeout=0.5)  # time to begin, and to fail
        return F.cross_entropy(output, labels)

    sample_inner_products(models[0], loss_fn, images, labels)
    other.join()
    assert len(found) == 1 and torch.equal(found[0], expected)


def test_forward_derivatives_that_are_missing_or_fail_are_told_in_a_line():
    weight_norm = nn.utils.parametrizations.weight_norm
    x, labels = torch.randn(4, 6), torch.arange(4) % 3
    for layer in (weight_norm(nn.Linear(6, 3)), weight_norm(nn.Linear(6, 3), dim=None)):
        with pytest.raises(InputError, match=r"model: .*forward (AD|grad)"):
            sample_inner_products(layer, F.cross_entropy, x, labels)


class Unwritten(nn.Linear):
    """A layer whose author has yet to write it."""

    def forward(self, input):
        raise NotImplementedError


def test_an_error_without_words_of_the_models_own_goes_through():
    with pytest.raises(NotImplementedError):
        sample_inner_products(
            Unwritten(6, 3), F.cross_entropy, torch.randn(4, 6), torch.zeros(4).long()
        )
