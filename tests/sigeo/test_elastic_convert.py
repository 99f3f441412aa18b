"""Models of plain layers made elastic, and layers that are smaller than others."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sigeo import elastic
from sigeo.elastic import ElasticTokens, Tokens
from sigeo_ext.testing import assert_close


def model(width=1.0):
    """Each kind of layer that has an elastic one, at a share of the full width."""
    c, d = int(8 * width), int(4 * width)
    return nn.ModuleDict(
        {
            "convs": nn.Sequential(
                nn.Conv2d(3, c, 5 if width == 1 else 3, padding=2 if width == 1 else 1),
                nn.BatchNorm2d(c),
                nn.Conv2d(c, c, 3, padding=1, groups=c, bias=False),
                nn.Conv2d(c, d, 1),
                nn.BatchNorm2d(d, affine=False, track_running_stats=False),
            ),
            "norm": nn.LayerNorm(d),
            "linear": nn.Linear(d, 5, bias=False),
            "table": nn.Embedding(7, d, padding_idx=2),
            "tokens": Tokens(4, d),
        }
    )


def run(made, images):
    x = made["convs"](images).flatten(2).transpose(1, 2)
    x = made["norm"](x) + made["table"](torch.arange(x.shape[1]) % 7)
    return made["linear"](torch.cat([x, made["tokens"]().expand(len(x), -1, -1)], 1))


def test_a_converted_model_is_the_same_model():
    plain = model().double()
    plain["convs"][0].bias.requires_grad_(False)
    plain["convs"].eval()
    state = torch.get_rng_state()
    made = elastic.convert(plain)
    assert torch.equal(torch.get_rng_state(), state)
    images = torch.randn(
        2, 3, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    assert torch.equal(run(made, images), run(plain, images))
    layers = [m for m in made.modules() if isinstance(m, elastic.Elastic)]
    assert len(layers) == sum(not list(m.children()) for m in plain.modules())
    assert [m.training for m in made.modules()] == [m.training for m in plain.modules()]
    grads = {name: p.requires_grad for name, p in plain.named_parameters()}
    assert {name: p.requires_grad for name, p in made.named_parameters()} == grads
    assert dict(made.state_dict()).keys() == dict(plain.state_dict()).keys()
    own = {p.data_ptr() for p in plain.parameters()}
    assert not own & {p.data_ptr() for p in made.parameters()}
    back = elastic.extract(made)
    assert [type(m) for m in back.modules()] == [type(m) for m in plain.modules()]
    assert torch.equal(run(back, images), run(plain, images))


def test_the_choice_of_a_smaller_layer_makes_the_larger_one_that_layer():
    large, small = elastic.convert(model()), model(0.5)
    for name, layer in small.named_modules():
        twin = large.get_submodule(name)
        if not isinstance(twin, elastic.Elastic):
            continue
        choice = elastic.choice_of(layer, twin)
        extracted = twin.extract(**choice)
        shapes = {key: value.shape for key, value in extracted.state_dict().items()}
        assert shapes == {key: value.shape for key, value in layer.state_dict().items()}, name
        assert elastic.choice_of(twin.extract(), twin) == {}


def test_a_layer_alone_and_kinds_that_stay():
    class Mine(nn.Linear):
        pass

    assert isinstance(elastic.convert(nn.Linear(2, 3)), elastic.ElasticLinear)
    assert type(elastic.convert(nn.Sequential(Mine(2, 3)))[0]) is Mine
    with pytest.raises(ValueError, match="max_norm must not be set, got 1.0"):
        elastic.convert(nn.Embedding(4, 2, max_norm=1.0))
    shared = nn.Linear(3, 3)
    twice = elastic.convert(nn.Sequential(shared, shared))
    assert twice[0] is twice[1]


def test_tokens_of_a_selected_width():
    tokens = ElasticTokens(3, 5, dtype=torch.float64)
    assert not tokens.weight.any()
    with torch.no_grad():
        tokens.weight.copy_(torch.arange(15).view(3, 5))
    assert torch.equal(tokens(width=2), tokens.weight[:, :2])
    plain = tokens.select(width=torch.tensor([4, 0])).extract()
    assert type(plain) is Tokens
    assert_close(plain(), tokens.weight[:, [4, 0]], tolerance=0)
    tokens().sum().backward()
    assert torch.equal(tokens.weight.grad[:, [0, 4]], torch.ones(3, 2, dtype=torch.float64))
    assert not tokens.weight.grad[:, 1:4].any()


def test_the_name_below_supernet_is_the_same_package():
    from sigeo.supernet import elastic as other

    assert other.__all__ == elastic.__all__
    assert all(getattr(other, name) is getattr(elastic, name) for name in elastic.__all__)
