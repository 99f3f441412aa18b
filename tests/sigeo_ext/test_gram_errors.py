"""What the gram ops refuse, in one line."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from sigeo_ext import gram
from sigeo_ext.gram import op, reference

X, D = torch.randn(4, 6, 3), torch.randn(4, 6, 5)


BAD_CALLS = {
    "dtype": ("convolution", (X.int(), D, [1], [1], [0], [1], 1, 1), "x must be float32"),
    "size": ("convolution", (X, D, [3], [1], [0], [1], 1, 1), "d must have size"),
    "number": ("convolution", (X[0, 0, 0], D, [1], [1], [0], [1], 1, 1), "x must be .samples,"),
    "unit": ("convolution", (X, D, [1], [1], [0], [1], 1, 3), "unit must divide the 4 samples"),
    "count": ("lists", ([X], 0, False), "count must be at least 1, got 0"),
    "tensors": ("lists", ([X, X, X], 2, False), "for each of 2, got 3 tensors"),
    "shape": ("lists", ([X, D], 2, False), r"rows\[1\] must have its layer's shape"),
    "row": ("embedding", (torch.tensor([-1]), None, X[0, :1], 1, 1, -2), r"rows\[0\] must be from"),
    "codes": ("hamming", (X,), "codes must be uint8 .count, bytes., got Float .4, 6, 3.$"),
}


@pytest.mark.parametrize("implementation", ["op", "reference"])
@pytest.mark.parametrize("name", BAD_CALLS)
def test_errors_name_argument_expectation_and_what_came(implementation, name):
    function, arguments, message = BAD_CALLS[name]
    call = getattr(reference if implementation == "reference" else op, function, None)
    call = call or getattr(op, f"gram_{function}")
    with pytest.raises(RuntimeError, match=f"^gram_{function}: .*{message}"):
        call(*arguments)


def test_vectors_that_are_not_alike_are_refused():
    with pytest.raises(ValueError, match="^gram.dot: vectors must hold at least one, got none"):
        gram.dot([])
    with pytest.raises(
        ValueError, match="^gram.cosine: vectors must hold equally many tensors, got 1 and 2"
    ):
        gram.cosine([[X], [X, X]])


@pytest.mark.parametrize("route", ["auto", "gram", "direct"])
def test_layers_that_do_not_fit_together_are_refused_by_every_route(route):
    for x, d in (
        (torch.randn(8, 64), torch.randn(1, 64)),
        (torch.randn(1, 3, 64), torch.randn(1, 1, 64)),
        (torch.randn(2, 3, 64), torch.randn(2, 3, 64).double()),
    ):
        with pytest.raises(RuntimeError, match="^gram(_convolution|.linear): "):
            gram.linear(x, d, route=route)


@pytest.mark.parametrize("layer", [gram.linear, partial(gram.convolution, kernel_size=[1])])
def test_another_route_is_refused(layer):
    with pytest.raises(
        ValueError, match="^gram.*: route must be of auto, gram, direct, got 'fast'"
    ):
        layer(X, D, route="fast")


def test_a_route_of_negative_numbers_is_refused():
    message = "^gram.route: units, positions, inputs and outputs must be at least 0, got 1, -2, 3"
    with pytest.raises(RuntimeError, match=message):
        gram.route(1, -2, 3, 4)


@pytest.mark.parametrize("unit", [0, 3])
def test_samples_that_are_not_whole_units_are_refused(unit):
    with pytest.raises(RuntimeError, match=f"unit must divide the 4 samples, got {unit}"):
        gram.rows(X, unit=unit)


def test_entries_without_units_are_equally_many():
    with pytest.raises(
        ValueError, match="^gram.embedding: rows must be as many for each of the 5 units"
    ):
        gram.embedding(torch.arange(3), torch.randn(3, 2), count=5)
