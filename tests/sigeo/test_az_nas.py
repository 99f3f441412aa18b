"""AZ-NAS's components spelled out block by block, where blocks are, and what has none."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import sigeo
from sigeo import InputError, proxies
from tests.sigeo.models import assert_unchanged, golden_net, image_batches, state_of

NAMES = ("az_expressivity", "az_progressivity", "az_trainability")


class Block(nn.Module):
    def __init__(self, inputs, outputs, stride=1):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, stride, 1)
        self.norm = nn.BatchNorm2d(outputs)

    def forward(self, x):
        return F.relu(self.norm(self.conv(x)))


class Skip(nn.Module):
    """A block that may change nothing, although it holds a layer."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return x


class Net(nn.Module):
    """A stem, blocks of two widths in a stage each, layers of its own that are no blocks."""

    def __init__(self, *extra):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4))
        narrow = nn.Sequential(Block(4, 4), *extra)
        self.stages = nn.ModuleList([narrow, nn.Sequential(Block(4, 7, stride=2), Block(7, 7))])
        self.relu, self.linear = nn.ReLU(inplace=True), nn.Linear(7, 5)

    def forward(self, x):
        x = self.relu(self.stem(x))
        for stage in self.stages:
            x = stage(x)
        return self.linear(x.mean((2, 3)))


def az(model, inputs, names=NAMES, **options):
    chosen = [proxies.get(name, **options) for name in names]
    return sigeo.score(model, [inputs], chosen, memory_format="preserve")


def drawn(shape, generator):
    return torch.randn(shape, generator=generator).double()


def initial(model, shape, generator):
    """Draw weights and an input; the weights of the model are written over."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                fan_in = module.weight[0].numel()
                weight = drawn(module.weight.shape, generator)
                module.weight.copy_(math.sqrt(2 / fan_in) * weight)
                module.bias.zero_()
    return drawn(shape, generator)


def entropy(features):
    rows = [place for image in features.detach() for place in image.flatten(1).t().numpy()]
    covariance = np.cov(np.array(rows).T, ddof=0)
    p = np.linalg.eigvalsh(covariance)
    return -sum(q * math.log(max(q, 0) + 1e-8) for q in p / p.sum())


def trainability(block, before, generator):
    """2 - s - 1/s from the outer products of single positions, strides by hand."""
    leaf = before.detach().requires_grad_()
    after = block(leaf)
    g_out = torch.randint(0, 2, after.shape, generator=generator).double() * 2 - 1
    (g_in,) = torch.autograd.grad(after, leaf, g_out)
    b, _, h, w = after.shape
    step = before.shape[2] // h
    total = 0
    for i in range(b):
        for j in range(h):
            for k in range(w):
                window = g_in[i, :, j * step : (j + 1) * step, k * step : (k + 1) * step]
                total = total + torch.outer(window.flatten(), g_out[i, :, j, k])
    s = float(torch.linalg.svdvals(total / (b * h * w))[0])
    return 2 - s - 1 / (s + 1e-6)


@pytest.mark.parametrize("seed", [0, 3])
def test_the_components_are_their_formulas(seed):
    torch.manual_seed(0)
    model, images = Net().double(), image_batches(1, 5, torch.float64)[0][0]
    scores = az(model, images, seed=seed)
    own = Net().double().train()
    generator = torch.Generator().manual_seed(seed)
    x = initial(own, images.shape, generator)
    (first,), (second, third) = own.stages
    stem = own.stem(x)
    maps = [stem.clone(), first(F.relu(stem))]
    maps += [second(maps[-1])]
    maps += [third(maps[-1])]
    blocks = [lambda x: first(F.relu(x)), second, third]
    entropies = [entropy(m) for m in maps]
    parts = [trainability(b, m, generator) for b, m in zip(blocks, maps, strict=False)]
    expected = sum(entropies), min(np.diff(entropies)), sum(parts) / 3
    for name, value in zip(NAMES, expected, strict=True):
        assert scores[name].finite and not scores[name].notes, name
        assert scores[name].value == pytest.approx(value, rel=1e-8), name
        assert scores[name].terms == {"blocks": 4}


def test_blocks_can_be_named():
    model, images = Net(), image_batches(1, 5)[0][0]
    names = ["stem", "stages.0.0", "stages.1.0", "stages.1.1"]
    assert az(model, images, blocks=names) == az(model, images)
    fewer = az(model, images, blocks=names[:2])
    assert all(score.finite and score.terms == {"blocks": 2} for score in fewer.values())
    plain = golden_net()
    for score in az(plain, images).values():
        assert not score.finite
        assert score.notes[0].startswith("0 blocks return feature maps [B, C, H, W], needed are 2")
    assert all(score.finite for score in az(plain, images, blocks=["0", "3"]).values())
    with pytest.raises(InputError, match="blocks: must be names of modules .* got 'stage'"):
        az(model, images, blocks=["stem", "stage"])
    with pytest.raises(InputError, match="blocks must be a list, each a text or None, got 'stem'"):
        proxies.get("az_trainability", blocks="stem")


def test_a_block_that_changes_nothing_cannot_be_trained():
    model, images = Net(Skip(nn.Conv2d(4, 4, 1))), image_batches(1, 5)[0][0]
    scores = az(model, images)
    score = scores["az_trainability"]
    assert score.value == -math.inf and score.notes[0] == "a block returns what it gets"
    assert scores["az_progressivity"].value <= 0 and scores["az_expressivity"].finite


def test_blocks_that_are_no_chain_say_so():
    class Parallel(nn.Module):
        def __init__(self):
            super().__init__()
            self.left, self.right = Block(3, 4), Block(3, 4)

        def forward(self, x):
            return (self.left(x) + self.right(x)).mean((2, 3))

    images = image_batches(1, 5)[0][0]
    score = az(Parallel(), images)["az_trainability"]
    assert not score.finite
    assert score.notes[0] == "a block's output is not computed from that of the block before it"
    model = Net()
    odd = image_batches(1, 5)[0][0][..., :7]
    score = az(model, odd)["az_trainability"]
    assert not score.finite
    assert score.notes[0] == "a block goes from positions [8, 7] to [4, 4], by no whole stride"


def test_neither_weights_nor_data_nor_modes_matter_and_the_model_comes_back():
    images = image_batches(1, 5)[0][0]
    expected = az(Net(), images)
    model = Net().eval().requires_grad_(False)
    model.stem[0].weight.grad = torch.ones_like(model.stem[0].weight)
    with torch.no_grad():
        for tensor in (*model.parameters(), model.stem[1].running_var):
            tensor.uniform_(1, 3)
    before, random = state_of(model), torch.get_rng_state()
    assert az(model, torch.zeros_like(images)) == expected
    model.linear.forward = None
    with pytest.raises(TypeError):
        az(model, images)
    assert_unchanged(model, before)
    assert torch.equal(random, torch.get_rng_state())
    assert not any(module.training or module._forward_hooks for module in model.modules())
    assert torch.equal(model.stem[0].weight.grad, torch.ones_like(model.stem[0].weight))


def test_features_without_variance_are_not_finite():
    class Zero(Block):
        def forward(self, x):
            return 0 * super().forward(x)

    scores = az(nn.Sequential(Block(3, 4), Zero(4, 4)), image_batches(1, 5)[0][0])
    for name in NAMES[:2]:
        assert scores[name].value == -math.inf and f"{name} is nan" in scores[name].notes
    assert scores["az_trainability"].value == pytest.approx(2 - 1e6)


def test_tokens_are_refused():
    tokens = nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(12, 5))
    for name in NAMES:
        with pytest.raises(InputError, match=f"{name}: needs inputs of real numbers, got none"):
            az(tokens, torch.randint(0, 9, (4, 3)), [name])
