"""Elastic spaces: codes, canonical forms, networks, shared weights, costs."""

from __future__ import annotations

import collections
import random

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from sigeo import InputError, elastic, spaces
from sigeo.spaces.elastic.parts import part
from sigeo_ext.testing import assert_close
from tests.sigeo.elastic_spaces import NAMES, SHAPE, archs_of, batches, space, supernet

EACH = pytest.mark.parametrize("name", NAMES)


@EACH
def test_strings_codes_and_numbers_round_trip(name):
    chosen = space(name)
    rng = random.Random(3)
    for _ in range(50):
        number = rng.randrange(chosen.size)
        arch = chosen.at(number)
        assert chosen.index(arch) == number
        assert chosen.parse(str(arch)) == arch
        assert chosen.parse(",".join(reversed(str(arch).split(",")))) == arch
        assert chosen.decode(chosen.encode(arch)) == arch
    assert chosen.at(chosen.size - 1) == chosen.largest
    whole = spaces.Product.whole(chosen)
    assert whole.size == chosen.size and chosen.at(1) in whole


@EACH
def test_neighbours_mutants_and_children(name):
    chosen, rng = space(name), random.Random(0)
    arch, other = chosen.sample(rng), chosen.sample(rng)
    around = list(chosen.neighbours(arch))
    assert len(set(around)) == len(around) == sum(len(c.options) - 1 for c in chosen.choices)
    for neighbour in around:
        assert sum(a != b for a, b in zip(arch.codes, neighbour.codes, strict=True)) == 1
    counts = collections.Counter(chosen.mutate(arch, rng) for _ in range(60 * len(around)))
    assert set(counts) == set(around) and min(counts.values()) > 25
    child = chosen.crossover(arch, other, rng)
    assert all(
        c in p for c, p in zip(child.codes, zip(arch.codes, other.codes, strict=True), strict=True)
    )
    assert len(set(spaces.distinct(chosen, 20, rng))) == 20


@EACH
def test_choices_that_do_nothing_are_those_that_change_no_network(name):
    chosen, rng = space(name), random.Random(1)
    net = supernet(chosen, torch.float64).train()
    x = batches(torch.float64, count=1)[0][0]
    for _ in range(2):
        arch = chosen.sample(rng)
        pruned = chosen.pruned(arch)
        assert chosen.pruned(pruned) == pruned and chosen.connected(arch)
        assert torch.equal(net(x, arch), net(x, pruned))
        idle = chosen.idle(arch)
        for neighbour in chosen.neighbours(arch):
            (changed,) = (
                choice.name
                for choice, a, b in zip(chosen.choices, arch.codes, neighbour.codes, strict=True)
                if a != b
            )
            same = chosen.pruned(neighbour) == pruned
            assert same == (changed in idle)
            if not same:
                assert not torch.equal(net(x, arch), net(x, neighbour)), changed


def test_identities_of_a_stage_may_stand_anywhere():
    chosen = space("mobilenet")
    text = "block1.1=k3e2,block2.1=k5e3,block2.2={},block2.3={}"
    one = chosen.parse(text.format("identity", "k3e3"))
    two = chosen.parse(text.format("k3e3", "identity"))
    assert chosen.representative(one) == chosen.representative(two) == two
    assert chosen.cost(one) == chosen.cost(two) and chosen.pruned(one) == one
    assert chosen.nonlinear_count(one) == 6


@EACH
def test_cost_is_that_of_the_network_that_is_built(name):
    chosen = space(name)
    for arch in archs_of(chosen, 3):
        network = chosen.build(arch).eval()
        image = torch.zeros(1, 1, 8, 8)
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            network(image)
        cost = chosen.cost(arch)
        assert cost.parameters == sum(p.numel() for p in network.parameters())
        assert cost.flops == counter.get_total_flops() / 2


@EACH
def test_networks_start_as_parts_of_the_seeds_shared_weights(name):
    chosen = space(name)
    state = torch.get_rng_state()
    net = chosen.supernet(seed=5)
    assert torch.equal(torch.get_rng_state(), state)
    shared = dict(net.named_parameters())
    again, other = chosen.supernet(seed=5), chosen.supernet(seed=6)
    assert all(torch.equal(p, shared[n]) for n, p in again.named_parameters())
    assert any(not torch.equal(p, shared[n]) for n, p in other.named_parameters())
    largest = chosen.build(chosen.largest, seed=5)
    assert {n: p.shape for n, p in largest.named_parameters()} == {
        n: p.shape for n, p in shared.items()
    }
    for arch in archs_of(chosen, 3):
        network = chosen.build(arch, seed=5)
        for found, parameter in network.named_parameters():
            assert torch.equal(parameter, part(shared[found], parameter.shape))
        images = batches(count=1)[0][0]
        assert_close(network.train()(images), net.train()(images, arch), tolerance=1e-5)


@EACH
def test_a_path_of_elastic_layers_equals_what_is_extracted(name):
    chosen = space(name)
    net = supernet(chosen, torch.float64)
    assert any(isinstance(module, elastic.Elastic) for module in net.modules())
    images, labels = batches(torch.float64, count=1)[0]
    for arch in archs_of(chosen, 3):
        net.zero_grad()
        alone = net.subnet(arch)
        outputs, expected = net(images, arch), alone(images)
        assert_close(outputs, expected, tolerance=1e-10)
        F.cross_entropy(outputs, labels).backward()
        F.cross_entropy(expected, labels).backward()
        reached = dict(net.named_parameters())
        for found, parameter in alone.named_parameters():
            gradient = reached.pop(found).grad
            inside = part(gradient, parameter.shape)
            assert float((inside - parameter.grad).norm()) <= 1e-10
            outside = gradient.clone()
            part(outside, parameter.shape).zero_()
            assert not outside.any(), found
        assert all(p.grad is None for p in reached.values())  # layers that the arch lacks


@EACH
def test_paths_stay_apart_and_modes_reach_them(name):
    chosen = space(name)
    net = supernet(chosen)
    images = batches(count=1)[0][0]
    one, two = chosen.largest, chosen.decode([0] * len(chosen.choices))
    first, second = net.path(one), net.path(two)
    expected = net.subnet(one)(images), net.subnet(two)(images)
    for _ in range(2):
        assert_close(first(images), expected[0], tolerance=1e-5)
        assert_close(second(images), expected[1], tolerance=1e-5)
    net.eval()
    assert not net.path(one).training and not net.subnet(one).training
    with torch.no_grad():
        next(net.parameters()).mul_(2)
    assert_close(net(images, one), net.subnet(one)(images), tolerance=1e-5)


@EACH
def test_describe_makes_the_same_space(name):
    described = space(name).describe()
    assert described.pop("name") == name
    shape = spaces.InputShape(
        described.pop("in_channels"), described.pop("image_size"), described.pop("classes")
    )
    assert shape == SHAPE
    assert set(described) == set(spaces.sizes_of(name))
    assert spaces.get(name, shape, **described).choices == space(name).choices


def test_published_sizes():
    shape = spaces.InputShape(3, 224, 1000)
    mobile = spaces.MobileNet.published(shape)
    assert len(mobile.choices) == 21
    assert sum("identity" in choice.options for choice in mobile.choices) == 15
    counts = {mobile.nonlinear_count(mobile.sample(random.Random(i))) for i in range(200)}
    assert counts <= set(range(12, 43, 2)) and mobile.nonlinear_count(mobile.largest) == 42
    half = spaces.MobileNet.published(shape, width=0.5)
    convolution = half.skeleton(half.largest).get_submodule("head.features.conv")
    assert convolution.weight.shape == (640, 160, 1, 1)
    widths = {
        choice.name: choice.options
        for choice in spaces.ResNet.published(shape).choices
        if choice.name.startswith("width")
    }
    assert widths["width1"] == ("48", "56", "64")
    assert widths["width2"] == ("88", "96", "104", "112", "120", "128")
    assert widths["width3"] == ("176", "192", "208", "216", "232", "240", "256")
    assert widths["width4"] == ("360", "384", "408", "432", "464", "488", "512")
    # ResNet-34's blocks at full width: 21,797,672 with 3, 4, 6 and 3 blocks of each stage.
    net = spaces.ResNet(shape, channels=64, depths=(3, 4, 6, 3), ratios=1.0, stem=7)
    assert net.cost(net.largest).parameters == 21_797_672
    tiny = spaces.Transformer.published(shape)
    ends = 240 * (3 * 256 + 1 + 1 + 197) + 2 * 240 + 241 * 1000  # patches, tokens; norm, classes
    attention = 3 * 241 * 256 + 257 * 240
    mlp = 241 * 960 + 961 * 240
    assert tiny.cost(tiny.largest).parameters == ends + 14 * (attention + mlp + 4 * 240)


@pytest.mark.parametrize(
    ("name", "sizes", "message"),
    [
        ("resnet", {"channels": 0}, "resnet: channels must be a whole number of at least 1, got 0"),
        ("resnet", {"depths": ()}, "resnet: depths must be one number at least, got none"),
        ("resnet", {"least": 3}, "resnet: least must be at most the smallest of depths, got 3"),
        (
            "resnet",
            {"ratios": (1, 0.5)},
            "ratios must be ascending, above 0 and at most 1000000, got [1, 0.5]",
        ),
        ("resnet", {"ratios": 0.5}, "resnet: ratios must end with 1, got [0.5]"),
        ("resnet", {"stem": 5}, "resnet: stem must be 3 or 7, got 5"),
        ("resnet", {"depths": (1,) * 5}, "resnet: images must be at least 16 x 16, got 8"),
        ("resnet", {"cells": 1}, "resnet: size must be one of channels, depths"),
        ("mobilenet", {"strides": (1, 2)}, "must be as many, got 3, 3 and 2"),
        ("mobilenet", {"kernels": (3, 4)}, "mobilenet: kernels must be odd, got [3, 4]"),
        ("mobilenet", {"width": 0}, "mobilenet: width must be above 0 and at most 64, got 0"),
        ("mobilenet", {"expansions": (2.5,)}, "expansions must be a whole number of at least 1"),
        ("transformer", {"patch": 3}, "patch must divide the images' 8 pixels, got 3"),
        ("transformer", {"pool": "max"}, "transformer: pool must be class or mean, got 'max'"),
        ("transformer", {"dropout": 1}, "dropout must be from 0 to below 1, got 1"),
        ("resnet", {"ratios": (0.5, "a")}, "resnet: ratios must be numbers, got 'a'"),
        ("mlp", {"widths": "abc"}, "mlp: widths must be a whole number of at least 1, got 'abc'"),
        (
            "mlp",
            {"widths": (8, 4)},
            "mlp: widths must be ascending, above 0 and at most 1000000, got [8, 4]",
        ),
        ("nasbench201", {"cells": "a"}, "cells must be a whole number of at least 1, got 'a'"),
        (
            "transformer",
            {"ratios": (float("inf"),)},
            "ratios must be ascending, above 0 and at most 1000000, got",
        ),
        ("mlp", {"widths": None}, "mlp: widths must be a whole number of at least 1, got None"),
    ],
)
def test_bad_sizes_are_refused(name, sizes, message):
    with pytest.raises(InputError) as caught:
        spaces.get(name, SHAPE, **sizes)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("depth=1,width1=5,width2=5", "expected a choice of width3, got none"),
        ("depth=1,width1=5,width2=5,width3=7", "width3 must be one of 5, 8, got '7'"),
        ("depth=1,depth=1,width1=5,width2=5,width3=5", "expected depth once, got it twice"),
        ("depth=1,wide=5", "expected one of depth, width1, width2, width3, got 'wide'"),
        ("depth", "expected name=option, got 'depth'"),
    ],
)
def test_a_malformed_string_is_refused(text, message):
    with pytest.raises(InputError) as caught:
        space("mlp").parse(text)
    assert message in str(caught.value)


def test_wrong_codes_and_numbers_are_refused():
    chosen = space("mlp")
    with pytest.raises(InputError, match="architecture: expected 4 codes, got 3"):
        chosen.decode([0, 0, 0])
    with pytest.raises(InputError, match="code of width1 must be from 0 to 1, got 2"):
        chosen.decode([0, 2, 0, 0])
    with pytest.raises(InputError, match="mlp: index must be a whole number from 0 to 23, got 24"):
        chosen.at(24)
    single = space("mlp", widths=4, depths=1)
    with pytest.raises(InputError, match="mlp: the only architecture has no neighbour"):
        single.mutate(single.largest, random.Random(0))


def test_shortcuts_that_halve_are_strided_convolutions_without_being_computed_as_such():
    chosen = space("resnet")
    network = chosen.build(chosen.largest).double().eval()
    convolutions = [m for m in network.modules() if isinstance(m, torch.nn.Conv2d)]
    assert {c.stride for c in convolutions if c.kernel_size == (1, 1)} == {(1, 1)}
    block = network.stage2_block1
    x = torch.randn(2, 8, 7, 7, dtype=torch.float64)  # of odd size
    expected = F.conv2d(x, block.shortcut.conv.weight, stride=2)
    block.second.norm.weight.data.zero_()  # the block is its shortcut
    block.shortcut.norm = torch.nn.Identity()
    assert torch.equal(block(x), expected.relu())


def test_halving_trains_in_channels_last():
    """A strided convolution there writes out of bounds on some processors, which kills us."""
    chosen = space("resnet", channels=5)
    network = chosen.build(chosen.largest).to(memory_format=torch.channels_last)
    x = torch.randn(32, 1, 8, 8).to(memory_format=torch.channels_last)
    for _ in range(20):
        network(x).sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in network.parameters())
