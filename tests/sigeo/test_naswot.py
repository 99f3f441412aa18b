"""NASWOT: matrices of codes spelled out, and batches on which the kernel is singular."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import sigeo
from sigeo import InputError, data, proxies, spaces
from tests.sigeo.models import golden_net, image_batches
from tests.sigeo.test_nasbench201 import published


def naswot(model, inputs):
    return sigeo.score(model, [inputs], ["naswot"])["naswot"]


def by_hooks(model, images) -> float:
    """log|det K| from the codes of modules named ReLU, as the published code sees them."""
    codes = []
    model.train()
    hooks = [
        m.register_forward_hook(lambda m, given, y: codes.append(given[0].flatten(1) > 0))
        for m in model.modules()
        if "ReLU" in type(m).__name__
    ]
    with torch.no_grad():
        model(images)
    for hook in hooks:
        hook.remove()
    kernel = np.zeros((len(images), len(images)))
    for code in codes:
        x = code.numpy().astype(np.float64)
        kernel += x @ x.T + (1 - x) @ (1 - x).T
    return float(np.linalg.slogdet(kernel)[1])


def deep(activation=nn.ReLU):
    return nn.Sequential(
        nn.Conv2d(3, 5, 3, padding=1), nn.BatchNorm2d(5), activation(),
        nn.Conv2d(5, 7, 3, stride=2), activation(),
        nn.Conv2d(7, 3, 1), nn.BatchNorm2d(3), activation(),
        nn.Flatten(), nn.Linear(27, 4),
    )  # fmt: skip


KINDS = {
    "relu": nn.ReLU,
    "in place": lambda: nn.ReLU(inplace=True),
    "relu6": nn.ReLU6,
    "leaky": lambda: nn.LeakyReLU(0.2),
    "prelu": lambda: nn.PReLU(init=-0.3),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("samples", [2, 13, 40])
def test_it_is_the_determinant_of_agreeing_codes(kind, samples):
    torch.manual_seed(0)
    model, ((images, _),) = deep(KINDS[kind]), image_batches(1, samples)
    expected = by_hooks(model, images)
    score = naswot(model.eval(), images)  # in train mode whatever mode the model is in
    assert score.finite and score.value == pytest.approx(expected, rel=1e-9)


class Functional(nn.Module):
    """The layers of `deep` with functions between them."""

    def __init__(self, model):
        super().__init__()
        self.layers = nn.ModuleList(m for m in model if not isinstance(m, nn.ReLU))

    def forward(self, x):
        first, norm, second, third, last_norm, flat, head = self.layers
        x = third(torch.relu_(second(F.relu(norm(first(x))))))
        return head(flat(last_norm(x).relu()))


def test_functions_count_as_modules_do():
    torch.manual_seed(0)
    model, ((images, _),) = deep(), image_batches(1)
    assert naswot(Functional(model), images).value == naswot(model, images).value


def test_a_rectifier_that_is_called_twice_counts_twice():
    torch.manual_seed(0)
    relu, images = nn.ReLU(), torch.randn(5, 3, 8, 8)
    shared = nn.Sequential(nn.Conv2d(3, 4, 3), relu, nn.Conv2d(4, 4, 3), relu)
    own = nn.Sequential(shared[0], nn.ReLU(), shared[2], nn.ReLU())
    assert naswot(shared, images).value == naswot(own, images).value
    twice = nn.Sequential(nn.Flatten(), nn.Linear(192, 30), nn.ReLU(), nn.ReLU())
    once = twice[:3]
    gain = naswot(twice, images).value - naswot(once, images).value
    assert gain == pytest.approx(5 * math.log(2))  # the kernel is twice that of one call


def test_the_order_of_the_samples_does_not_matter():
    torch.manual_seed(0)
    model, ((images, _),) = deep(), image_batches(1)
    turned = naswot(model, images[torch.randperm(len(images))])
    assert turned.value == pytest.approx(naswot(model, images).value, rel=1e-9)


def test_one_sample_has_the_logarithm_of_the_number_of_values():
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 30), nn.ReLU())
    assert naswot(model, torch.randn(1, 3, 2, 2)).value == pytest.approx(math.log(30))


def test_equal_images_are_not_finite_and_counted():
    torch.manual_seed(0)
    model, ((images, _),) = deep(), image_batches(1)
    images[[3, 5, 9]] = images[[1, 1, 2]]
    score = naswot(model, images)
    assert score.value == -math.inf and not score.finite
    assert score.notes == ("3 of 16 samples have the code of another", "naswot is -inf")


def test_more_samples_than_values_can_tell_apart_are_not_finite():
    """Codes of n values span n + 1 dimensions at most, distinct as they may be."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU())
    nn.init.eye_(model[0].weight)
    nn.init.zeros_(model[0].bias)
    signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * 6)
    score = naswot(model, signs[torch.randperm(64)[:20]])
    assert score.value == -math.inf
    assert score.notes[0] == "the codes of 20 samples, of 6 values, are linearly dependent"


@pytest.mark.parametrize("name", ["naswot", "swap", "linear_regions"])
def test_networks_without_a_rectifier_are_not_finite(name):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GELU(), nn.Flatten(), nn.LazyLinear(2))
    model(torch.randn(2, 3, 3, 3))
    score = sigeo.score(model, [torch.randn(4, 3, 3, 3)], [name])[name]
    assert score.value == -math.inf and score.notes[0].startswith("no rectifier (ReLU")


@pytest.mark.parametrize("name", ["naswot", "swap", "linear_regions"])
def test_samples_that_are_not_followed_are_refused(name):
    class Mixed(nn.Module):
        def forward(self, x):
            return F.relu(x - x.mean(0)) + F.relu(x.mean(0))

    with pytest.raises(InputError, match="not known where the samples are in what a relu"):
        sigeo.score(Mixed(), [torch.randn(4, 3, 3, 3)], [name])


def test_labels_are_not_needed_and_other_proxies_do_not_change_it():
    model, batches = golden_net(), image_batches(2)
    alone = naswot(model, batches[0][0])
    beside = sigeo.score(model, batches, ["zico", "swap", "naswot"])
    assert beside["naswot"] == alone and alone.finite


WITH_DEAD_ENDS = (
    # An edge without effect; a ReLU of zeros; edges that share a ReLU where nobody counts.
    "|nor_conv_3x3~0|+|nor_conv_3x3~0|none~1|+|none~0|none~1|nor_conv_1x1~2|",
    "|none~0|+|skip_connect~0|nor_conv_3x3~1|+|nor_conv_3x3~0|none~1|avg_pool_3x3~2|",
    "|nor_conv_3x3~0|+|nor_conv_1x1~0|none~1|+|nor_conv_3x3~0|nor_conv_1x1~1|nor_conv_1x1~2|",
)


@pytest.mark.parametrize("text", WITH_DEAD_ENDS)
def test_cells_count_every_rectifier_of_the_published_network(text):
    space = spaces.get("nasbench201", spaces.InputShape(3, 8, 10), channels=4, cells=1)
    network = space.build(space.parse(text), seed=0)
    as_published, ((images, _),) = published(network), image_batches(1)
    names = ["naswot", "swap"]
    scores = sigeo.score(network, [images], names, memory_format="preserve")
    expected = sigeo.score(as_published, [images], names, memory_format="preserve")
    assert scores["swap"] == expected["swap"]
    assert scores["naswot"].value == pytest.approx(expected["naswot"].value, rel=1e-9)
    assert all(block.abridged for block in network.blocks if hasattr(block, "abridged"))
    assert all(proxies.get(name).whole_network for name in (*names, "linear_regions"))


def test_subnets_of_a_supernet_are_scored_as_by_themselves():
    digits = data.load("digits")
    space = spaces.get("nasbench201", spaces.InputShape(1, 8, 10), channels=4, cells=1)
    batch, net = digits.batch(digits.order(0)[:16]), space.supernet(seed=0)
    archs = spaces.distinct(space, 4, random.Random(0))
    wanted = ["naswot", "swap", proxies.get("linear_regions", samples=100)]
    many = sigeo.score_many(net, archs, [batch], wanted, memory_format="preserve")
    for arch, scores in zip(archs, many, strict=True):
        alone = sigeo.score(net.subnet(arch, whole=True), [batch], wanted, memory_format="preserve")
        assert scores == alone, arch
    assert len({scores["naswot"].value for scores in many}) == 4


@pytest.mark.parametrize("name", ["naswot", "swap", "linear_regions"])
def test_activations_that_are_not_finite_have_no_codes(name):
    model = nn.Sequential(nn.Flatten(), nn.Linear(27, 8), nn.ReLU(), nn.Linear(8, 2))
    batch = (torch.randn(4, 3, 3, 3), torch.tensor([0, 1, 0, 1]))
    assert sigeo.score(model, [batch], [name])[name].value > -math.inf
    with torch.no_grad():
        model[1].bias[0] = math.nan
    score = sigeo.score(model, [batch], [name])[name]
    assert not score.finite
    assert "what rectifiers are given is not finite" in score.notes
