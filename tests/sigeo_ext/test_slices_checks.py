"""What the slice ops refuse, of tensors with values and of fake ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from sigeo_ext import gram, sample_moments
from sigeo_ext.gather import slices

pytestmark = pytest.mark.usefixtures("small_weights_through_ops")
LAYERS = {
    "linear": (slices.linear, torch.ones(3, 4), torch.ones(5, 4)),
    "convolution": (slices.convolution, torch.ones(2, 4, 6, 6), torch.ones(5, 4, 3, 3)),
}
TABLE, FLOATS = torch.ones(5, 4), torch.ones(2)


def refused(function, args, options, text):
    """Check that a call is refused with this text, and the call on fake tensors too."""
    mode = FakeTensorMode()

    def fake(value):
        return mode.from_tensor(value) if isinstance(value, Tensor) else value

    faked = {name: fake(value) for name, value in options.items()}
    for given, named in ((args, options), ([fake(arg) for arg in args], faked)):
        with pytest.raises(RuntimeError) as caught:
            function(*given, **named)
        assert text in str(caught.value)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("layer", LAYERS)
def test_shapes_and_dtypes_of_layers(layer, masked):
    function, x, weight = LAYERS[layer]
    part = {"outputs": 2, "masked": masked}
    for bias in (torch.ones(2), torch.ones(5, 1), torch.ones(5, dtype=torch.float16)):
        refused(function, (x, weight, bias), part, "bias must be [5] of the weight's dtype")
    refused(function, (x, weight[:, :3]), part, "3 values in dimension")
    refused(function, (x.double(), weight), part, "x and the weight must be of one dtype")
    listed = {"outputs": FLOATS, "masked": masked}
    refused(function, (x, weight), listed, "outputs must be int64 [n]")


def test_shapes_and_dtypes_of_embeddings():
    tokens = torch.tensor([1, 0])
    refused(slices.embedding, (tokens.float(), TABLE), {}, "tokens must be int64 or int32")
    refused(slices.embedding, (tokens, TABLE), {"columns": FLOATS}, "columns must be int64 [n]")


@pytest.mark.parametrize("masked", [False, True])
def test_vectors_of_norms_are_of_one_length(masked):
    x, eight, seven = torch.ones(2, 8), torch.ones(8), torch.ones(7)
    part = {"masked": masked}
    refused(slices.layer_norm, (x, eight, seven), part, "layer_norm: bias must be [8], got [7]")
    refused(slices.group_norm, (x, 2, eight, seven), part, "group_norm: bias must be [8], got [7]")
    for place, name in enumerate(("running_var", "weight", "bias"), start=1):
        vectors = [eight] * 4
        vectors[place] = seven
        refused(slices.batch_norm, (x, *vectors), part, f"batch_norm: {name} must be [8], got [7]")
    refused(slices.layer_norm, (x, torch.ones(2, 4), None), part, "weight must be [8], got [2, 4]")


@pytest.mark.parametrize("layer", LAYERS)
def test_numbers_of_numpy_are_selections(layer):
    function, x, weight = LAYERS[layer]
    x, weight = torch.randn(x.shape), torch.randn(weight.shape)
    for outputs, plain in ((np.int64(2), 2), (slice(np.int32(1), np.int64(3)), slice(1, 3))):
        found = function(x, weight, outputs=outputs, inputs=np.uint8(4))
        assert torch.equal(found, function(x, weight, outputs=plain, inputs=4))
    refused(function, (x, weight), {"outputs": np.float64(2)}, "None, an int, a slice or an int64")
    refused(function, (x, weight), {"outputs": np.True_}, "None, an int, a slice or an int64")


def test_numbers_of_numpy_are_steps_of_convolutions():
    x, weight = torch.randn(2, 4, 6, 6), torch.randn(5, 4, 3, 3)
    made, plain = ({"stride": kind(2), "padding": kind(1)} for kind in (np.int64, int))
    expected = slices.convolution(x, weight, outputs=3, **plain)
    assert torch.equal(slices.convolution(x, weight, outputs=3, **made), expected)
    d = torch.randn(expected.shape)
    for function, options in (
        (sample_moments.convolution, {"want": ["sq_norm"]}),
        (gram.convolution, {}),
    ):
        pair = [function(x, d, kernel_size=(3, 3), **options, **one) for one in (made, plain)]
        first, second = (getattr(found, "sq_norm", found) for found in pair)
        assert torch.equal(first, second)
