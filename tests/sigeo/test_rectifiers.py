"""Which calls are rectifiers, whose samples are followed, and what is left as it was."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sigeo import InputError
from sigeo.capture import rectifier_inputs
from tests.sigeo.models import assert_unchanged, golden_net, image_batches, state_of


class Body(nn.Module):
    """A linear layer and what a function of the module and its output makes of that."""

    def __init__(self, function, **modules):
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.scale = nn.Parameter(torch.randn(4))
        self.parts = nn.ModuleDict(modules)
        self.function = function

    def forward(self, x):
        return self.function(self, self.linear(x))


def seen(model, inputs):
    found = []
    rectifier_inputs(model, inputs, lambda t: found.append(t.flatten(1).clone()))
    return found


def function(f, **modules):
    return lambda: Body(f, **modules)


RECTIFIERS = {
    "F.relu": function(lambda m, x: F.relu(x)),
    "F.relu in place": function(lambda m, x: F.relu(x, inplace=True)),
    "F.relu_": function(lambda m, x: F.relu_(x)),
    "torch.relu": function(lambda m, x: torch.relu(x)),
    "torch.relu_": function(lambda m, x: torch.relu_(x)),
    "x.relu": function(lambda m, x: x.relu()),
    "x.relu_": function(lambda m, x: x.relu_()),
    "F.relu6": function(lambda m, x: F.relu6(x, inplace=True)),
    "F.leaky_relu": function(lambda m, x: F.leaky_relu(x, 0.1)),
    "F.leaky_relu in place": function(lambda m, x: F.leaky_relu(x, 0.1, inplace=True)),
    "F.prelu": function(lambda m, x: F.prelu(x, torch.tensor([-0.5]))),
    "F.rrelu": function(lambda m, x: F.rrelu(x, training=True)),
    "F.hardtanh from 0": function(lambda m, x: F.hardtanh(x, min_val=0, max_val=2)),
    "nn.ReLU": function(lambda m, x: m.parts["a"](x), a=nn.ReLU()),
    "nn.ReLU in place": function(lambda m, x: m.parts["a"](x), a=nn.ReLU(inplace=True)),
    "nn.ReLU6": function(lambda m, x: m.parts["a"](x), a=nn.ReLU6(inplace=True)),
    "nn.LeakyReLU": function(lambda m, x: m.parts["a"](x), a=nn.LeakyReLU(0.1, inplace=True)),
    "nn.PReLU": function(lambda m, x: m.parts["a"](x), a=nn.PReLU(init=-0.5)),
    "nn.RReLU": function(lambda m, x: m.parts["a"](x), a=nn.RReLU(inplace=True)),
}


@pytest.mark.parametrize("name", RECTIFIERS)
def test_rectifiers_are_seen_with_what_they_are_given(name):
    model, x = RECTIFIERS[name](), torch.randn(5, 4)
    (given,) = seen(model, x)
    assert torch.equal(given, model.linear(x).detach())


@pytest.mark.parametrize("f", [F.gelu, F.elu, F.silu, F.hardtanh, torch.tanh, F.softplus])
def test_others_are_none(f):
    assert not seen(Body(lambda m, x: f(x)), torch.randn(5, 4))


def test_a_module_that_is_called_twice_counts_twice():
    model = Body(lambda m, x: m.parts["a"](m.linear(m.parts["a"](x))), a=nn.ReLU())
    assert len(seen(model, torch.randn(5, 4))) == 2


def test_compiled_modules_run_as_they_were_written():
    model = torch.compile(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), backend="eager")
    assert len(seen(model, torch.randn(5, 4))) == 1


def test_the_feed_forward_part_of_an_encoder_layer_is_seen_without_gradients():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    (given,) = seen(layer, torch.randn(5, 3, 8))
    assert given.shape == (5, 3 * 16)


@pytest.mark.parametrize(
    ("f", "as_rows"),
    [
        (lambda m, x: F.relu(x.t()), lambda y: y),
        (lambda m, x: F.relu(x.view(-1, 2)), lambda y: y),  # two rows a sample
        (lambda m, x: F.relu(torch.cat([x, -x])), lambda y: torch.cat([y, -y], 1)),
        (lambda m, x: F.relu(x[:, None].expand(-1, 3, -1)), lambda y: y.repeat(1, 3)),
    ],
    ids=["samples second", "samples split", "samples twice", "expanded"],
)
@pytest.mark.parametrize("samples", [3, 4])  # four is also the number of features
def test_the_samples_are_followed(f, as_rows, samples):
    model, x = Body(f), torch.randn(samples, 4)
    (given,) = seen(model, x)
    assert torch.equal(given, as_rows(model.linear(x).detach()))


def test_what_is_the_same_for_every_sample_does_not_count():
    model = Body(lambda m, x: F.relu(F.relu(m.scale) * x) + F.relu(torch.zeros(4)))
    assert len(seen(model, torch.randn(5, 4))) == 1


class Doubled(torch.autograd.Function):
    """A function whose inside nobody follows."""

    @staticmethod
    def forward(ctx, x):
        return torch.from_numpy(2 * x.numpy())


@pytest.mark.parametrize(
    ("f", "message"),
    [
        (lambda m, x: F.relu(x @ x.t()), r"relu of shape \[5, 5\] gets: a product of samples with"),
        (lambda m, x: F.relu(x.sum(0)), r"relu of shape \[4\] gets: a reduction over the samples"),
        (lambda m, x: F.relu(Doubled.apply(x)), "gets: what made it is not followed"),
    ],
)
def test_samples_that_are_mixed_or_not_followed_are_refused(f, message):
    with pytest.raises(InputError, match=message) as error:
        seen(Body(f), torch.randn(5, 4))
    assert "\n" not in str(error.value)


def test_modules_that_torch_jit_compiled_are_refused():
    model = nn.Sequential(torch.jit.script(nn.Sequential(nn.Linear(4, 4), nn.ReLU())))
    with pytest.raises(InputError, match="torch.jit compiled it"):
        seen(model, torch.randn(5, 4))


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ((torch.randn(5, 4), torch.randn(4, 4)), r"one number of samples .* got \[4, 5\]"),
        (torch.randn(0, 4), "at least one sample, got none"),
        (torch.tensor(1.0), "no tensor that has one"),
    ],
)
def test_inputs_without_one_number_of_samples_are_refused(inputs, message):
    with pytest.raises(InputError, match=message):
        seen(Body(lambda m, x: x), inputs)


@pytest.mark.parametrize("fails", [False, True])
def test_model_inputs_and_random_states_come_back_as_they_were(fails):
    model = golden_net()
    model.insert(0, nn.ReLU(inplace=True))
    model.insert(3, nn.Dropout(0.5)).eval()
    model[1].weight.grad = torch.ones_like(model[1].weight)
    before, ((images, _),) = state_of(model), image_batches(1)
    given, random = images.clone(), torch.get_rng_state()
    calls = []

    def see(rectified):
        calls.append(rectified)
        assert model.training and not torch.is_grad_enabled()
        if fails and len(calls) == 3:
            raise RuntimeError("stop")

    if fails:
        with pytest.raises(RuntimeError, match="stop"):
            rectifier_inputs(model, images, see)
    else:
        rectifier_inputs(model, images, see)
    assert len(calls) == 3
    assert_unchanged(model, before)
    assert torch.equal(images, given) and not any(m.training for m in model.modules())
    assert torch.equal(random, torch.get_rng_state())
    assert torch.equal(model[1].weight.grad, torch.ones_like(model[1].weight))
    assert not any(vars(t) for t in [images, *model.parameters(), *model.buffers()])
