"""GraSP: the whole Hessian spelled out, and networks on which it is delicate."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

import sigeo
from tests.sigeo.models import Recurrent, Unreached, golden_net, image_batches


def grasp(model, batches, **options):
    return sigeo.score(model, batches, ["grasp"], **options)["grasp"]


def spelled_out(model, images, labels, names) -> float:
    """- theta^T H g from the whole Hessian over the weights of ``names``, in train mode."""
    values = dict(model.named_parameters())
    shapes = [values[name].shape for name in names]

    def loss(flat):
        parts = flat.split([shape.numel() for shape in shapes])
        weights = {n: p.view(s) for n, p, s in zip(names, parts, shapes, strict=True)}
        buffers = {n: b.clone() for n, b in model.named_buffers()}
        return F.cross_entropy(functional_call(model, weights | buffers, (images,)), labels)

    theta = torch.cat([values[name].detach().flatten() for name in names])
    gradient = torch.autograd.functional.jacobian(loss, theta)
    hessian = torch.autograd.functional.hessian(loss, theta)
    return -float(theta @ hessian @ gradient)


def smooth_net():
    """The golden network with smooth activations, so that its Hessian is not of pieces."""
    torch.manual_seed(0)
    net = golden_net().double()
    return nn.Sequential(*(nn.Softplus() if isinstance(m, nn.ReLU) else m for m in net))


@pytest.mark.parametrize("memory_format", ["preserve", "auto"])
@pytest.mark.parametrize("smooth", [True, False])
def test_grasp_equals_the_whole_hessian(smooth, memory_format):
    torch.manual_seed(0)
    model = smooth_net() if smooth else golden_net().double()
    batches = image_batches(1, dtype=torch.float64)
    expected = spelled_out(model, *batches[0], ["0.weight", "3.weight", "7.weight"])
    score = grasp(model, batches, memory_format=memory_format)
    assert score.finite and score.value == pytest.approx(expected, rel=1e-10)


def test_only_the_first_batch_counts():
    model, batches = smooth_net(), image_batches(3, dtype=torch.float64)
    assert grasp(model, batches) == grasp(model, batches[:1])


def test_the_model_comes_back_as_it_was():
    model, batches = smooth_net(), image_batches(1, dtype=torch.float64)
    model.insert(2, nn.Dropout(0.5)).eval()
    model[0].weight.grad = torch.ones_like(model[0].weight)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.get_rng_state()
    first, second = grasp(model, batches), grasp(model, batches)
    assert first == second and first.finite
    assert not any(module.training for module in model.modules())
    assert torch.equal(model[0].weight.grad, torch.ones_like(model[0].weight))
    assert model[0].bias.grad is None and torch.equal(random, torch.get_rng_state())
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_it_is_the_same_without_grad_mode_and_beside_other_proxies():
    model, batches = smooth_net(), image_batches(2, dtype=torch.float64)
    alone = grasp(model, batches)
    with torch.no_grad():
        assert grasp(model, batches) == alone
    beside = sigeo.score(model, batches, ["zico", "grasp", "snip", "fisher_trace"])["grasp"]
    assert beside == alone


def test_a_loss_linear_in_the_weights_has_no_curvature():
    model, batch = nn.Linear(3, 1), (torch.randn(4, 3), torch.ones(4, 1))
    score = grasp(model, [batch], loss_fn=lambda y, t: (y * t).mean())
    assert score.finite and score.value == 0


def test_layers_that_are_frozen_or_not_reached_count_nothing():
    model, batches = Unreached().double(), image_batches(1, dtype=torch.float64)
    used = ["used.weight", "head.weight"]
    expected = spelled_out(model, *batches[0], used)
    assert grasp(model, batches).value == pytest.approx(expected, rel=1e-10)
    model.used.weight.requires_grad_(False)
    expected = spelled_out(model, *batches[0], ["head.weight"])
    assert grasp(model, batches).value == pytest.approx(expected, rel=1e-10)
    for module in (model.head, model.dead):
        module.weight.requires_grad_(False)
    assert grasp(model, batches).value == 0
    model.requires_grad_(False)
    score = grasp(model, batches)
    assert not score.finite and "depends on no parameter" in score.notes[0]


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        return self.head(self.layer(x).mean(1))


def test_attention_has_second_derivatives():
    torch.manual_seed(0)
    model = Attention().double()
    images, labels = torch.randn(6, 4, 8, dtype=torch.float64), torch.arange(6) % 5
    names = ["layer.self_attn.out_proj.weight", "layer.linear1.weight", "layer.linear2.weight"]
    expected = spelled_out(model, images, labels, [*names, "head.weight"])
    assert grasp(model, [(images, labels)]).value == pytest.approx(expected, rel=1e-9)


def test_recurrent_networks_are_measured():
    batch = (torch.randint(0, 20, (6, 7)), torch.arange(6) % 5)
    assert grasp(Recurrent(), [batch]).finite


class Once(torch.autograd.Function):
    """The identity, differentiable once."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        return grad.clone()


class OnceNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Linear(6, 5)

    def forward(self, x):
        return Once.apply(self.body(x))


def test_a_network_without_second_derivatives_is_not_finite_and_says_why():
    score = grasp(OnceNet(), [(torch.randn(4, 6), torch.arange(4))])
    assert score.value == -math.inf and not score.finite
    assert "the second derivative fails" in score.notes[0]


def test_a_loss_of_several_numbers_is_refused():
    batch = (torch.randn(4, 6), torch.arange(4))
    with pytest.raises(sigeo.InputError, match="loss_fn: expected one number, .* got shape"):
        grasp(nn.Linear(6, 5), [batch], loss_fn=lambda y, t: y)
