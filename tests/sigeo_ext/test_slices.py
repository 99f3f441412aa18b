"""Layers on slices of super-weights: against plain torch's slicing and its autograd."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from sigeo_ext.gather import slices
from sigeo_ext.testing import assert_close, poison_empty
from tests.slices import (
    INPUTS,
    MODES,
    OUTPUTS,
    TOLERANCE,
    WIDE,
    agree,
    chosen,
    convolution_case,
    hidden,
    linear_case,
    randn,
)

pytestmark = pytest.mark.usefixtures("small_weights_through_ops")


@OUTPUTS
@INPUTS
@MODES
@WIDE
def test_linear_equals_slicing(outputs, inputs, masked, dtype, device):
    leaves, given, expected = linear_case(outputs, inputs, masked, dtype, device)
    with poison_empty():
        agree(slices.linear(*leaves, **given), expected, leaves, dtype)


@pytest.mark.parametrize("size", [(1, 1), (130, 70), (300, 257)], ids=str)
@pytest.mark.parametrize("outputs", ["prefix", "chunk", "list"])
@pytest.mark.parametrize("inputs", ["all", "chunk", "list", "ascending"])
@MODES
@WIDE
def test_linear_of_other_sizes(size, outputs, inputs, masked, dtype, device):
    case = {"size": size, "batch": (37,), "bias": False}
    leaves, given, expected = linear_case(outputs, inputs, masked, dtype, device, **case)
    with poison_empty():
        agree(slices.linear(*leaves, **given), expected, leaves, dtype)


@pytest.mark.parametrize("batch", [(), (0,), (2, 0, 3), (2, 3, 4, 1)], ids=str)
@pytest.mark.parametrize("outputs", ["prefix", "list"])
@MODES
def test_linear_of_any_batch(batch, outputs, masked, device):
    leaves, given, expected = linear_case(
        outputs, "chunk", masked, torch.float64, device, batch=batch
    )
    with poison_empty():
        agree(slices.linear(*leaves, **given), expected, leaves, torch.float64)


@pytest.mark.parametrize("name", ["1d", "2d", "2d, dilated", "3d"])
@pytest.mark.parametrize("outputs", ["all", "prefix", "chunk", "list"])
@pytest.mark.parametrize("inputs", ["all", "prefix", "chunk", "list"])
@MODES
@WIDE
def test_convolution_equals_slicing(name, outputs, inputs, masked, dtype, device):
    leaves, given, expected = convolution_case(name, outputs, inputs, masked, dtype, device)
    agree(slices.convolution(*leaves, **given), expected, leaves, dtype)


@pytest.mark.parametrize("name", ["depthwise", "depthwise, doubled"])
@INPUTS
@MODES
@WIDE
def test_channels_of_a_depthwise_convolution_select_its_groups(name, inputs, masked, dtype, device):
    leaves, given, expected = convolution_case(name, "all", inputs, masked, dtype, device)
    agree(slices.convolution(*leaves, **given), expected, leaves, dtype)


@pytest.mark.parametrize("inputs", [slice(4), slice(2, 6), slice(None)], ids=str)
@MODES
def test_channels_select_whole_groups(inputs, masked, device):
    weight = randn(9, 2, 3, seed=1, device=device).requires_grad_()
    bias = randn(9, seed=2, device=device).requires_grad_()
    channels = torch.arange(6, device=device)[inputs]
    rows = torch.cat([torch.arange(3 * g, 3 * g + 3) for g in channels[::2].cpu() // 2])
    x = randn(2, 6 if masked else len(channels), 5, device=device).requires_grad_()
    if masked:
        expected = hidden(F.conv1d(hidden(x, 1, channels), weight, bias, groups=3), 1, rows)
    else:
        expected = F.conv1d(x, weight[rows], bias[rows], groups=len(channels) // 2)
    got = slices.convolution(x, weight, bias, inputs=inputs, groups=3, masked=masked)
    agree(got, expected, [x, weight, bias], torch.float64)


@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("inputs", ["all", "prefix", "list"])
@MODES
def test_a_kernel_is_cropped_around_its_centre(kernel, groups, inputs, masked, device):
    into = ((4, 4 // groups, 5, 5), groups, {"padding": kernel // 2})
    leaves, given, expected = convolution_case(
        "", "prefix", inputs, masked, torch.float64, device, kernel=kernel, into=into
    )
    agree(slices.convolution(*leaves, **given), expected, leaves, torch.float64)


@pytest.mark.parametrize("outputs", ["none", "prefix", "list"])
@pytest.mark.parametrize("inputs", ["none", "prefix", "list"])
@MODES
def test_convolutions_in_channels_last(outputs, inputs, masked, device):
    leaves, given, expected = convolution_case(
        "2d", outputs, inputs, masked, torch.float64, device, last=True
    )
    agree(slices.convolution(*leaves, **given), expected, leaves, torch.float64)


@INPUTS
@WIDE
@pytest.mark.parametrize("padding_idx", [None, 2, -1])
@pytest.mark.parametrize("kind", [torch.int64, torch.int32], ids=str)
def test_embedding_equals_slicing(inputs, dtype, padding_idx, kind, device):
    selection, columns = chosen(inputs, 6, device)
    weight = randn(9, 6, dtype=dtype, device=device).requires_grad_()
    tokens = torch.tensor([[1, 2, 2], [8, 1, 0]], dtype=kind, device=device)
    with poison_empty():
        got = slices.embedding(tokens, weight, columns=selection, padding_idx=padding_idx)
        expected = F.embedding(tokens, weight[:, columns], padding_idx)
        agree(got, expected, [weight], dtype)


@pytest.mark.parametrize("shape", [(), (0,), (500,)], ids=str)
@pytest.mark.parametrize("inputs", ["prefix", "list", "ascending"])
def test_embedding_of_any_number_of_tokens(shape, inputs, device):
    selection, columns = chosen(inputs, 70, device)
    weight = randn(30, 70, device=device).requires_grad_()
    tokens = torch.randint(30, shape, generator=torch.Generator().manual_seed(0)).to(device)
    with poison_empty():
        got = slices.embedding(tokens, weight, columns=selection)
        agree(got, F.embedding(tokens, weight[:, columns]), [weight], torch.float64)


@pytest.mark.parametrize("selection", ["all", "prefix", "chunk", "list"])
@pytest.mark.parametrize("affine", [True, False])
@MODES
@WIDE
def test_layer_norm_equals_slicing(selection, affine, masked, dtype, device):
    features, places = chosen(selection, 7, device)
    weight, bias = (
        (randn(7, dtype=dtype, seed=s, device=device).requires_grad_() for s in (1, 2))
        if affine
        else (None, None)
    )
    width = 7 if masked else len(places)
    x = randn(3, 2, width, dtype=dtype, device=device).requires_grad_()
    if masked:
        expected = hidden(F.layer_norm(x, (7,), weight, bias), -1, places)
    else:
        parts = (weight[places], bias[places]) if affine else (None, None)
        expected = F.layer_norm(x, (width,), *parts)
    got = slices.layer_norm(x, weight, bias, features=features, size=7, masked=masked)
    agree(got, expected, [x, weight, bias] if affine else [x], dtype)


@pytest.mark.parametrize("channels", [slice(None), slice(4), slice(2, 6)], ids=str)
@MODES
def test_group_norm_equals_slicing(channels, masked, device):
    weight, bias = (randn(6, seed=s, device=device).requires_grad_() for s in (1, 2))
    places = torch.arange(6, device=device)[channels]
    x = randn(3, 6 if masked else len(places), 5, device=device).requires_grad_()
    if masked:
        expected = hidden(F.group_norm(x, 3, weight, bias), 1, places)
    else:
        expected = F.group_norm(x, len(places) // 2, weight[places], bias[places])
    got = slices.group_norm(x, 3, weight, bias, channels=channels, masked=masked)
    agree(got, expected, [x, weight, bias], torch.float64)


def test_group_norm_of_a_list_of_single_channels(device):
    places = torch.tensor([3, 0], device=device)
    weight, bias = (randn(4, seed=s, device=device).requires_grad_() for s in (1, 2))
    x = randn(3, 2, 5, device=device).requires_grad_()
    got = slices.group_norm(x, 4, weight, bias, channels=places)
    agree(got, F.group_norm(x, 2, weight[places], bias[places]), [x, weight, bias], torch.float64)


@pytest.mark.parametrize("selection", ["all", "prefix", "chunk", "list"])
@pytest.mark.parametrize("training", [True, False])
@MODES
@WIDE
def test_batch_norm_equals_slicing(selection, training, masked, dtype, device):
    channels, places = chosen(selection, 6, device)
    weight, bias = (randn(6, dtype=dtype, seed=s, device=device).requires_grad_() for s in (1, 2))
    mean = randn(6, dtype=dtype, seed=3, device=device)
    var = randn(6, dtype=dtype, seed=4, device=device) ** 2
    x = randn(4, 6 if masked else len(places), 3, dtype=dtype, device=device).requires_grad_()
    statistics, judged = (mean.clone(), var.clone()), (mean.clone(), var.clone())
    options = {"training": training, "momentum": 0.3}
    if masked:
        expected = hidden(F.batch_norm(x, *judged, weight, bias, **options), 1, places)
    else:
        parts = [v[places] for v in judged]
        expected = F.batch_norm(x, *parts, weight[places], bias[places], **options)
        for whole, part in zip(judged, parts, strict=True):
            whole[places] = part
    got = slices.batch_norm(
        x, *statistics, weight, bias, channels=channels, masked=masked, **options
    )
    agree(got, expected, [x, weight, bias], dtype)
    assert_close(statistics, judged, tolerance=TOLERANCE[dtype])


def test_norms_without_parameters_take_a_size(device):
    x = randn(4, 3, 5, device=device)
    got = slices.batch_norm(x, None, None, None, None, channels=3, size=6, training=True)
    assert_close(got, F.batch_norm(x, None, None, training=True))
    assert_close(slices.group_norm(x, 6, None, None, channels=3, size=6), F.group_norm(x, 3))


X, W, K, G = randn(2, 3), randn(4, 3), randn(4, 3, 5, 5), randn(4, 2, 3)
IMAGE, V = randn(2, 3, 6, 6), randn(3)
TOKENS = torch.tensor([0, 3])


def listed(*places):
    return torch.tensor(places, dtype=torch.int64)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: slices.linear(X, V), "weight must be [outputs, inputs], got [3]"),
        (lambda: slices.linear(X, W, V), "bias must be [4] of the weight's dtype, got Double [3]"),
        (
            lambda: slices.linear(X, W, randn(4).float()),
            "bias must be [4] of the weight's dtype, got Float [4]",
        ),
        (
            lambda: slices.convolution(IMAGE, K, randn(4).float()),
            "bias must be [4] of the weight's dtype, got Float [4]",
        ),
        (lambda: slices.linear(X, W.float()), "one dtype, got Double and Float"),
        (lambda: slices.linear(X, W, outputs=5), "outputs must be from 0 to 4, got 5"),
        (lambda: slices.linear(X, W, outputs=-1), "outputs must be from 0 to 4, got -1"),
        (lambda: slices.linear(X, W, outputs=2.0), "or an int64 tensor, got float"),
        (
            lambda: slices.linear(X, W, outputs=slice(0, 4, 2)),
            "outputs must be a slice of step 1 from 0 to 4, got slice(0, 4, 2)",
        ),
        (lambda: slices.linear(X, W, outputs=slice(1, 9)), "got slice(1, 9, None)"),
        (
            lambda: slices.linear(X, W, outputs=listed(0, 2, 0)),
            "outputs must be without repeats, got 1 repeats",
        ),
        (lambda: slices.linear(X, W, outputs=listed(0, 4)), "outputs must be from 0 to 3, got 4"),
        (lambda: slices.linear(X, W, outputs=listed(-1)), "outputs must be from 0 to 3, got -1"),
        (
            lambda: slices.linear(X, W, outputs=listed(0).int()),
            "outputs must be int64 [n], got Int [1]",
        ),
        (
            lambda: slices.linear(X, W, inputs=listed(1, 1)),
            "inputs must be without repeats, got 1 repeats",
        ),
        (lambda: slices.linear(X, W, inputs=2), "x must have the selected 2 values in dimension"),
        (
            lambda: slices.linear(X[:, :2], W, inputs=2, masked=True),
            "x must have all 3 values in dimension -1, got 2",
        ),
        (
            lambda: slices.convolution(IMAGE, X),
            "weight must be [outputs, inputs / groups, *kernel]",
        ),
        (lambda: slices.convolution(X, K), "x must be [B, inputs, *size]"),
        (
            lambda: slices.convolution(IMAGE, K, V),
            "bias must be [4] of the weight's dtype, got Double [3]",
        ),
        (
            lambda: slices.convolution(IMAGE, K, kernel=4),
            "kernel must be odd, at most the",
        ),
        (lambda: slices.convolution(IMAGE, K, kernel=7), "odd [5, 5], got 7"),
        (lambda: slices.convolution(IMAGE, K, stride=[1]), "stride must be an int or 2 of them"),
        (
            lambda: slices.convolution(IMAGE, K, inputs=2),
            "x must have the selected 2 values in dimension 1, got 3",
        ),
        (
            lambda: slices.convolution(IMAGE, G, groups=2, outputs=2),
            "outputs must be None where there are groups, got 2",
        ),
        (
            lambda: slices.convolution(IMAGE, G, groups=2, inputs=3),
            "inputs must be whole groups of 2 channels, got 3 from 0",
        ),
        (
            lambda: slices.convolution(IMAGE, G, groups=2, inputs=listed(0)),
            "inputs must be None, an int or a slice where groups have several input channels",
        ),
        (lambda: slices.embedding(TOKENS, V), "weight must be [rows, columns], got [3]"),
        (lambda: slices.embedding(TOKENS, W, columns=4), "columns must be from 0 to 3, got 4"),
        (lambda: slices.embedding(TOKENS.double(), W), "tokens must be int64 or int32, got Double"),
        (
            lambda: slices.embedding(TOKENS, W, columns=listed(1, 1)),
            "columns must be without repeats",
        ),
        (
            lambda: slices.embedding(TOKENS, W, padding_idx=4),
            "padding_idx must be a row below 4, got 4",
        ),
        (lambda: slices.layer_norm(X, V, V, features=2), "x must have 2 values in dimension -1"),
        (lambda: slices.layer_norm(X, None, None), "size must be given without weight and bias"),
        (
            lambda: slices.group_norm(IMAGE[:, :1], 1, V, V, channels=1),
            "channels must be whole groups of 3 channels, got 1 from 0",
        ),
        (
            lambda: slices.group_norm(IMAGE[:, :1], 1, V, V, channels=listed(0)),
            "channels must be whole groups of 3 channels, got a list of places",
        ),
        (lambda: slices.group_norm(IMAGE, 2, V, V), "groups must divide the 3 channels, got 2"),
        (lambda: slices.group_norm(IMAGE, 0, V, V), "groups must divide the 3 channels, got 0"),
        (
            lambda: slices.convolution(IMAGE, G, groups=3),
            f"groups must divide the {len(G)} outputs, got 3",
        ),
        (lambda: slices.convolution(IMAGE, G, groups=0), "outputs, got 0"),
        (
            lambda: slices.batch_norm(IMAGE, None, None, V, V, channels=2),
            "x must have 2 values in dimension 1, got 3",
        ),
    ],
)
def test_a_wrong_argument_is_named(call, text):
    with pytest.raises(RuntimeError) as caught:
        call()
    assert text in str(caught.value)


def test_a_token_that_the_table_does_not_have_is_refused():
    with pytest.raises((RuntimeError, IndexError), match="4|out of range"):
        slices.embedding(torch.tensor([4]), W, columns=2)


@pytest.mark.usefixtures("small_weights_through_ops")
def test_a_weight_used_twice_has_the_same_gradient_with_and_without_a_graph():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(4, 4, dtype=torch.float64, generator=generator).requires_grad_()
    x = torch.randn(2, 4, dtype=torch.float64, generator=generator).requires_grad_()

    def run():
        return slices.linear(slices.linear(x, weight, outputs=3), weight, inputs=3)

    plain = torch.autograd.grad(run().square().sum(), [weight, x])
    graph = torch.autograd.grad(run().square().sum(), [weight, x], create_graph=True)
    for a, b in zip(graph, plain, strict=True):
        assert torch.allclose(a, b, rtol=1e-12)


@pytest.mark.usefixtures("small_weights_through_ops")
def test_accumulation_takes_place_only_where_the_gradient_is_asked_for():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(4, 4, generator=generator).requires_grad_()
    x = torch.randn(2, 4, generator=generator).requires_grad_()
    weight.grad = torch.zeros_like(weight)

    def run():
        return slices.linear(x, weight, outputs=3, accumulate=True).sum()

    torch.autograd.grad(run(), x)
    run().backward(inputs=[x])
    assert not weight.grad.any()
    (found,) = torch.autograd.grad(run(), weight)
    assert found.any() and not weight.grad.any()
    run().backward(inputs=[weight])
    assert torch.allclose(weight.grad, found)
    run().backward()
    assert torch.allclose(weight.grad, 2 * found)


def test_norms_refuse_repeats():
    x = torch.zeros(2, 2)
    with pytest.raises(RuntimeError, match="features must be without repeats"):
        slices.layer_norm(x, torch.ones(3), None, features=torch.tensor([0, 0]))
    with pytest.raises(RuntimeError, match="channels must be from 0 to 2"):
        weight = torch.ones(3)
        slices.batch_norm(
            torch.zeros(2, 3), None, None, weight, None, channels=torch.tensor([-1]),
            training=True, masked=True,
        )  # fmt: skip


@pytest.mark.usefixtures("small_weights_through_ops")
def test_steps_of_zero_are_refused():
    x, weight = torch.zeros(1, 2, 5, 5), torch.zeros(4, 2, 3, 3)
    with pytest.raises(RuntimeError, match="stride must be at least 1, got"):
        slices.convolution(x, weight, outputs=0, stride=0)
