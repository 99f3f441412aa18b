"""A user's own elastic spaces: options that show in no shape, layers without an elastic kind."""

from __future__ import annotations

import threading
from collections import OrderedDict

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sigeo import InputError, proxies, score_many, spaces
from sigeo.capture import image_format
from sigeo.data import load
from sigeo.elastic import ElasticConv2d
from sigeo.fewshot.study import Study
from sigeo.scoring.networks import Networks, Protocol
from sigeo.scoring.standalone import Standalone, accuracy_alone
from sigeo.spaces.elastic.stack import Stack
from sigeo.supernet import WarmUp, add_gradients, evaluate
from sigeo_ext.testing import assert_close
from tests.sigeo.elastic_spaces import SHAPE, batches


class Scaled(nn.Module):
    """A function of a setting."""

    def __init__(self, setting):
        super().__init__()
        self.setting = setting

    def forward(self, x):
        function, by = self.setting
        return function(x) * by[0]


class Own(spaces.ElasticSpace):
    """A convolution, something between, a linear layer; ``between`` makes it of an option."""

    name = "own"

    def __init__(self, between, options=("a", "b"), chain=nn.Sequential, stride=lambda option: 1):
        self.between, self.chain, self.stride = between, chain, stride
        super().__init__(SHAPE, [spaces.Choice("between", options)])

    def network(self, arch, *, track):
        option = arch.options()["between"]
        stride = self.stride(option)
        pieces = OrderedDict(
            first=nn.Conv2d(1, 4, 3, padding=1),
            between=self.between(option),
            second=nn.Conv2d(4, 4, 3, padding=1, stride=stride),
            end=nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
            head=nn.Linear(4, 10),
        )
        return self.chain(pieces)

    def sizes(self):
        return {}


def activation(option):
    return {"a": nn.ReLU, "b": nn.Tanh}[option]()


SPACES = {
    "kind": Own(activation),
    "setting": Own(lambda option: nn.LeakyReLU(0.1 if option == "a" else 0.5)),
    "nested": Own(lambda option: Scaled((torch.tanh, [1.0 if option == "a" else 2.0]))),
    "function": Own(lambda option: Scaled((torch.tanh if option == "a" else F.relu, [1.0]))),
    "new function": Own(lambda option: Scaled((lambda x: x * len(option * 3), [ord(option)]))),
    "nothing hashable": Own(lambda option: Scaled((torch.tanh, bytearray([ord(option) - 96])))),
    "stride": Own(lambda option: nn.ReLU(), stride=lambda option: 2 if option == "a" else 1),
}


@pytest.mark.parametrize("name", SPACES)
def test_options_that_show_in_no_shape_are_told_apart(name):
    chosen = SPACES[name]
    net, archs = chosen.supernet(seed=0), [chosen.smallest, chosen.largest, chosen.smallest]
    images = batches(count=1)[0][0]
    outputs = net.stack(archs)(images)
    for arch, found in zip(archs, outputs, strict=True):
        assert_close(found, net.subnet(arch)(images), tolerance=1e-6)
        if name != "stride":
            assert_close(net(images, arch), net.subnet(arch)(images), tolerance=1e-6)
    assert not torch.allclose(outputs[0], outputs[1])
    one, other, again = (s["zico"].value for s in score_many(net, archs, batches(), ["zico"]))
    assert one == again != other


class Twice(nn.Module):
    """A layer that is applied twice."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(4, 4, 1)

    def forward(self, x):
        return self.layer(torch.tanh(self.layer(x)))


def test_a_layer_that_a_subnet_applies_twice_is_not_its_own_first_call():
    chosen = Own(lambda option: Twice())
    net, archs = chosen.supernet(seed=0), [chosen.smallest] * 3
    images = batches(count=1)[0][0]
    expected = net.subnet(archs[0])(images)
    for found in net.stack(archs)(images):
        assert_close(found, expected, tolerance=1e-6)


class Often(Own):
    """One activation at each of some places."""

    def network(self, arch, *, track):
        one = nn.Tanh()
        pieces = OrderedDict(first=nn.Conv2d(1, 4, 3, padding=1), tanh1=one)
        if arch.options()["between"] == "b":
            pieces["tanh2"] = one
        return nn.Sequential(pieces | OrderedDict(end=nn.Flatten(), head=nn.Linear(256, 10)))


@pytest.mark.parametrize(
    "chosen",
    [
        Often(None),
        Own(lambda option: nn.Conv2d(4, 4, 3 if option == "a" else 5, padding="same")),
        Own(lambda option: nn.Conv2d(4, 4, 3, padding="valid")),
        Own(lambda option: nn.SiLU(inplace=True)),
        Own(lambda option: nn.Identity() if option == "a" else nn.SiLU(inplace=True)),
        Own(lambda option: nn.Sequential(nn.Conv2d(4, 4, 1), nn.ELU(inplace=True))),
    ],
    ids=["one module at two places", "same", "valid", "in place", "one in place", "in a piece"],
)
def test_subnets_in_a_shared_pass_are_those_alone(chosen):
    net, archs = chosen.supernet(), [chosen.smallest, chosen.largest, chosen.smallest]
    images, labels = batches(count=1)[0]
    stack = net.stack(archs)
    outputs = stack(images)
    sum(F.cross_entropy(found, labels) for found in outputs).backward()
    for arch, found in zip(archs, net.stack(archs).each(images), strict=True):
        F.cross_entropy(found, labels).backward()
        assert_close(found, net.subnet(arch)(images), tolerance=1e-6)
    with torch.inference_mode():
        evaluated = net.stack(archs)(images)
    for subnet, arch in enumerate(archs):
        alone = net.subnet(arch)
        assert_close(outputs[subnet], alone(images), tolerance=1e-6)
        assert_close(evaluated[subnet], alone(images), tolerance=1e-6)
        F.cross_entropy(alone(images), labels).backward()
        for name, value in alone.named_parameters():
            assert_close(stack.weights[name][subnet].grad, value.grad, tolerance=1e-5)


class Reads(nn.Module):
    """A layer that is not called, but read."""

    def __init__(self, kernel, bias):
        super().__init__()
        self.layer = nn.Conv2d(4, 4, kernel, padding=kernel // 2, bias=bias)

    def forward(self, x):
        assert self.layer.in_channels == 4
        return F.conv2d(x, self.layer.weight, self.layer.bias, padding=self.layer.padding)


@pytest.mark.parametrize("bias", [True, False])
def test_pieces_may_read_their_layers_weights(bias):
    chosen = Own(lambda option: Reads(3 if option == "a" else 5, bias))
    net, archs = chosen.supernet(), [chosen.smallest, chosen.largest, chosen.smallest]
    images, labels = batches(count=1)[0]
    for arch, found in zip(archs, net.stack(archs)(images), strict=True):
        alone = net.subnet(arch)
        assert_close(found, alone(images), tolerance=1e-6)
        net.zero_grad()
        for network in (alone, net.path(arch)):
            F.cross_entropy(network(images), labels).backward()
        gradient = alone.get_submodule("between.layer").weight.grad
        shared = net.get_parameter("between.layer.weight").grad
        margin = (shared.shape[-1] - gradient.shape[-1]) // 2
        assert_close(F.pad(gradient, [margin] * 4), shared, tolerance=1e-5)
    with pytest.raises(AttributeError, match="'Conv2d' object has no attribute 'wight'"):
        net.path(archs[0]).get_submodule("between").layer.wight  # noqa: B018


def tied():
    pair = nn.Sequential(nn.Conv2d(4, 4, 1), nn.Tanh(), nn.Conv2d(4, 4, 1))
    pair[2].weight = pair[0].weight
    return pair


@pytest.mark.parametrize(
    ("made", "again"), [(tied, "2"), (lambda: nn.Sequential(*[nn.Conv2d(4, 4, 1)] * 2), "1")]
)
def test_parameters_of_two_names_are_refused(made, again):
    message = f"own: between.{again}.weight is the same parameter as between.0.weight; expected"
    with pytest.raises(InputError, match=message):
        Own(lambda option: made()).supernet()


def test_what_is_equal_is_still_computed_once():
    chosen = SPACES["kind"]
    images = batches(count=1)[0][0]
    stack = Stack(chosen.supernet(), [chosen.smallest, chosen.largest], own=False)
    with torch.profiler.profile() as profile:
        stack(images)
    assert sum(e.count for e in profile.key_averages() if e.key == "aten::convolution") == 3


def test_a_stride_that_is_chosen_is_refused_where_weights_run_in_place():
    chosen = SPACES["stride"]
    net, images = chosen.supernet(), batches(count=1)[0][0]
    assert net(images, chosen.largest).shape == (len(images), 10)
    with pytest.raises(InputError, match="space: second of between=a is no part of the largest"):
        net(images, chosen.smallest)


class Backwards(nn.Sequential):
    def forward(self, x):
        return super().forward(x.flip(0))


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda option: nn.PReLU(), "own: between has a weight, but PReLU has no elastic kind"),
        (lambda option: nn.GroupNorm(2, 4), "between has a weight, but GroupNorm has no elastic"),
        (lambda option: nn.Sequential(nn.BatchNorm2d(4)), "between.0 has the buffer running_mean"),
        (lambda option: nn.Conv2d(4, 4, 1, padding_mode="circular"), "padding_mode must be zeros"),
    ],
)
def test_layers_without_an_elastic_kind_are_refused(made, message):
    with pytest.raises(InputError, match=message):
        Own(made).supernet()


def test_another_network_than_a_chain_is_refused():
    with pytest.raises(InputError, match="network must give an nn.Sequential of pieces, got Backw"):
        Own(activation, chain=Backwards).supernet()


@pytest.mark.parametrize("width", [0, 3])
def test_a_layer_that_the_largest_network_lacks_is_refused(width):
    chosen = Own(
        lambda option: (
            nn.Sequential(nn.Conv2d(4, 5, 1), nn.Conv2d(5, 4, 1))
            if option == "a"
            else nn.Sequential(nn.Conv2d(4, 3, 1), nn.Conv2d(3, 4, 1))
            if width
            else nn.Identity()
        )
    )
    net, images = chosen.supernet(), batches(count=1)[0][0]
    has = r"\[3, 4, 1, 1\]" if width else "none"
    message = rf"between.0.weight of shape \[5, 4, 1, 1\] is no part of .*, which is {has}"
    for run in (net.subnet, lambda arch: net.stack([arch]), lambda arch: net(images, arch)):
        with pytest.raises(InputError, match=message):
            run(chosen.smallest)


@pytest.mark.parametrize(
    "made", [nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout, nn.RReLU]
)
def test_every_kind_of_dropout_is_noise(made):
    chosen = Own(lambda option: made())
    net, images = chosen.supernet(), batches(count=1)[0][0]
    assert net.noisy and not SPACES["kind"].supernet().noisy
    torch.manual_seed(3)
    stack = net.stack([chosen.largest] * 2)
    torch.manual_seed(3)
    assert_close(stack(images)[0], net(images, chosen.largest), tolerance=1e-6)


def test_modules_that_draw_and_are_no_dropout_are_refused_in_a_shared_pass():
    class DropPath(nn.Module):
        def forward(self, x):
            return x * torch.rand(len(x), 1, 1, 1).round() if self.training else x

    class Derived(DropPath, nn.Dropout):
        pass

    images = batches(count=1)[0][0]
    chosen = Own(lambda option: DropPath())
    with pytest.raises(InputError, match="space: a network draws random numbers by a module that"):
        score_many(chosen.supernet(), [chosen.smallest, chosen.largest], batches(), ["zico"])
    chosen = Own(lambda option: Derived())
    net = chosen.supernet()
    torch.manual_seed(3)
    stack = net.stack([chosen.largest] * 2)
    torch.manual_seed(3)
    assert_close(stack(images)[1], net(images, chosen.largest), tolerance=1e-6)


def test_another_thread_may_draw_random_numbers_during_a_shared_pass():
    draws = []

    class Beside(nn.Module):
        def forward(self, x):
            if draws:
                other = threading.Thread(target=draws.pop(), args=(1,))
                other.start()
                other.join()
            return x

    chosen = Own(lambda option: Beside())
    net, archs = chosen.supernet(), [chosen.smallest, chosen.largest]
    alone = score_many(net, archs, batches(), ["zico"])
    draws.extend([torch.rand] * 2)
    assert score_many(net, archs, batches(), ["zico"]) == alone
    assert not draws


def test_dropout_of_smaller_networks_alone_is_off_where_they_are_evaluated():
    chosen = Own(lambda option: nn.Dropout(0.5) if option == "a" else nn.Identity())
    net = chosen.supernet(seed=0)
    assert not net.noisy and chosen.largest.options()["between"] == "b"
    archs = [chosen.at(0), chosen.at(1)]
    images, labels = batches(count=1)[0]
    together = evaluate(net, archs, [(images, labels)])
    for place, arch in enumerate(archs):
        alone = evaluate(net, [arch], [(images, labels)], at_once=1)
        assert float(together.loss[place]) == pytest.approx(float(alone.loss[0]), rel=1e-6)


def test_dropout_of_smaller_networks_alone_draws_in_training_as_one_by_one():
    chosen = Own(lambda option: nn.Dropout(0.5) if option == "a" else nn.Identity())
    archs = [chosen.at(0), chosen.at(0), chosen.at(1)]
    images, labels = batches(count=1)[0]
    torch.manual_seed(5)
    found = add_gradients(chosen.supernet(seed=0), archs, images, labels)
    net = chosen.supernet(seed=0).train()
    torch.manual_seed(5)
    expected = [F.cross_entropy(net(images, arch), labels).detach() for arch in archs]
    assert_close(found, torch.stack(expected), tolerance=1e-6)
    assert float(found[0]) != float(found[1])


@pytest.mark.parametrize(("capability", "last"), [("AVX2", False), ("AVX512", True)])
def test_strided_convolutions_of_few_channels_get_images_in_order(capability, last, monkeypatch):
    """Without AVX-512 torch's weight gradient of some writes out of bounds in channels_last."""
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    chosen = Own(lambda option: nn.Conv2d(4, 4, 1, stride=2))
    digits, proxy = load("digits"), proxies.get("zico")
    networks = Networks(chosen, digits, Protocol((proxy,), batches=2, batch_size=32))
    study = Study(chosen, digits, 64, 32, {"batch_size": 32})
    shared = [study.supernet(0), networks.supernet]
    layout = torch.channels_last if last else torch.contiguous_format
    assert networks._layout == study._layout == layout
    for supernet in shared:
        weight = next(p for p in supernet.parameters() if p.shape[2:] == (3, 3) and p.shape[1] > 1)
        assert weight.is_contiguous(memory_format=torch.channels_last) == last
    elastic = image_format(ElasticConv2d(12, 12, 1, stride=2), torch.device("cpu"))
    assert elastic == layout  # it may take a part of its channels
    monkeypatch.undo()
    if not last:
        for _ in range(10):  # heap corruption would kill the process here
            networks.score(chosen.largest, (proxy,))
        accuracy_alone(chosen, digits, chosen.largest, Standalone(WarmUp(64, 1, 32)), 0)
