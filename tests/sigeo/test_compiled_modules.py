"""Captures of models with modules that `torch.jit` compiled."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sigeo import InputError
from sigeo.capture import capture
from tests.sigeo.sample_loop import SAMPLES, check

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")


@pytest.fixture
def x():
    torch.manual_seed(0)
    return torch.randn(SAMPLES, 4)


def test_parameters_of_a_compiled_module_are_refused_when_it_is_called(x):
    for compiled in (torch.jit.script(nn.Linear(4, 4)), torch.jit.trace(nn.Linear(4, 4), x)):
        for model, name in ((nn.Sequential(nn.Linear(4, 4), compiled), "1."), (compiled, "")):
            refused = pytest.raises(InputError, match=f"{name}weight .* was compiled by torch.jit")
            with refused, capture(model):
                model(x)
            assert not compiled._forward_hooks and not compiled._forward_pre_hooks
            with torch.no_grad(), pytest.raises(InputError, match="no backward"):
                with capture(model) as stats:
                    model(x)
                stats.sample_sq_norm  # noqa: B018


def test_they_are_named_and_the_others_measured(x):
    model = nn.Sequential(nn.Linear(4, 4), torch.jit.script(nn.Linear(4, 3)))
    with capture(model, strict=False) as stats:
        model(x).square().mean().backward()
    assert set(stats.unsupported) == {"1.weight", "1.bias"}
    seen = nn.Sequential(model[0], nn.Linear(4, 3))
    seen[1].load_state_dict(model[1].state_dict())
    with capture(seen) as expected:
        seen(x).square().mean().backward()
    torch.testing.assert_close(stats["0.weight"].sq_sum, expected["0.weight"].sq_sum)


def test_one_that_is_not_called_has_gradients_of_zero(x):
    model = nn.Sequential(nn.Linear(4, 3), nn.Identity())
    model[1].unused = torch.jit.trace(nn.Linear(4, 4), x)
    labels = torch.arange(SAMPLES) % 3
    check(model, (x,), labels, F.cross_entropy, tolerance=1e-5)


def test_one_without_parameters_behind_the_last_layer_is_followed_by_none(x):
    model = nn.Sequential(nn.Linear(4, 3), torch.jit.trace(nn.ReLU(), torch.randn(5, 3)))
    check(model, (x,), torch.arange(SAMPLES) % 3, tolerance=1e-5)


def test_layers_on_a_compiled_backbone_are_refused_with_the_reason(x):
    backbone = nn.Linear(4, 4).requires_grad_(False)
    for compiled in (torch.jit.script(backbone), torch.jit.trace(backbone, x)):
        model = nn.Sequential(compiled, nn.ReLU(), nn.Linear(4, 3))
        refused = pytest.raises(InputError, match="2.weight .* by a module that torch.jit compiled")
        with refused, capture(model):
            model(x)


def test_what_a_compiled_module_makes_of_no_sample_is_a_constant(x):
    class Positions(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 3)
            self.positions = torch.jit.trace(nn.Tanh(), torch.ones(4))

        def forward(self, x):
            return self.second(self.first(x) + self.positions(torch.arange(4.0)))

    check(Positions(), (x,), torch.arange(SAMPLES) % 3, tolerance=1e-5)
