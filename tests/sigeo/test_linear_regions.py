"""Linear regions: codes of random inputs counted one by one, and inputs that are not drawn."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import sigeo
from sigeo import InputError, proxies
from tests.sigeo.models import Recurrent, TwoInputs, golden_net


def regions(model, inputs, **options):
    proxy = proxies.get("linear_regions", **options)
    return sigeo.score(model, [inputs], [proxy])["linear_regions"]


def thin():
    return nn.Sequential(
        nn.Conv2d(2, 2, 3, padding=1), nn.BatchNorm2d(2), nn.ReLU(),
        nn.Conv2d(2, 1, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.LazyLinear(3),
    )  # fmt: skip


def made():
    torch.manual_seed(0)
    model = thin()
    model(torch.randn(2, 2, 3, 3))
    return model.double()


@pytest.mark.parametrize("samples", [1, 50, 700])
def test_it_counts_distinct_codes_of_random_inputs(samples):
    model = made()
    images = torch.randn(samples, 2, 3, 3, generator=torch.Generator().manual_seed(4)).double()
    with torch.no_grad():
        first = model[1].train()(model[0](images))
        second = model[3](first.relu())
    codes = torch.cat([first.flatten(1) > 0, second.flatten(1) > 0], 1).numpy()
    expected = len({code.tobytes() for code in codes})
    score = regions(model, torch.zeros(7, 2, 32, 32).double(), samples=samples, seed=4)
    assert score.value == expected and score.finite
    assert expected < samples or samples < 700  # else the test would tell nothing


def test_a_line_is_cut_by_each_kink():
    """Twenty kinks on a line make twenty-one regions."""
    model = nn.Sequential(nn.Linear(1, 20), nn.ReLU())
    with torch.no_grad():
        model[0].weight.fill_(1)
        model[0].bias.copy_(torch.linspace(-1, 1, 20))
    assert regions(model, torch.zeros(1, 1), samples=2000).value == 21


def test_the_published_numbers_are_the_defaults_and_inputs_do_not_change():
    assert proxies.get("linear_regions").options == {"samples": 3000, "size": 3, "seed": 0}
    model, random = made(), torch.get_rng_state()
    first = regions(model, torch.zeros(1, 2, 3, 3).double())
    assert torch.equal(random, torch.get_rng_state())
    torch.manual_seed(9)
    assert regions(model, torch.randn(5, 2, 8, 8).double()) == first
    assert 1 < first.value <= 3000


def test_as_many_regions_as_inputs_are_noted():
    score = regions(golden_net(), torch.zeros(1, 3, 8, 8), samples=30, size=None)
    assert score.value == 30 and score.finite
    assert "each of the 30 inputs is in a region of its own" in score.notes[0]
    assert regions(golden_net(), torch.zeros(1, 3, 8, 8), samples=1, size=None).notes == ()


def test_several_inputs_are_all_drawn():
    class Rectified(TwoInputs):
        def forward(self, a, b):
            return self.left(a).relu() + self.right(b).relu()

    torch.manual_seed(0)
    model, inputs = Rectified(), {"a": torch.zeros(2, 4), "b": torch.zeros(2, 3)}
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(200, n, generator=generator) for n in (4, 3))
    with torch.no_grad():
        codes = torch.cat([model.left(a) > 0, model.right(b) > 0], 1).numpy()
    assert regions(model, inputs, samples=200).value == len({c.tobytes() for c in codes})


def test_a_network_that_does_not_run_on_the_size_is_not_finite_and_says_why():
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 3), nn.ReLU())
    score = regions(model, torch.zeros(2, 3, 8, 8))
    assert score.value == -math.inf
    assert "does not run on images of 3 by 3 (option size): mat1 and mat2" in score.notes[0]
    assert regions(model, torch.zeros(2, 3, 8, 8), size=None).finite


class OfOneSize(nn.Module):
    """A network that asserts the size of its images, as vision transformers do."""

    def __init__(self):
        super().__init__()
        self.out = nn.Linear(192, 3)

    def forward(self, x):
        torch._assert(x.shape[2] == 8, f"Input height ({x.shape[2]}) does not match model (8).")
        return self.out(x.flatten(1)).relu()


@pytest.mark.parametrize("name", ["linear_regions", "meco"])
def test_a_network_that_asserts_its_size_says_so(name):
    score = sigeo.score(OfOneSize(), [torch.zeros(2, 3, 8, 8)], [name])[name]
    assert score.value == -math.inf
    assert "does not run on" in score.notes[0] and "does not match model (8)." in score.notes[0]


def test_what_is_refused():
    with pytest.raises(InputError, match=r"draws inputs .* of real numbers, got int64 \[2, 5\]"):
        regions(Recurrent(), torch.zeros(2, 5, dtype=torch.int64))
    with pytest.raises(InputError, match="samples: must be at least 1, got 0"):
        proxies.get("linear_regions", samples=0)
    with pytest.raises(InputError, match="size: must be at least 1 or None, got 0"):
        proxies.get("linear_regions", size=0)
