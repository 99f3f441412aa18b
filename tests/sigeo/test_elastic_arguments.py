"""Elastic layers: what they refuse, and their corners."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sigeo import InputError
from sigeo.capture import capture
from sigeo.supernet import elastic
from sigeo_ext.testing import assert_close
from tests.sigeo.test_elastic import conv, randn


def test_frozen_weights_stay_frozen():
    layer = elastic.ElasticLinear(4, 5)
    layer.weight.requires_grad_(False)
    plain = layer.extract(outputs=2)
    assert not plain.weight.requires_grad and plain.bias.requires_grad


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (
            lambda: elastic.ElasticLinear(4, 5).select(rows=2),
            "ElasticLinear: a choice must be of outputs, inputs, got rows",
        ),
        (
            lambda: elastic.ElasticEmbedding(4, 5, max_norm=1.0),
            "ElasticEmbedding: max_norm must not be set, got 1.0",
        ),
        (
            lambda: conv("2d", 3, 3, 3, padding_mode="circular"),
            "ElasticConv2d: padding_mode must be zeros, got circular",
        ),
        (
            lambda: conv("1d", 3, 3, 5, padding=1)(torch.ones(1, 3, 9), kernel=1),
            "padding must be at least 2 for a kernel of 5 cropped to 1, got 1",
        ),
        (
            lambda: elastic.ElasticLayerNorm((3, 4)),
            "ElasticLayerNorm: normalized_shape must be one size, got [3, 4]",
        ),
        (
            lambda: elastic.ElasticDepth(nn.Identity())(1, depth=2),
            "ElasticDepth: depth must be from 0 to 1, got 2",
        ),
        (
            lambda: elastic.ElasticDepth(nn.Identity()).extract(depth=-1),
            "ElasticDepth: depth must be from 0 to 1, got -1",
        ),
    ],
)
def test_a_wrong_argument_is_named(call, text):
    with pytest.raises(ValueError) as caught:
        call()
    assert text in str(caught.value)


@pytest.mark.parametrize(
    ("layer", "choice", "text"),
    [
        (elastic.ElasticLinear(4, 5), {"outputs": 6}, "outputs must be from 0 to 5, got 6"),
        (elastic.ElasticLinear(4, 5), {"inputs": -1}, "inputs must be from 0 to 4, got -1"),
        (elastic.ElasticLinear(4, 5), {"inputs": 2.0}, "an int64 tensor, got float"),
        (elastic.ElasticLinear(4, 5), {"inputs": slice(0, 4, 2)}, "a slice of step 1 from 0 to 4"),
        (elastic.ElasticLinear(4, 5), {"inputs": torch.tensor([1, 1])}, "must be without repeats"),
        (elastic.ElasticLinear(4, 5), {"inputs": torch.tensor([4])}, "must be from 0 to 3, got 4"),
        (elastic.ElasticEmbedding(9, 5), {"columns": 6}, "columns must be from 0 to 5, got 6"),
        (elastic.ElasticLayerNorm(5), {"features": 6}, "features must be from 0 to 5, got 6"),
        (elastic.ElasticBatchNorm1d(5), {"channels": 6}, "channels must be from 0 to 5, got 6"),
        (elastic.ElasticTokens(3, 5), {"width": 6}, "width must be from 0 to 5, got 6"),
        (elastic.ElasticAttention(8, 2), {"heads": 3}, "heads must be from 0 to 2, got 3"),
        (elastic.ElasticAttention(8, 2), {"width": 9}, "width must be from 0 to 8, got 9"),
        (elastic.ElasticDepth(nn.Identity()), {"depth": 2}, "depth must be from 0 to 1, got 2"),
        (conv("2d", 4, 4, 5), {"kernel": 4}, "kernel must be odd, at most the super-weight's"),
        (conv("2d", 4, 4, 5), {"kernel": 7}, "kernel must be odd, at most the super-weight's"),
        (conv("2d", 4, 4, 5, padding=0), {"kernel": 3}, "padding must be at least 1 for a kernel"),
        (conv("2d", 4, 4, 3), {"outputs": 5}, "outputs must be from 0 to 4, got 5"),
        (conv("2d", 4, 4, 3, groups=2), {"inputs": 3}, "inputs must be whole groups of 2 channels"),
        (conv("2d", 4, 4, 3, groups=2), {"outputs": 2}, "outputs must be None where there are"),
    ],
)
def test_a_choice_that_would_not_run_is_refused_when_it_is_made(layer, choice, text):
    for make in (layer.select, layer.extract):
        with pytest.raises(ValueError) as caught:
            make(**choice)
        assert text in str(caught.value) and type(layer).__name__ in str(caught.value)
    assert layer.choice == {}


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (
            lambda: elastic.configure(elastic.ElasticLinear(4, 5), masked="no"),
            "configure: masked must be True, False or None, got 'no'",
        ),
        (lambda: elastic.extract(None), "extract: model must be a Module, got None"),
        (lambda: elastic.convert("net"), "convert: model must be a Module, got 'net'"),
    ],
)
def test_arguments_of_another_kind_are_named(call, text):
    with pytest.raises(InputError) as caught:
        call()
    assert str(caught.value) == text


def test_tokens_of_a_width_that_there_is_not_are_refused():
    with pytest.raises(ValueError, match="width must be from 0 to 5, got 6"):
        elastic.ElasticTokens(3, 5)(width=6)


@pytest.mark.parametrize("columns", [5, slice(2, 6), torch.tensor([6, 1])])
def test_captures_of_a_part_of_a_table_land_in_its_columns(columns):
    model = torch.nn.Sequential(elastic.ElasticEmbedding(20, 8), torch.nn.Tanh()).double()
    model[0].select(columns=columns)
    tokens = torch.randint(0, 20, (4, 3), generator=torch.Generator().manual_seed(0))
    with capture(model, {"abs_sum", "sample_sq_norm"}) as found:
        model(tokens).sum((1, 2)).pow(2).mean().backward()
    expected = torch.zeros(20, 8, dtype=torch.float64)
    norms = []
    for row in tokens:
        model.zero_grad()
        model(row[None]).sum().pow(2).backward()
        expected += model[0].weight.grad.abs()
        norms.append(model[0].weight.grad.square().sum())
    got = found["0.weight"].abs_sum
    got = got.to_dense() if got.is_sparse else got
    assert torch.allclose(got, expected, rtol=1e-10)
    assert torch.allclose(found.sample_sq_norm, torch.stack(norms), rtol=1e-10)


def test_layers_without_a_masked_mode_refuse_it():
    model = torch.nn.Sequential(elastic.ElasticLinear(4, 4), elastic.ElasticEmbedding(3, 4))
    with pytest.raises(ValueError, match="masked: ElasticEmbedding has no masked mode"):
        elastic.configure(model, masked=True)
    assert not model[0].masked, "nothing is set where something cannot be"
    elastic.configure(model, masked=False, accumulate=True)


def test_choices_are_shown():
    layer = elastic.ElasticLinear(4, 6).select(outputs=3)
    assert "in_features=4" in repr(layer) and "outputs=3" in repr(layer)


@pytest.mark.parametrize("depth", [True, torch.tensor([0, 2]), slice(1, 3)])
def test_a_depth_is_a_whole_number(depth):
    model = elastic.ElasticDepth(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match="ElasticDepth: depth must be a whole number"):
        model(torch.zeros(1, 2), depth=depth)


@pytest.mark.parametrize("kernel", [True, 3.0, (3, 3), slice(0, 3)])
def test_a_kernel_is_a_whole_number(kernel):
    layer = elastic.ElasticConv1d(2, 2, 3, padding=1)
    for use in (layer.select, layer.extract, lambda **given: layer(torch.zeros(1, 2, 4), **given)):
        with pytest.raises(ValueError, match="ElasticConv1d: kernel must be a whole number, got"):
            use(kernel=kernel)


def test_what_torch_pads_on_one_side_and_steps_of_slices_are_refused():
    with pytest.raises(ValueError, match='padding="same" needs as much on both sides'):
        elastic.ElasticConv2d(3, 4, 4, padding="same")
    with pytest.raises(ValueError, match="a slice must be of step 1 from 0 on"):
        elastic.ElasticAttention(8, 4)(torch.zeros(1, 2, 8), heads=slice(0, 4, 2))


def test_a_batch_norm_that_stops_tracking_leaves_its_statistics():
    layer = elastic.ElasticBatchNorm1d(3)
    layer.track_running_stats = False
    plain = nn.BatchNorm1d(3)
    plain.track_running_stats = False
    x = randn(5, 3).float()
    assert_close(layer(x), plain(x))
    assert not layer.running_mean.any() and int(layer.num_batches_tracked) == 0
    extracted = layer.extract()
    assert extracted.state_dict().keys() == plain.state_dict().keys()
    assert_close(extracted.eval()(x), plain.eval()(x))
