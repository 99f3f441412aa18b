"""Calls that are traced into graphs: lists have no values there, and errors stay as they are."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from sigeo_ext.gather import slices
from sigeo_ext.testing import assert_close
from tests.sigeo_ext.test_derivatives import flat_call, graphed, total
from tests.slices import randn

pytestmark = pytest.mark.slow
VECTOR, WEIGHT, KERNELS = randn(8), randn(8, 8, seed=1), randn(8, 8, 3, 3, seed=2)
ROWS, IMAGES = randn(2, 4, seed=3), randn(2, 4, 5, 5, seed=4)
LAYERS = {
    "layer_norm": (lambda x, i: slices.layer_norm(x, VECTOR, VECTOR, features=i), ROWS),
    "group_norm": (lambda x, i: slices.group_norm(x, 8, VECTOR, VECTOR, channels=i), IMAGES),
    "batch_norm": (
        lambda x, i: slices.batch_norm(x, VECTOR, VECTOR.exp(), None, None, channels=i),
        IMAGES,
    ),
    "linear": (lambda x, i: slices.linear(x, WEIGHT, VECTOR, outputs=i, inputs=i), ROWS),
    "convolution": (lambda x, i: slices.convolution(x, KERNELS, VECTOR, inputs=i), IMAGES),
}
PLACES = torch.tensor([5, 1, 3, 7])
EACH = pytest.mark.parametrize(("layer", "x"), LAYERS.values(), ids=LAYERS)


def squares(layer):
    return lambda x, places: layer(x, places).square().sum()


def autocast(layer):
    def run(x, places):
        with torch.autocast("cpu", torch.bfloat16):
            return layer(x.float(), places)

    return run


@EACH
def test_layers_on_lists_compile_into_one_graph(layer, x):
    for function in (layer, torch.func.grad(squares(layer))):
        torch._dynamo.reset()
        compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
        assert_close(compiled(x, PLACES), function(x, PLACES))


def test_a_layer_under_autocast_does():
    function = autocast(lambda x, i: slices.linear(x, WEIGHT.float(), inputs=i))
    compiled = torch.compile(function, backend="eager", fullgraph=True)
    assert_close(compiled(ROWS, PLACES), function(ROWS, PLACES))


@EACH
def test_layers_on_lists_that_are_arguments_are_exported(layer, x):
    class Model(torch.nn.Module):
        def forward(self, x, places):
            return layer(x, places)

    given = (x, PLACES)
    assert_close(torch.export.export(Model(), given).module()(*given), layer(*given))


@EACH
def test_layers_on_lists_have_shapes_of_fake_tensors(layer, x):
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    assert layer(mode.from_tensor(x), mode.from_tensor(PLACES)).shape == layer(x, PLACES).shape


def test_a_list_that_was_not_looked_at_is_not_taken_as_checked():
    layer, x = LAYERS["layer_norm"]
    twice = torch.tensor([5, 1, 1, 7])
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        layer(mode.from_tensor(x), twice)
    with pytest.raises(RuntimeError, match="must be without repeats, got 1"):
        layer(x, twice)


@pytest.mark.parametrize("name", ["gather_dispatch", "gather_combine"])
def test_gradients_of_ops_on_places_compile_into_one_graph(name):
    call, given = flat_call(name)
    loss = total(call, given)
    expected = torch.autograd.grad(loss(*(leaves := graphed(given))), leaves)
    torch._dynamo.reset()
    gradient = torch.func.grad(loss, tuple(range(len(given))))
    assert_close(torch.compile(gradient, backend="aot_eager", fullgraph=True)(*given), expected)


@pytest.mark.parametrize(
    ("x", "weight", "message"),
    [(ROWS, WEIGHT, "x must have the selected 8 values in dimension -1, got 4"),
     (ROWS, None, "raised exception AttributeError")],
    ids=["shape", "kind"],
)  # fmt: skip
def test_what_is_wrong_in_a_call_is_said_where_it_is_traced(x, weight, message):
    def run(x):
        return slices.linear(x, weight, outputs=PLACES)

    torch._dynamo.reset()
    with pytest.raises(Exception) as caught:
        torch.compile(run, backend="eager", fullgraph=True)(x)
    assert message in str(caught.value)
