"""Models of plain layers made elastic, and layers that are smaller than others."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sigeo import elastic, proxies
from sigeo.elastic import ElasticTokens, Tokens
from sigeo.scoring import score
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


@pytest.mark.parametrize("gone", [("weight",), ("bias",), ("running_mean", "running_var")])
def test_norms_that_lack_a_part_whatever_their_flags_say(gone):
    layer = nn.BatchNorm1d(3)
    for name in gone:
        setattr(layer, name, None)
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    twin = elastic.convert(layer)
    for one in (twin, twin.extract()):
        assert one.state_dict().keys() == layer.state_dict().keys()
        assert torch.equal(one(x), layer(x))


class Tied(nn.Module):
    """Words in and out by one table, as in language models; and a plain use of it."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(7, 6)
        self.inner = nn.Linear(6, 6)
        self.scores = nn.Linear(6, 7, bias=False)
        self.scores.weight = self.table.weight
        self.whole = nn.Module()
        self.whole.copy = self.table.weight


def test_parameters_that_layers_share_stay_shared():
    made = elastic.convert(Tied())
    assert made.table.weight is made.scores.weight is made.whole.copy
    back = elastic.extract(made)
    assert back.table.weight is back.scores.weight is back.whole.copy
    assert type(back.scores) is nn.Linear and back.scores.weight is not made.scores.weight
    del made.whole
    made.table.select(columns=4)
    made.inner.select(inputs=4, outputs=4)
    with pytest.raises(ValueError, match="weight of ElasticLinear is a parameter of other layers"):
        elastic.extract(made)
    made.scores.select(inputs=4)
    narrow = elastic.extract(made)
    assert narrow.table.weight is narrow.scores.weight and narrow.scores.weight.shape == (7, 4)
    made.whole = nn.Module()
    made.whole.copy = made.table.weight
    with pytest.raises(ValueError, match="takes a part of a parameter that others use whole"):
        elastic.extract(made)


def test_members_of_a_depth_that_share_a_parameter_still_do():
    depth = elastic.ElasticDepth(*(elastic.ElasticLinear(3, 3) for _ in range(3)))
    depth[2].weight = depth[0].weight
    whole = depth.extract()
    assert whole[2].weight is whole[0].weight is not whole[1].weight
    assert len(list(depth.extract(depth=2).parameters())) == 4


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
def test_layers_with_hooks_are_refused():
    normed = nn.Sequential(nn.utils.weight_norm(nn.Linear(2, 3)))
    with pytest.raises(ValueError, match="convert: Linear has hooks .* remove them first"):
        elastic.convert(normed)
    made = elastic.convert(nn.Sequential(nn.Linear(2, 3)))
    handle = made[0].register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match="extract: ElasticLinear has hooks"):
        elastic.extract(made)
    handle.remove()
    assert type(elastic.extract(made)[0]) is nn.Linear


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


@pytest.mark.parametrize(
    ("small", "large", "message"),
    [
        (nn.Conv2d(2, 3, 3, stride=2), nn.Conv2d(4, 4, 3), r"stride must be \(1, 1\), got \(2, 2"),
        (nn.Conv2d(2, 3, 3, bias=False), nn.Conv2d(4, 4, 3), "bias must be True, got False"),
        (nn.Conv2d(2, 3, 3), nn.Conv2d(4, 4, 5, padding=2), r"padding must be \[1, 1\] for this"),
        (nn.Conv2d(2, 3, (3, 1)), nn.Conv2d(4, 4, 3), r"kernel_size must be \(3, 3\), got \(3, 1"),
        (nn.Conv2d(2, 2, 3, groups=2), nn.Conv2d(4, 4, 3), "groups must be 1, got 2"),
        (nn.Conv2d(2, 4, 3, groups=2), nn.Conv2d(4, 4, 3, groups=4), "out_channels must be 2, got"),
        (nn.LayerNorm(2, eps=0.1), nn.LayerNorm(4), "eps must be 1e-05, got 0.1"),
        (nn.BatchNorm2d(2, affine=False), nn.BatchNorm2d(4), "affine must be True, got False"),
        (nn.Embedding(5, 2), nn.Embedding(6, 2), "num_embeddings must be 6, got 5"),
        (nn.BatchNorm2d(2), nn.LayerNorm(4), "expected a LayerNorm, got BatchNorm2d"),
    ],
)
def test_a_layer_that_no_choice_makes_is_refused(small, large, message):
    with pytest.raises(ValueError, match=message):
        elastic.choice_of(small, elastic.convert(large))


def test_the_proxies_that_see_super_weights_are_those_of_the_page():
    """`params`, `l2_norm`, `gradsign`, `fisher` and `zen`; of AZ-NAS this network has no blocks."""
    torch.manual_seed(0)
    model = nn.Sequential(
        elastic.ElasticConv2d(3, 16, 5, padding=2),
        elastic.ElasticBatchNorm2d(16),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        elastic.ElasticLinear(16, 4),
    )
    model[0].select(outputs=8, kernel=3)
    model[1].select(channels=8)
    model[5].select(inputs=8)
    batches = [(torch.randn(8, 3, 8, 8), torch.randint(4, (8,))) for _ in range(3)]
    names = [name for name in proxies.names() if not name.startswith("sigeo_recsys")]
    mine, plain = (score(m, batches, names) for m in (model, elastic.extract(model)))
    differ = {
        name for name in names if mine[name].value != pytest.approx(plain[name].value, rel=1e-4)
    }
    assert differ == {"params", "l2_norm", "gradsign", "fisher", "zen"}
