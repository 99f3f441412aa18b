"""Layers' Gram matrices on Triton's kernels against the reference; interpreted without a GPU."""

from __future__ import annotations

import pytest
import torch

from sigeo_ext.gram import reference
from sigeo_ext.testing import TOLERANCE, assert_close, poison_empty
from tests.cases import needs_triton

triton = pytest.importorskip("sigeo_ext.gram.triton", reason="needs triton")
pytestmark = needs_triton

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Shapes of x and d, channels last, kernel, stride, padding, dilation and groups. Small, since the
# interpreter takes its time.
LAYERS = {
    "linear": ((4, 2, 9), (4, 2, 12), [1], [1], [0], [1], 1),
    "3x3": ((4, 3, 3, 2), (4, 3, 3, 5), [3, 3], [1, 1], [1, 1], [1, 1], 1),
    "signal": ((2, 9, 3), (2, 4, 10), [3], [2], [1], [2], 1),
    "groups": ((2, 4, 3, 4), (2, 2, 1, 6), [3, 3], [1, 1], [0, 0], [1, 1], 2),
    "depthwise": ((2, 3, 3, 9), (2, 3, 3, 9), [3, 3], [1, 1], [1, 1], [1, 1], 9),
}


def call(name, dtype=torch.float32, unit=1):
    """Arguments of the op."""
    of_x, of_d, *geometry = LAYERS[name]
    x, d = (torch.randn(shape).to(DEVICE, dtype) for shape in (of_x, of_d))
    return (x, d, *geometry, unit)


@pytest.mark.parametrize(
    ("name", "dtype"), [*((name, torch.float32) for name in LAYERS), ("linear", torch.float64)]
)
def test_equals_the_reference(name, dtype):
    arguments = call(name, dtype)
    with poison_empty():
        got = triton.convolution(*arguments)
    assert got.dtype == torch.float64
    assert_close(got, got.t(), tolerance=1e-14)  # to the bit where kernels add the products up
    assert_close(got, reference.convolution(*arguments), tolerance=TOLERANCE[dtype])


@pytest.mark.parametrize(("name", "at_once", "parts"), [("3x3", 120, 2), ("groups", 80, 4)])
def test_some_outputs_at_a_time(name, at_once, parts, monkeypatch):
    x, d, *rest = call(name)
    arguments = (x[:2], d[:2], *rest)
    calls = []
    convolution = triton.triton.convolution
    monkeypatch.setattr(
        triton.triton, "convolution", lambda *args: calls.append(args) or convolution(*args)
    )
    monkeypatch.setattr(triton, "_AT_ONCE", at_once)
    got = triton.convolution(*arguments)
    assert len(calls) == parts
    assert_close(got, reference.convolution(*arguments), tolerance=1e-5)


def test_units_of_several_samples():
    arguments = call("3x3", unit=2)
    got = triton.convolution(*arguments)
    assert got.shape == (2, 2)
    assert_close(got, reference.convolution(*arguments), tolerance=1e-5)


def test_no_samples():
    x, d, *rest = call("3x3")
    assert triton.convolution(x[:0], d[:0], *rest).shape == (0, 0)


def test_a_wrong_argument_is_named():
    with pytest.raises(RuntimeError, match="gram_convolution: unit must divide the 4 samples"):
        triton.convolution(*call("3x3", unit=3))
