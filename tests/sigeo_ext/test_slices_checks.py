"""What the slice ops refuse, of tensors with values and of fake ones."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

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
