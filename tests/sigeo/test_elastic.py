"""Elastic layers: against the plain modules that their choices amount to."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sigeo.capture import capture
from sigeo.supernet import elastic
from sigeo_ext.testing import assert_close

SOME = torch.tensor([4, 0, 3])


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def conv(name, *args, **options):
    return getattr(elastic, f"ElasticConv{name}")(*args, **options)


def norm(name, *args, **options):
    return getattr(elastic, f"ElasticBatchNorm{name}")(*args, **options)


# By name: how the layer is made, and choices with the inputs that fit them.
LAYERS = {
    "linear": (
        lambda: elastic.ElasticLinear(6, 5),
        [
            ({}, randn(2, 6)),
            ({"outputs": 3, "inputs": 4}, randn(2, 3, 4)),
            ({"outputs": slice(1, 4), "inputs": SOME}, randn(2, 3)),
        ],
    ),
    "linear without bias": (
        lambda: elastic.ElasticLinear(6, 5, bias=False),
        [({"outputs": SOME}, randn(2, 6)), ({"inputs": slice(2, 6)}, randn(2, 4))],
    ),
    "embedding": (
        lambda: elastic.ElasticEmbedding(7, 5, padding_idx=1),
        [
            ({"columns": 3}, torch.tensor([[1, 2], [0, 2]])),
            ({"columns": SOME}, torch.tensor([6, 1])),
        ],
    ),
    "conv1d": (
        lambda: conv("1d", 4, 6, 5, padding=4, dilation=2),
        [
            ({"outputs": 4, "inputs": 2, "kernel": 3}, randn(2, 2, 9)),
            ({"inputs": torch.tensor([3, 1]), "kernel": 1}, randn(2, 2, 9)),
        ],
    ),
    "conv2d": (
        lambda: conv("2d", 4, 6, 5, padding=2, stride=2),
        [
            ({"outputs": 4, "inputs": 3, "kernel": 3}, randn(2, 3, 7, 6)),
            ({"outputs": SOME, "kernel": 1}, randn(2, 4, 7, 6)),
            ({"outputs": slice(2, 6)}, randn(2, 4, 7, 6)),
        ],
    ),
    "conv2d, same": (
        lambda: conv("2d", 3, 3, 5, padding="same", bias=False),
        [({"kernel": 3}, randn(1, 3, 6, 5))],
    ),
    "conv3d": (
        lambda: conv("3d", 2, 3, 3, padding=1),
        [({"outputs": 2, "inputs": 1, "kernel": 1}, randn(2, 1, 3, 4, 3))],
    ),
    "conv2d, groups": (
        lambda: conv("2d", 6, 9, 3, padding=1, groups=3),
        [({"inputs": 4}, randn(2, 4, 5, 5)), ({"inputs": slice(2, 6)}, randn(2, 4, 5, 5))],
    ),
    "conv2d, depthwise": (
        lambda: conv("2d", 6, 6, 7, padding=3, groups=6),
        [
            ({"inputs": 4, "kernel": 3}, randn(2, 4, 8, 8)),
            ({"inputs": SOME, "kernel": 5}, randn(2, 3, 8, 8)),
        ],
    ),
    "conv1d, depthwise and doubled": (
        lambda: conv("1d", 6, 12, 3, groups=6),
        [({"inputs": SOME}, randn(2, 3, 8))],
    ),
    "batch norm 1d": (
        lambda: norm("1d", 6),
        [({"channels": 4}, randn(5, 4)), ({"channels": SOME}, randn(5, 3))],
    ),
    "batch norm 2d": (
        lambda: norm("2d", 6, momentum=None),
        [({"channels": slice(1, 4)}, randn(3, 3, 2, 2)), ({}, randn(3, 6, 2, 2))],
    ),
    "batch norm 3d": (
        lambda: norm("3d", 6, affine=False, track_running_stats=False),
        [({"channels": 4}, randn(2, 4, 2, 1, 2))],
    ),
    "layer norm": (
        lambda: elastic.ElasticLayerNorm(6),
        [({"features": 4}, randn(2, 3, 4)), ({"features": SOME}, randn(2, 3))],
    ),
    "attention": (
        lambda: elastic.ElasticAttention(8, 4),
        [
            ({}, randn(2, 5, 8)),
            ({"heads": 2, "width": 6}, randn(2, 5, 6)),
            ({"heads": torch.tensor([3, 0]), "width": slice(1, 8)}, randn(2, 5, 7)),
        ],
    ),
    "attention with heads of their own width": (
        lambda: elastic.ElasticAttention(6, 3, 4, bias=False),
        [({"heads": slice(1, 3), "width": 5}, randn(2, 5, 5))],
    ),
    "depth": (
        lambda: elastic.ElasticDepth(*(nn.Linear(4, 4) for _ in range(3))),
        [({"depth": d}, randn(2, 4)) for d in range(4)],
    ),
}
CASES = pytest.mark.parametrize(
    ("name", "number"),
    [(name, i) for name, (_, choices) in LAYERS.items() for i in range(len(choices))],
)


def made(name):
    torch.manual_seed(0)
    layer = LAYERS[name][0]().double()
    for parameter in layer.parameters():  # norms start at one and zero
        nn.init.normal_(parameter)
    for buffer in layer.buffers():
        if buffer.is_floating_point():
            buffer.uniform_(0.5, 1.5)
    return layer


def run(module, x, **choice):
    """The output, and the gradients of a scalar of it for the input and each parameter."""
    x = x.clone().requires_grad_(x.is_floating_point())
    y = module(x, **choice)
    loss = (y * randn(*y.shape, seed=5)).sum()
    leaves = [x] if x.is_floating_point() else []
    leaves += list(module.parameters())
    return y, torch.autograd.grad(loss, leaves, allow_unused=True)


def window(selection):
    if selection is None or isinstance(selection, Tensor):
        return slice(None) if selection is None else selection
    return selection if isinstance(selection, slice) else slice(selection)


@CASES
@pytest.mark.parametrize("training", [True, False])
def test_a_layer_equals_its_extracted_module(name, number, training):
    layer = made(name).train(training)
    choice, x = LAYERS[name][1][number]
    plain = layer.extract(**choice)
    assert not any(isinstance(module, elastic.Elastic) for module in plain.modules())
    assert plain.training is training
    y, grads = run(layer, x, **choice)
    z, expected = run(plain, x)
    assert_close(y, z, tolerance=1e-10)
    inputs = int(x.is_floating_point())
    assert_close(grads[:inputs], expected[:inputs], tolerance=1e-10)
    # What is not selected gets zeros, so the sums of squares say that all else agrees.
    for a, b in zip(grads[inputs:], expected[inputs:], strict=False):
        assert_close((a**2).sum(), (b**2).sum(), tolerance=1e-10)
    if number > 0 or not choice:
        return
    statistics = dict(plain.named_buffers())
    for key, value in layer.named_buffers():
        part = value if value.dim() == 0 else value[window(choice["channels"])]
        assert_close(part.double(), statistics[key].double())


@CASES
def test_gradients_lie_where_the_slices_do(name, number):
    """The gradient of a super-weight, sliced as the weight is, is the extracted module's."""
    layer = made(name)
    choice, x = LAYERS[name][1][number]
    plain = layer.extract(**choice)
    _, grads = run(layer, x, **choice)
    _, expected = run(plain, x)
    skip = int(x.is_floating_point())
    names = [n for n, _ in layer.named_parameters()]
    judge = dict(zip((n for n, _ in plain.named_parameters()), expected[skip:], strict=True))
    # A layer whose weights are its gradients extracts to the slices of the gradients.
    with torch.no_grad():
        for (key, parameter), grad in zip(layer.named_parameters(), grads[skip:], strict=True):
            parameter.copy_(torch.zeros_like(parameter) if grad is None else grad)
            assert key in names
    for key, value in layer.extract(**choice).named_parameters():
        assert_close(value, judge[key], tolerance=1e-10)


def centre(choice):
    """Of a kernel of five."""
    kernel = choice.get("kernel", 5)
    return slice((5 - kernel) // 2, (5 + kernel) // 2)


SLICES = {
    "linear": lambda w, c: {
        "weight": w["weight"][window(c.get("outputs"))][:, window(c.get("inputs"))],
        "bias": w["bias"][window(c.get("outputs"))],
    },
    "embedding": lambda w, c: {"weight": w["weight"][:, window(c["columns"])]},
    "conv2d": lambda w, c: {
        "weight": w["weight"][window(c.get("outputs"))][:, window(c.get("inputs"))][
            ..., centre(c), centre(c)
        ],
        "bias": w["bias"][window(c.get("outputs"))],
    },
    "batch norm 1d": lambda w, c: {
        key: value if value.dim() == 0 else value[window(c["channels"])] for key, value in w.items()
    },
    "layer norm": lambda w, c: {key: value[window(c["features"])] for key, value in w.items()},
}


@pytest.mark.parametrize("name", list(SLICES))
def test_the_extracted_state_dict_equals_slices_and_is_its_own(name):
    layer = made(name)
    for choice, _ in LAYERS[name][1]:
        state = layer.extract(**choice).state_dict()
        expected = SLICES[name](layer.state_dict(), choice)
        assert list(state) == list(expected)
        for key, value in expected.items():
            assert torch.equal(state[key], value)
        before = {key: value.clone() for key, value in layer.state_dict().items()}
        for value in state.values():
            value.zero_()
        assert all(torch.equal(value, before[key]) for key, value in layer.state_dict().items())


@pytest.mark.parametrize(
    ("ours", "torchs"),
    [
        (lambda: elastic.ElasticLinear(4, 3), lambda: nn.Linear(4, 3)),
        (lambda: elastic.ElasticEmbedding(4, 3), lambda: nn.Embedding(4, 3)),
        (lambda: conv("2d", 4, 3, 3), lambda: nn.Conv2d(4, 3, 3)),
        (lambda: norm("2d", 4), lambda: nn.BatchNorm2d(4)),
        (lambda: elastic.ElasticLayerNorm(4), lambda: nn.LayerNorm(4)),
    ],
)
def test_parameters_are_named_and_drawn_as_the_plain_module_s(ours, torchs):
    states = []
    for make in (ours, torchs):
        torch.manual_seed(3)
        states.append(make().state_dict())
    assert list(states[0]) == list(states[1])
    assert all(torch.equal(a, b) for a, b in zip(*(s.values() for s in states), strict=True))


@pytest.mark.parametrize("name", ["linear", "conv2d", "embedding", "attention"])
@pytest.mark.parametrize("accumulate", [False, True])
def test_gradients_of_several_subnets_add_up(name, accumulate):
    layer = made(name)
    elastic.configure(layer, accumulate=accumulate)
    total = [torch.zeros_like(p) for p in layer.parameters()]
    kept = None
    for choice, x in LAYERS[name][1]:
        _, grads = run(copy.deepcopy(layer), x, **choice)
        for sum_, grad in zip(total, grads[int(x.is_floating_point()) :], strict=True):
            sum_ += 0 if grad is None else grad
    for choice, x in LAYERS[name][1]:
        y = layer(x, **choice)
        (y * randn(*y.shape, seed=5)).sum().backward()
        kept = [p.grad for p in layer.parameters()] if kept is None else kept
    # `run` asks for gradients without touching .grad, so the first backward pass makes them.
    assert_close([p.grad for p in layer.parameters()], total, tolerance=1e-10)
    assert all(p.grad is k for p, k in zip(layer.parameters(), kept, strict=True))


@pytest.mark.parametrize("name", ["linear", "conv2d", "conv2d, depthwise"])
def test_masked_layers_are_full_layers_with_zeros(name):
    layer = made(name)
    elastic.configure(layer, masked=True)
    full, x = copy.deepcopy(layer), randn(2, 6) if name == "linear" else randn(2, 6, 8, 8)
    if name == "conv2d":
        x = x[:, :4]
    choice = {"inputs": 3} if name == "conv2d, depthwise" else {"outputs": 3}
    y = layer(x, **choice)
    expected = full(x)
    dim = -1 if name == "linear" else 1
    assert y.shape == expected.shape
    assert_close(y.narrow(dim, 0, 3), expected.narrow(dim, 0, 3))
    assert not y.narrow(dim, 3, y.shape[dim] - 3).any()


def test_a_cropped_kernel_is_one_with_zeros_around():
    layer = made("conv2d")
    x = randn(2, 4, 7, 6)
    zeroed = copy.deepcopy(layer)
    with torch.no_grad():
        ring = torch.ones(5, 5, dtype=torch.bool)
        ring[1:4, 1:4] = False
        zeroed.weight[:, :, ring] = 0
    assert_close(layer(x, kernel=3), zeroed(x))


class Block(nn.Module):
    """A residual block of elastic and plain layers."""

    def __init__(self):
        super().__init__()
        self.norm = elastic.ElasticLayerNorm(8)
        self.attention = elastic.ElasticAttention(8, 4)
        self.body = elastic.ElasticDepth(
            *(nn.Sequential(elastic.ElasticLinear(8, 8), nn.GELU()) for _ in range(3))
        )
        self.head = nn.Linear(6, 2)

    def forward(self, x):
        x = x + self.attention(self.norm(x))
        return self.head(x + self.body(x))


def test_a_model_is_extracted_with_its_current_choices():
    torch.manual_seed(0)
    model = Block().double()
    model.norm.select(features=6)
    model.attention.select(heads=2, width=6)
    model.body.select(depth=2)
    for layer in model.body:
        layer[0].select(outputs=6, inputs=6)
    plain = elastic.extract(model)
    assert type(plain) is Block
    assert not any(isinstance(module, elastic.Elastic) for module in plain.modules())
    x = randn(2, 5, 6)
    assert_close(model(x), plain(x))
    assert len(plain.body) == 2 and plain.body[0][0].weight.shape == (6, 6)
    shared = {p.data_ptr() for p in model.parameters()} & {p.data_ptr() for p in plain.parameters()}
    assert not shared


def test_one_module_at_several_places_stays_one():
    member = nn.Linear(3, 3)
    plain = elastic.ElasticDepth(member, member, nn.Linear(3, 3)).extract(depth=2)
    assert plain[0] is plain[1] and plain[0] is not member


def test_a_layer_runs_its_choice_until_another_is_made():
    layer = elastic.ElasticLinear(4, 5)
    assert layer.select(outputs=3) is layer and layer.choice == {"outputs": 3}
    x = torch.randn(2, 4)
    assert layer(x).shape == (2, 3)
    assert layer(x, outputs=2).shape == (2, 2)  # that one call only
    assert layer(x).shape == (2, 3)
    assert torch.equal(layer.select()(x), F.linear(x, layer.weight, layer.bias))


@pytest.mark.parametrize("name", ["linear", "conv2d", "conv2d, depthwise", "layer norm"])
@pytest.mark.parametrize("number", [0, 1])
def test_statistics_of_single_samples_land_in_the_super_weights(name, number):
    layer = made(name)
    choice, x = LAYERS[name][1][number]
    expected = {key: torch.zeros_like(p) for key, p in layer.named_parameters()}
    for sample in x:
        loss = (layer(sample[None], **choice) ** 2).sum()
        grads = torch.autograd.grad(loss, list(layer.parameters()))
        for total, grad in zip(expected.values(), grads, strict=True):
            total += grad**2
    layer.select(**choice)
    with capture(layer, {"sq_sum"}, reduction="sum") as stats:
        (layer(x) ** 2).sum().backward()
    for key, value in expected.items():
        assert_close(stats[key].sq_sum, value, tolerance=1e-10)
