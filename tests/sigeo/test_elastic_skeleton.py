"""Networks without memory: their layers are copies, and nobody notices."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from sigeo.spaces.elastic.reuse import prefixes
from sigeo.spaces.elastic.skeleton import layer_of, without_memory
from tests.sigeo.elastic_spaces import NAMES, archs_of, batches, space

EACH = pytest.mark.parametrize("name", NAMES)


def described(value):
    """What can be compared of a module's attribute."""
    if isinstance(value, Tensor):
        gradient = value.requires_grad, value.grad_fn, value.is_leaf
        return type(value), value.shape, value.stride(), value.dtype, value.device, gradient
    if isinstance(value, dict):
        return type(value), [(key, described(one)) for key, one in value.items()]
    return described(vars(value)) if isinstance(value, nn.Module) else value


@pytest.mark.parametrize("track", [True, False])
@EACH
def test_skeletons_are_the_networks_that_a_space_makes_on_meta(name, track):
    chosen = space(name)
    for arch in archs_of(chosen, 3):
        found = [chosen.skeleton(arch, track=track) for _ in range(2)]
        with torch.device("meta"):
            expected = chosen.network(arch, track=track)
        for network in found:
            modules = zip(network.named_modules(), expected.named_modules(), strict=True)
            for (key, one), (other_key, other) in modules:
                assert (key, type(one)) == (other_key, type(other))
                ours, theirs = (
                    {n: described(v) for n, v in vars(module).items() if n != "_modules"}
                    for module in (one, other)
                )
                assert list(vars(one)) == list(vars(other))
                assert ours == theirs, key
        one, other = (list(network.modules()) for network in found)
        assert not set(map(id, one)) & set(map(id, other))
        buffers = [len(list(network.buffers())) for network in (*found, expected)]
        assert len(set(buffers)) == 1  # each is there once, none is two layers'


@EACH
def test_pieces_have_one_number_where_all_up_to_them_are_equal(name):
    chosen = space(name)
    networks = [chosen.skeleton(arch) for arch in archs_of(chosen, 12)]
    numbers = prefixes(networks)
    assert list(map(len, numbers)) == list(map(len, networks))
    ways: dict[int, str] = {}
    for network, found in zip(networks, numbers, strict=True):
        for place, number in enumerate(found, start=1):
            way = repr([(key, repr(piece)) for key, piece in network.named_children()][:place])
            way += str([p.shape for piece in network[:place] for p in piece.parameters()])
            assert ways.setdefault(number, way) == way
    assert len(set(ways.values())) == len(ways) < sum(map(len, numbers))
    assert prefixes([]) == []


@pytest.mark.parametrize(
    ("kind", "sizes", "settings"),
    [
        (nn.Linear, (3, 4), {}),
        (nn.Conv2d, (3, 4, 3), {"bias": False}),
        (nn.BatchNorm2d, (4,), {"track_running_stats": True}),
        (nn.LayerNorm, (4,), {}),
    ],
)
def test_what_is_done_to_a_layer_is_done_to_no_other(kind, sizes, settings):
    def made():
        with without_memory():
            return layer_of(kind, *sizes, **settings)

    before = described(made())
    layer = made()
    layer.register_forward_hook(lambda *_: None)
    layer.register_forward_pre_hook(lambda *_: None)
    layer.register_buffer("other", torch.zeros(1), persistent=False)
    layer.weight.requires_grad_(False)
    layer.weight.note = "of this one"
    layer.add_module("inner", nn.ReLU())
    layer.eval().to(torch.float64).to_empty(device="cpu")
    assert described(made()) == before
    assert not hasattr(made().weight, "note")


def test_layers_with_memory_are_drawn_as_torch_draws_them():
    torch.manual_seed(0)
    expected = [nn.Linear(3, 4), nn.Linear(3, 4)]
    torch.manual_seed(0)
    found = [layer_of(nn.Linear, 3, 4), layer_of(nn.Linear, 3, 4)]
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one.weight, other.weight) and torch.equal(one.bias, other.bias)


def test_settings_that_are_equal_numbers_of_other_kinds_stay_what_they_are():
    with without_memory():
        found = [layer_of(nn.LayerNorm, 4, eps=eps).eps for eps in (1, 1.0, 1)]
    assert list(map(type, found)) == [int, float, int]


def test_layers_have_the_dtype_that_is_torchs_default_when_they_are_made():
    def dtype():
        with without_memory():
            return layer_of(nn.Linear, 5, 6).weight.dtype

    assert dtype() == torch.float32
    torch.set_default_dtype(torch.float64)
    try:
        assert dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    assert dtype() == torch.float32


@EACH
def test_networks_first_made_in_inference_mode_train_outside(name):
    chosen = space(name, **OWN[name])
    images, labels = batches(count=1)[0]
    with torch.inference_mode():
        net = chosen.supernet()
        net(images, chosen.smallest)
        chosen.cost(chosen.largest)
    net = chosen.supernet(seed=1)
    for network in (net.subnet(chosen.smallest), chosen.build(chosen.largest, seed=1)):
        nn.functional.cross_entropy(network(images), labels).backward()
        assert all(p.grad is not None for p in network.parameters())


def test_networks_first_made_of_fake_tensors_are_real_outside():
    chosen = space("mobilenet", stem=9)
    with FakeTensorMode():
        assert isinstance(next(chosen.skeleton(chosen.largest).parameters()), FakeTensor)
    images, _ = batches(count=1)[0]
    chosen.build(chosen.largest, seed=1)(images).sum().backward()


OWN = {  # sizes that no other test has, so that the layers are made here
    "mlp": {"widths": (7, 11)},
    "mobilenet": {"stem": 7, "first": 3, "last": 11},
    "resnet": {"channels": 13},
    "transformer": {"widths": (10, 14), "head_width": 5},
}
