"""`capture` on layers that are given something computed beside a parameter of theirs."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrize import register_parametrization

from sigeo import InputError
from sigeo.capture import capture
from tests.sigeo.sample_loop import SAMPLES, check
from tests.sigeo.zoo import CLASSES, Function


class Exp(nn.Module):
    def forward(self, weight):
        return weight.exp()


NORMS = {
    "layer": lambda: nn.LayerNorm((4, 5, 5)),
    "group": lambda: nn.GroupNorm(2, 4),
    "instance": lambda: nn.InstanceNorm2d(4, affine=True),
    "instance, frozen": lambda: nn.InstanceNorm2d(4, affine=True, track_running_stats=True).eval(),
    "batch": lambda: nn.BatchNorm2d(4).eval(),
}


def model_of(middle, **parts) -> nn.Module:
    torch.manual_seed(0)
    return Function(
        lambda m, x: m.out(middle(m, m.body(x)).tanh().mean((2, 3))),
        body=nn.Conv2d(3, 4, 2),
        w=nn.Parameter(torch.randn(4)),
        b=nn.Parameter(torch.randn(4)),
        kernel=nn.Parameter(torch.randn(4, 4, 1, 1)),
        out=nn.Linear(4, CLASSES),
        **parts,
    ).double()


def labelled():
    torch.manual_seed(1)
    return torch.randn(SAMPLES, 3, 6, 6, dtype=torch.float64), torch.arange(SAMPLES) % CLASSES


@pytest.mark.parametrize("argument", ["weight", "bias"])
@pytest.mark.parametrize("kind", NORMS)
def test_norms_with_a_parametrised_weight_or_bias(kind, argument):
    norm = NORMS[kind]()
    register_parametrization(norm, argument, Exp())
    x, labels = labelled()
    check(model_of(lambda m, z: m.norm(z), norm=norm), (x,), labels)


@pytest.mark.parametrize("kind", ["layer", "batch"])
def test_a_computed_weight_that_is_not_measured_has_its_ordinary_gradient(kind):
    norm = NORMS[kind]()
    register_parametrization(norm, "weight", Exp())
    model, (x, labels) = model_of(lambda m, z: m.norm(z), norm=norm), labelled()
    F.cross_entropy(model(x), labels).backward()
    expected = norm.parametrizations.weight.original.grad
    model.zero_grad()
    with capture(model, params="layers"):
        F.cross_entropy(model(x), labels).backward()
    torch.testing.assert_close(norm.parametrizations.weight.original.grad, expected)


def test_a_parametrised_batch_norm_in_train_mode_goes_by_the_policy():
    norm = nn.BatchNorm2d(4)
    register_parametrization(norm, "weight", Exp())
    model, (x, labels) = model_of(lambda m, z: m.norm(z), norm=norm), labelled()
    check(model.eval(), (x,), labels)
    model.train()
    with capture(model, {"sample_sq_norm"}, batch_norm="frozen") as stats:
        F.cross_entropy(model(x), labels).backward()
    with capture(model.eval(), {"sample_sq_norm"}) as expected:
        F.cross_entropy(model(x), labels).backward()
    torch.testing.assert_close(stats.sample_sq_norm, expected.sample_sq_norm)
    model.train()
    with pytest.raises(InputError, match="per_unit: a weight or bias that is computed"):
        captured(model, x, labels, batch_norm="per_unit")
    with pytest.raises(InputError, match="norm.* has batch norm on the whole batch"):
        captured(model, x, labels, batch_norm="contribution")


def captured(model, x, labels, **options):
    with capture(model, {"sum"}, **options):
        F.cross_entropy(model(x), labels).backward()


def of_batch(z):
    """What a module may compute from a batch and hold as a constant."""
    return z.mean((0, 2, 3)).detach()


def moved(m, z):
    """Running statistics that move before they are used."""
    with torch.no_grad():
        m.mean.mul_(0.9).add_(of_batch(z), alpha=0.1)
    return F.batch_norm(z, m.mean, torch.ones_like(m.mean), m.w, m.b)


def taught(m, z):
    """By a teacher that normalises by the batch."""
    with torch.no_grad():
        teacher = F.batch_norm(z, None, None, training=True)
    return z * teacher


@pytest.mark.parametrize(
    "middle",
    [
        taught,
        lambda m, z: F.batch_norm(z, of_batch(z), of_batch(z * z), m.w, m.b),
        lambda m, z: F.instance_norm(z, of_batch(z), of_batch(z * z), m.w, m.b, False),
        moved,
        lambda m, z: F.group_norm(z, 2, m.w, of_batch(z)),
        lambda m, z: F.layer_norm(z.mT.movedim(1, 3), (4,), m.w, of_batch(z)).movedim(3, 1),
        lambda m, z: F.conv2d(z, m.kernel, of_batch(z)),
        lambda m, z: F.linear(z.movedim(1, 3), m.kernel.flatten(1), of_batch(z)).movedim(3, 1),
        lambda m, z: torch.batch_norm(z, None, None, None, None, True, 0.1, 1e-5, False),
        lambda m, z: torch.native_batch_norm(z, None, None, None, None, True, 0.1, 1e-5)[0],
    ],
)
def test_constants_that_are_made_of_the_batch_mix_its_samples(middle):
    model, (x, labels) = model_of(middle), labelled()
    model.register_buffer("mean", torch.zeros(4, dtype=torch.float64))
    with pytest.raises(InputError, match="mixes the samples"):
        captured(model, x, labels)


def test_states_that_mix_the_samples_are_lost_behind_a_recurrent_layer_that_is_not_trained():
    def run(m, x):
        state = m.body(x).mean((0, 1)).expand(1, len(x), 4).contiguous()
        return m.out(m.cell(x, (state, state))[0].mean(1))

    cell = nn.LSTM(4, 4, batch_first=True).requires_grad_(False)
    model = Function(run, body=nn.Linear(4, 4), cell=cell, out=nn.Linear(4, CLASSES))
    with pytest.raises(InputError, match="out.weight .* mixes the samples"):
        captured(model, torch.randn(SAMPLES, 3, 4), torch.arange(SAMPLES) % CLASSES)


def test_weights_of_a_bag_that_mix_the_samples():
    def run(m, x, weights):
        return m.out(m.bag(x, per_sample_weights=weights / weights.sum()))

    model = Function(run, bag=nn.EmbeddingBag(9, 4, mode="sum"), out=nn.Linear(4, CLASSES))
    x, weights = torch.randint(0, 9, (SAMPLES, 3)), torch.rand(SAMPLES, 3)
    with pytest.raises(InputError, match="bag.weight .* mixes the samples"), capture(model):
        F.cross_entropy(model(x, weights), torch.arange(SAMPLES) % CLASSES).backward()


def test_attention_whose_biases_are_joined_for_it():
    def run(m, x):
        x = m.body(x).transpose(0, 1)
        joined = torch.cat([m.q.bias, m.k.bias, m.v.bias])
        output, _ = F.multi_head_attention_forward(
            x, x, x, 4, 2, torch.empty(0), joined, None, None, False, 0.0, m.last.weight,
            m.last.bias, use_separate_proj_weight=True, q_proj_weight=m.q.weight,
            k_proj_weight=m.k.weight, v_proj_weight=m.v.weight,
        )  # fmt: skip
        return m.out(output.mean(0))

    torch.manual_seed(0)
    parts = {name: nn.Linear(4, 4) for name in ("body", "q", "k", "v", "last")}
    model = Function(run, **parts, out=nn.Linear(4, CLASSES)).double()
    x = torch.randn(SAMPLES, 3, 4, dtype=torch.float64)
    check(model, (x,), torch.arange(SAMPLES) % CLASSES)
