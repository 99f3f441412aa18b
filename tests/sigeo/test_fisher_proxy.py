"""The proxy ``fisher`` from activations and their gradients, layer by layer and call by call."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import sigeo
from sigeo import InputError, proxies
from tests.sigeo.models import Unreached, assert_unchanged, golden_net, image_batches, state_of


def fisher(model, batches, weighting="fan_in", **options):
    proxy = proxies.get("fisher", weighting=weighting)
    return sigeo.score(model, batches, [proxy], **options)["fisher"]


class Aside(nn.Module):
    """A network beside a convolution whose output nobody uses."""

    def __init__(self, used):
        super().__init__()
        self.used, self.aside = used, nn.Conv2d(3, 2, 3)

    def forward(self, x):
        self.aside(x)
        return self.used(x)


def information(activation, gradient, channel):
    """0.5 mean_b (sum over positions of a * g)^2, one channel and sample after another."""
    a, g = activation.movedim(channel, 1), gradient.movedim(channel, 1)
    total = 0.0
    for c in range(a.shape[1]):
        for b in range(len(a)):
            total += 0.5 * float((a[b, c] * g[b, c]).sum().detach()) ** 2 / len(a)
    return total


def golden_parts(model, images, labels):
    """Information of the golden network's three layers, and the fan-in of their channels."""
    conv, norm, relu, grouped, _, pool, flat, linear = model.train()
    first = conv(images)
    second = grouped(relu(norm(first)))
    third = linear(flat(pool(relu(second))))
    loss = F.cross_entropy(third, labels)
    grads = torch.autograd.grad(loss, [first, second, third])
    parts = [information(a, g, 1) for a, g in zip([first, second, third], grads, strict=True)]
    return parts, [3 * 9, 2 * 9, 12]


@pytest.mark.parametrize("memory_format", ["preserve", "auto"])
def test_fisher_is_its_formula(memory_format):
    torch.manual_seed(0)
    model, batches = golden_net().double(), image_batches(1, 7, torch.float64)
    parts, often = golden_parts(model, *batches[0])
    one = fisher(model, batches, memory_format=memory_format)
    weighted = sum(p * n for p, n in zip(parts, often, strict=True))
    assert one.finite and one.value == pytest.approx(weighted, rel=1e-10) and not one.notes
    other = fisher(model, batches, "none", memory_format=memory_format)
    assert other.value == pytest.approx(sum(parts), rel=1e-10)


def test_the_loss_is_the_mean_of_the_batch():
    model, batches = golden_net().double(), image_batches(1, 6, torch.float64)
    mean = fisher(model, batches).value
    total = fisher(model, batches, loss_fn=lambda y, t: F.cross_entropy(y, t, reduction="sum"))
    assert total.value == pytest.approx(36 * mean, rel=1e-10)


def test_activations_that_are_changed_in_place_count_as_the_layer_gave_them():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(216, 5)).double()
    same = nn.Sequential(net[0], nn.ReLU(inplace=True), *net[2:])
    batches = image_batches(1, 4, torch.float64)
    assert fisher(net, batches) == fisher(same, batches)


def test_the_calls_of_a_layer_count_as_positions():
    torch.manual_seed(0)
    twice = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 5)).double()
    shared, tanh, head = twice

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.shared, self.head = shared, head

        def forward(self, x):
            return self.head(tanh(self.shared(tanh(self.shared(x)))))

    x, labels = torch.randn(6, 4, dtype=torch.float64), torch.arange(6) % 5
    first = shared(x)
    second = shared(tanh(first))
    output = head(tanh(second))
    grads = torch.autograd.grad(F.cross_entropy(output, labels), [first, second, output])
    calls = torch.stack([first, second], 2), torch.stack(grads[:2], 2)
    expected = 4 * information(*calls, 1) + 4 * information(output, grads[2], 1)
    assert fisher(Twice(), [(x, labels)]).value == pytest.approx(expected, rel=1e-10)


def test_the_channels_of_a_linear_layer_on_tokens_are_the_last_dimension():
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = nn.Linear(4, 3), nn.Linear(3, 5)
            self.same = nn.Conv1d(3, 2, 2)
            self.out = nn.ConvTranspose1d(2, 3, 2)

        def forward(self, x):
            y = torch.tanh(self.body(x))
            z = self.out(torch.tanh(self.same(y.transpose(1, 2))))
            return self.head(z.mean(2))

    torch.manual_seed(0)
    model, x, labels = Tokens().double(), torch.randn(6, 7, 4).double(), torch.arange(6) % 5
    one = model.body(x)
    two = model.same(torch.tanh(one).transpose(1, 2))
    three = model.out(torch.tanh(two))
    four = model.head(three.mean(2))
    acts = [one, two, three, four]
    grads = torch.autograd.grad(F.cross_entropy(four, labels), acts)
    channels, often = [2, 1, 1, 1], [4, 3 * 2, 2 * 2, 3]
    expected = sum(
        n * information(a, g, c) for n, a, g, c in zip(often, acts, grads, channels, strict=True)
    )
    assert fisher(model, [(x, labels)]).value == pytest.approx(expected, rel=1e-10)


def test_a_layer_on_one_row_for_all_samples_is_one_sample():
    class Positions(nn.Module):
        def __init__(self):
            super().__init__()
            self.place, self.head = nn.Linear(2, 4), nn.Linear(4, 5)

        def forward(self, x):
            return self.head(x + self.place(torch.ones(2)))

    model, x, labels = Positions(), torch.randn(6, 4), torch.arange(6) % 5
    place = model.place(torch.ones(2))
    output = model.head(x + place)
    grads = torch.autograd.grad(F.cross_entropy(output, labels), [place, output])
    expected = 2 * information(place[None], grads[0][None], 1) + 4 * information(
        output, grads[1], 1
    )
    assert fisher(model, [(x, labels)]).value == pytest.approx(expected, rel=1e-5)


def test_a_layer_that_the_loss_does_not_reach_counts_nothing():
    model, batches = Unreached(), image_batches(1)
    with_it = fisher(model, batches)
    assert with_it.notes == ("1 of 3 layers are not called as modules and count nothing",)
    del model.dead
    assert fisher(model, batches).value == with_it.value
    model = Aside(golden_net())
    assert fisher(model, batches) == fisher(model.used, batches)
    norm = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(192))
    assert fisher(Aside(norm), batches).value == 0


def test_a_compiled_network_counts_as_it_was_written():
    model, batches = golden_net(), image_batches(1)
    expected = fisher(model, batches)
    compiled = torch.compile(model, backend="eager")
    compiled(batches[0][0])
    assert fisher(compiled, batches) == expected


def test_frozen_weights_do_not_matter():
    model, batches = golden_net(), image_batches(1)
    expected = fisher(model, batches)
    assert fisher(model.requires_grad_(False), batches) == expected and expected.finite


def test_the_model_comes_back_as_it_was_also_after_an_exception():
    model, batches = golden_net(), image_batches(1)
    model.insert(2, nn.Dropout(0.5)).eval()
    model[0].weight.grad = torch.ones_like(model[0].weight)
    before, random = state_of(model), torch.get_rng_state()
    assert fisher(model, batches) == fisher(model, batches)

    def broken(output, labels):
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        fisher(model, batches, loss_fn=broken)
    assert_unchanged(model, before)
    assert torch.equal(random, torch.get_rng_state())
    assert not any(m.training or m._forward_hooks for m in model.modules())
    assert torch.equal(model[0].weight.grad, torch.ones_like(model[0].weight))
    assert model[0].bias.grad is None


def test_networks_on_which_it_is_not_finite_say_why():
    class NoLayers(nn.Module):
        def __init__(self):
            super().__init__()
            self.shift = nn.Parameter(torch.zeros(5))

        def forward(self, x):
            return x.flatten(1)[:, :5] + self.shift

    score = fisher(NoLayers(), image_batches(1))
    assert score.value == -math.inf
    assert score.notes[0] == "the loss is computed from no convolution or linear layer"
    model = golden_net()
    nn.init.constant_(model[0].weight, math.nan)
    assert fisher(model, image_batches(1)).notes == ("fisher is nan",)


def test_a_wrong_weighting_is_named():
    with pytest.raises(InputError, match="weighting must be one of fan_in, none, got 'all'"):
        proxies.get("fisher", weighting="all")
