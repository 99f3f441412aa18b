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
