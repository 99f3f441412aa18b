"""Zen-score spelled out with running statistics of its own, where features are, and its draws."""

from __future__ import annotations

import csv
import gzip
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import sigeo
from sigeo import InputError, proxies, spaces
from tests.conftest import shared_file
from tests.sigeo.models import TwoInputs, assert_unchanged, golden_net, image_batches, state_of


def zen(model, inputs, **options):
    return sigeo.score(model, [inputs], [proxies.get("zen", **options)])["zen"]


def drawn(shape, generator):
    return torch.randn(shape, generator=generator).double()


def spelled_out(images, generator, mixup=0.01, *, network=golden_net, until=5):
    """One repeat on a sequential network of its own: fresh running statistics, two passes."""
    net = network().double().train()
    with torch.no_grad():
        for module in net:
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                module.weight.copy_(drawn(module.weight.shape, generator))
                module.bias.zero_()
        x, e = drawn(images.shape, generator), drawn(images.shape, generator)
        features = net[:until]
        one, other = features(x), features(x + mixup * e)
    total = 0.0
    for b in range(len(images)):
        total += float((one[b] - other[b]).abs().sum()) / len(images)
    norms = [m for m in net if isinstance(m, nn.BatchNorm2d)]
    return math.log(total), sum(math.log(math.sqrt(m.running_var.mean())) for m in norms)


@pytest.mark.parametrize(("repeats", "mixup", "seed"), [(1, 0.01, 0), (3, 0.5, 7)])
def test_zen_is_its_formula(repeats, mixup, seed):
    model, images = golden_net().double(), image_batches(1, 6, torch.float64)[0][0]
    generator = torch.Generator().manual_seed(seed)
    terms = [spelled_out(images, generator, mixup) for _ in range(repeats)]
    features, norms = (sum(part) / repeats for part in zip(*terms, strict=True))
    score = zen(model, images, repeats=repeats, mixup=mixup, seed=seed)
    assert score.finite and not score.notes
    assert score.terms["features"] == pytest.approx(features, rel=1e-10)
    assert score.terms["batch_norm"] == pytest.approx(norms, rel=1e-10)
    assert score.value == pytest.approx(features + norms, rel=1e-10)


CELLS = (
    "|avg_pool_3x3~0|+|none~0|none~1|+|avg_pool_3x3~0|avg_pool_3x3~1|none~2|",
    "|nor_conv_3x3~0|+|skip_connect~0|nor_conv_3x3~1|+|none~0|avg_pool_3x3~1|nor_conv_1x1~2|",
    "|nor_conv_3x3~0|+|nor_conv_1x1~0|nor_conv_1x1~1|+|skip_connect~0|skip_connect~1|"
    "nor_conv_1x1~2|",
)


def test_it_agrees_with_the_values_of_nas_bench_suite_zero():
    with gzip.open(shared_file("data/nasbench201_ref_zen.csv.gz"), "rt", newline="") as file:
        values = {row["arch_str"]: float(row["zen_cifar10"]) for row in csv.DictReader(file)}
    space = spaces.get("nasbench201", spaces.InputShape(3, 32, 10), channels=16, cells=5)
    for arch in CELLS:
        score = zen(space.build(space.parse(arch), seed=0), torch.zeros(8, 3, 32, 32))
        assert score.value == pytest.approx(values[arch], rel=0.03), arch


def test_weights_statistics_and_modes_of_the_model_do_not_matter():
    images = image_batches(1, 6)[0][0]
    expected = zen(golden_net(), images)
    other = golden_net().eval()
    with torch.no_grad():
        for tensor in (*other.parameters(), other[1].running_mean, other[1].running_var):
            tensor.uniform_(1, 3)
    other[1].momentum = None
    assert zen(other, torch.zeros_like(images)) == expected
    untracked = golden_net()
    untracked[1] = nn.BatchNorm2d(8, affine=False, track_running_stats=False)
    assert zen(untracked, images) == expected
    dropping = golden_net().insert(3, nn.Dropout(0.5))
    assert zen(dropping, images) == expected


def test_the_model_comes_back_as_it_was_also_after_an_exception():
    class Broken(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.calls = golden_net(), None

        def forward(self, x):
            y = self.net(x)
            if self.calls is not None:
                self.calls += 1
                if self.calls == 2:
                    raise RuntimeError("broken")
            return y

    model, images = Broken().eval(), image_batches(1)[0][0]
    model.net[0].weight.grad = torch.ones_like(model.net[0].weight)
    before, random = state_of(model), torch.get_rng_state()
    assert zen(model, images).finite
    model.calls = 0
    with pytest.raises(RuntimeError, match="broken"):
        zen(model, images)
    assert_unchanged(model, before)
    assert torch.equal(random, torch.get_rng_state())
    assert not any(m.training or m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert torch.equal(model.net[0].weight.grad, torch.ones_like(model.net[0].weight))


class Pooling(nn.Module):
    """A convolution, some way to pool, a linear layer."""

    def __init__(self, pool):
        super().__init__()
        self.conv, self.relu, self.pool = nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), pool
        self.linear = nn.Linear(6, 5)

    def forward(self, x):
        return self.linear(self.pool(self.relu(self.conv(x))).flatten(1))


@pytest.mark.parametrize(
    "pool",
    [
        nn.AdaptiveAvgPool2d(1),
        nn.AvgPool2d(8),
        lambda x: F.adaptive_avg_pool2d(x, (1, 1)),
        lambda x: x.mean((2, 3)),
        lambda x: x.mean(dim=(-1, -2), keepdim=True),
        lambda x: torch.mean(x.flatten(2), -1),
        lambda x: torch.mean(input=x, dim=[2, 3]),
        lambda x: x.mean(axis=(2, 3)),
    ],
)
def test_features_are_those_before_the_global_pooling(pool):
    images = image_batches(1, 6)[0][0]
    named = zen(Pooling(nn.AdaptiveAvgPool2d(1)), images, features="relu")
    assert zen(Pooling(pool), images) == named and named.finite


def test_the_last_global_pooling_counts():
    class Excited(Pooling):
        """With squeeze and excitation, and means that pool nothing globally."""

        def forward(self, x):
            y = self.conv(x)
            y = y * torch.sigmoid(y.mean((2, 3), keepdim=True)) + y.mean(1, keepdim=True)
            y = F.avg_pool2d(self.relu(y), 2)
            output = self.linear(y.mean((2, 3)))
            return output - output.mean().mean(0) + output.mean(1, keepdim=True)

    model, images = Excited(None), image_batches(1, 6)[0][0]
    model.last = nn.Identity()
    found = zen(model, images)
    model.relu = nn.Sequential(nn.ReLU(), nn.AvgPool2d(2), nn.Upsample(scale_factor=2))
    assert found.value == pytest.approx(zen(model, images, features="relu.1").value, rel=1e-6)


class OwnLinear(nn.Linear):
    """Calls its input by another name."""

    def forward(self, features):
        return super().forward(features)


class Named(nn.Module):
    """Calls its layers with arguments by name."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.linear = nn.Conv2d(3, 4, 8), nn.BatchNorm2d(4), OwnLinear(4, 3)

    def forward(self, x):
        y = self.norm(input=self.conv(input=x))
        return self.linear(features=y.flatten(1))


def test_layers_that_are_called_by_name_are_seen():
    torch.manual_seed(0)
    named, images = Named(), image_batches(1, 6)[0][0]
    plain = nn.Sequential(named.conv, named.norm, nn.Flatten(), named.linear)
    found = zen(named, images)
    assert found == zen(plain, images) and found.finite and found.terms["batch_norm"] != 0


def test_without_a_pooling_the_input_of_the_last_linear_layer_counts():
    model = nn.Sequential(nn.Linear(4, 7), nn.Tanh(), nn.Linear(7, 3))
    x = torch.randn(6, 4)
    assert zen(model, x) == zen(model, x, features="1") != zen(model, x, features="2")


def test_features_that_are_changed_in_place_count_as_the_module_gave_them():
    images = image_batches(1, 6)[0][0]
    one, other = (
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=inplace))
        for inplace in (True, False)
    )
    assert zen(one, images, features="1") == zen(other, images, features="1")


def test_inputs_of_several_kinds_are_drawn_where_they_are_real():
    x = {"a": torch.randn(6, 4), "b": torch.randn(6, 3)}
    model = TwoInputs()
    assert zen(model, x, features="left").finite
    assert zen(model, x, features="left") != zen(model, x, features="right")


def test_networks_without_features_say_so():
    model, images = nn.Sequential(nn.Conv2d(3, 4, 3)), image_batches(1, 6)[0][0]
    score = zen(model, images)
    assert score.value == -math.inf
    assert score.notes[0].startswith("no features: the forward pass calls neither global average")
    model.aside = nn.Linear(3, 3)
    model.forward = model[0].forward
    score = zen(model, images, features="aside")
    assert not score.finite
    assert score.notes[0] == "no features: the forward pass does not call aside"


def test_features_beyond_their_dtype_are_not_finite():
    layers = [nn.Conv2d(64, 64, 3, padding=1, bias=False) for _ in range(40)]
    score = zen(nn.Sequential(nn.Conv2d(3, 64, 1), *layers), image_batches(1, 2)[0][0][:1, :, :4],
                features="40")  # fmt: skip
    assert not score.finite and score.notes[0] == "the features are 0 or beyond their dtype"


def test_what_is_refused():
    for options, message in (
        ({"repeats": 0}, "repeats: must be at least 1, got 0"),
        ({"mixup": 0}, "mixup: must be a finite number above 0, got 0"),
        ({"mixup": math.inf}, "mixup: must be a finite number above 0, got inf"),
    ):
        with pytest.raises(InputError, match=message):
            proxies.get("zen", **options)
    with pytest.raises(InputError, match="features: must be the name of a module .* got 'layer9'"):
        zen(golden_net(), image_batches(1)[0][0], features="layer9")
    recurrent = nn.Sequential(nn.Linear(3, 4), nn.LSTM(4, 4))
    with pytest.raises(InputError, match="features: must name a module that .* got a tuple"):
        zen(recurrent, torch.randn(6, 3), features="1")
    tokens = nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(12, 5))
    with pytest.raises(InputError, match="zen: needs inputs of real numbers, got none"):
        zen(tokens, torch.randint(0, 9, (4, 3)))


@pytest.mark.parametrize("names", [["grad_norm", "zen"], ["zen", "sigeo"]])
def test_autocast_keeps_no_casts_of_the_weights_that_are_drawn(names):
    model, data = golden_net().float(), [(x.float(), y) for x, y in image_batches(2)]
    with torch.autocast("cpu", torch.bfloat16):
        before = model.eval()(data[0][0])
        together = sigeo.score(model, data, names)
        alone = {name: sigeo.score(model, data, [name])[name] for name in names}
        after = model(data[0][0])
        assert torch.is_autocast_cache_enabled()
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        uncached = sigeo.score(model, data, names)
    assert torch.equal(before, after)
    for name in names:
        assert together[name].value == alone[name].value == uncached[name].value
