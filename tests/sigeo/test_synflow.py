"""SynFlow and its variant by their formulas, beyond float64, and what they note."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import sigeo
from sigeo import InputError, spaces
from tests.sigeo.models import golden_net, image_batches


def test_synflow_is_its_formula():
    torch.manual_seed(0)
    model = golden_net()
    got = sigeo.score(model, image_batches(1), ["synflow"])["synflow"].value
    linear = nn.Sequential(*(m for m in golden_net() if not isinstance(m, nn.BatchNorm2d))).double()
    state = {k: v.double().abs() for k, v in model.state_dict().items() if not k.startswith("1.")}
    renamed = dict(zip(linear.state_dict(), state.values(), strict=True))
    linear.load_state_dict(renamed)
    linear(torch.ones(1, 3, 8, 8, dtype=torch.float64)).sum().backward()
    weights = [m.weight for m in linear if hasattr(m, "weight")]
    expected = math.log(sum(float((w * w.grad).abs().sum()) for w in weights))
    assert got == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("proxy", ["synflow", "logsynflow"])
def test_layers_of_a_checkpoint_count_as_others(proxy):
    class Checkpointed(nn.Module):
        def __init__(self, reentrant):
            super().__init__()
            self.net = golden_net()
            self.reentrant = reentrant

        def forward(self, x):
            inner = self.net[0](x)
            inner = checkpoint(self.net[1:4], inner, use_reentrant=self.reentrant)
            return self.net[4:](inner)

    def scored(model):
        return sigeo.score(model, image_batches(1), [proxy])[proxy]

    torch.manual_seed(0)
    plain = scored(golden_net())
    torch.manual_seed(0)
    assert scored(Checkpointed(reentrant=False)) == plain
    refused = scored(Checkpointed(reentrant=True))
    assert not refused.finite and "use_reentrant" in refused.notes[0]


def test_synflow_of_a_deep_network_does_not_overflow():
    model = nn.Sequential(*(nn.Conv2d(64, 64, 3, padding=1) for _ in range(60)))
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(1.0)
    value = sigeo.score(model, [(torch.randn(1, 64, 8, 8), torch.zeros(1))], ["synflow"])[
        "synflow"
    ].value
    assert 300 < value < 500  # e^300 is far above the largest float32


def test_synflow_is_finite_where_its_products_are_beyond_float64():
    def synflow(weights):
        model = nn.Sequential(*(nn.Linear(1, 1, bias=False) for _ in weights)).double()
        with torch.no_grad():
            for layer, weight in zip(model, weights, strict=True):
                layer.weight.fill_(weight)
        return sigeo.score(model, [torch.ones(2, 1)], ["synflow"])["synflow"]

    assert synflow([1e200, 1e150]).value == pytest.approx(math.log(2) + 350 * math.log(10))
    lost = synflow([1e200] * 3)  # here the gradients themselves are infinite
    assert not lost.finite and "beyond the largest float64" in lost.notes[0]


def test_synflow_says_how_many_layers_a_saturated_activation_cuts_off():
    def flow(*activations):
        layers = [nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False), nn.Linear(4, 2)]
        for layer in layers:
            nn.init.constant_(layer.weight, 3.0)
        model = nn.Sequential(layers[0], activations[0], layers[1], activations[1], layers[2])
        return sigeo.score(model, [torch.ones(2, 4)], ["synflow", "logsynflow"])

    for score in flow(nn.ReLU6(), nn.ReLU6()).values():
        assert score.finite and score.notes[0].startswith("2 of 3 layers carry no flow")
    for score in flow(nn.ReLU6(), nn.ReLU()).values():
        assert score.notes[0].startswith("1 of 3 layers carry no flow")
    assert all(score.notes == () for score in flow(nn.ReLU(), nn.ReLU()).values())


def test_synflow_notes_no_layer_that_the_output_is_not_computed_from():
    space = spaces.get("nasbench201", spaces.InputShape(1, 8, 10), channels=2, cells=1)
    cell = "|nor_conv_3x3~0|+|none~0|{}~1|+|skip_connect~0|none~1|none~2|"
    for operation in ("none", "nor_conv_1x1"):
        model = space.build(space.parse(cell.format(operation)), seed=0)
        scores = sigeo.score(model, [torch.ones(2, 1, 8, 8)], ["synflow", "logsynflow"])
        assert all(score.finite and score.notes == () for score in scores.values())


def test_synflow_says_how_many_layers_have_an_input_of_zero():
    class Zero(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4, bias=False)

        def forward(self, x):
            return x + self.layer(0 * x)

    model = nn.Sequential(Zero(), nn.Linear(4, 2))
    for score in sigeo.score(model, [torch.ones(2, 4)], ["synflow", "logsynflow"]).values():
        assert score.finite and score.notes[0].startswith("1 of 2 layers carry no flow")
        assert score.notes[0].endswith("or the input is 0")


def test_logsynflow_is_its_formula():
    torch.manual_seed(0)
    model = golden_net()
    got = sigeo.score(model, image_batches(1), ["logsynflow"])["logsynflow"]
    linear = nn.Sequential(*(m for m in golden_net() if not isinstance(m, nn.BatchNorm2d))).double()
    state = {k: v.double().abs() for k, v in model.state_dict().items() if not k.startswith("1.")}
    linear.load_state_dict(dict(zip(linear.state_dict(), state.values(), strict=True)))
    linear(torch.ones(1, 3, 8, 8, dtype=torch.float64)).sum().backward()
    weights = [m.weight for m in linear if hasattr(m, "weight")]
    expected = sum(float((w.detach() * (w.grad + 1).log()).abs().sum()) for w in weights)
    assert got.value == pytest.approx(expected, rel=1e-12) and got.finite


class Dropping(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.drop = nn.Linear(6, 5), nn.Dropout(0.5)

    def forward(self, x):
        return self.drop(self.body(x)), {"aux": x}


def test_synflow_draws_nothing_and_takes_any_output():
    model, images = Dropping().train(), torch.rand(4, 6)
    before = torch.get_rng_state()
    first, second = (sigeo.score(model, [images], ["synflow"]) for _ in range(2))
    assert first == second and first["synflow"].finite and model.training
    assert torch.equal(before, torch.get_rng_state())
    assert first["synflow"].value == pytest.approx(
        math.log(model.body.weight.abs().sum()), rel=1e-6
    )


class Object(nn.Module):
    """Gives what holds no tensor that could be seen."""

    def __init__(self):
        super().__init__()
        self.body = nn.Linear(6, 5)

    def forward(self, x):
        return SimpleNamespace(logits=self.body(x))


@pytest.mark.parametrize("name", ["synflow", "logsynflow", "jacov"])
def test_an_output_without_tensors_is_refused(name):
    with pytest.raises(InputError, match="expected an output of real numbers.* got SimpleName"):
        sigeo.score(Object(), [torch.rand(4, 6)], [name])


class Single(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Linear(6, 5)

    def forward(self, x):
        return self.body(x) @ torch.ones(5, 5)


def test_synflow_of_a_network_that_takes_no_float64_is_not_finite():
    score = sigeo.score(Single(), [torch.rand(4, 6)], ["synflow"])["synflow"]
    assert not score.finite and "does not run on ones in float64" in score.notes[0]


class Bytes(nn.Module):
    """A network that makes numbers of its dtype of bytes."""

    def __init__(self):
        super().__init__()
        self.body = nn.Linear(6, 5)

    def forward(self, x):
        return self.body(x.float() / 255)


def test_synflow_of_a_network_that_takes_bytes_is_not_finite():
    bytes_ = torch.randint(0, 256, (4, 6), dtype=torch.uint8)
    scores = sigeo.score(Bytes(), [bytes_], ["synflow", "params"])
    assert "does not run on ones in float64" in scores["synflow"].notes[0]
    assert not scores["synflow"].finite and scores["params"].finite
