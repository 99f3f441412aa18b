"""`Moments`, the running state."""

from __future__ import annotations

import pytest
import torch

from sigeo_ext.moments import Moments
from sigeo_ext.testing import TOLERANCE, assert_close
from tests.cases import LAYERS, tensors
from tests.sigeo_ext.moments_definition import spelled_out, unit

SHAPES = LAYERS["convs"]


def table(summary):
    return torch.stack(summary, 1).cpu()


@pytest.mark.parametrize("keep", ["copy", "borrow", "own"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("n", range(2, 9))
def test_any_number_of_units_equals_definition(n, dtype, keep, device):
    weights = tensors(SHAPES, device=device)
    units = [unit(SHAPES, i, device=device) for i in range(n)]
    expected = spelled_out(units, weights)
    last_apart, all_added = (Moments(weights, dtype=dtype) for _ in range(2))
    for index, grads in enumerate(units):
        all_added.add([g.clone() for g in grads], keep=keep)
        if index + 1 < n:
            last_apart.add([g.clone() for g in grads], keep=keep)
    assert all_added.count == n
    assert_close(table(all_added.summary(weights=weights)), expected, tolerance=TOLERANCE[dtype])
    last = last_apart.summary(last=units[-1], weights=weights)
    assert_close(table(last), expected, tolerance=TOLERANCE[dtype])


def test_gradients_zeroed_in_place_are_still_told_apart(device):
    buffer = [torch.empty(100, device=device)]
    moments = Moments(buffer)
    units = [unit([(100,)], i, device=device) for i in range(6)]
    for (grads,) in units:
        buffer[0].copy_(grads)
        moments.add(buffer)
        buffer[0].zero_()
    assert_close(table(moments.summary()), spelled_out(units, [torch.zeros(100)]), tolerance=1e-5)


def test_absent_gradients_and_narrow_dtypes(device):
    weights = tensors(SHAPES, device=device)
    units = [unit(SHAPES, i, torch.bfloat16, device=device) for i in range(6)]
    units = [[g if (i + j) % 3 else None for j, g in enumerate(u)] for i, u in enumerate(units)]
    for keep in ("copy", "own"):
        moments = Moments(weights)
        for grads in units:
            moments.add(grads, keep=keep)
        assert_close(
            table(moments.summary(weights=weights)), spelled_out(units, weights), tolerance=1e-5
        )


@pytest.mark.parametrize("n", [3, 6])
def test_borrowed_gradients_are_left_alone(n, device):
    units = [unit(SHAPES, i, device=device) for i in range(n)]
    before = [[g.clone() for g in grads] for grads in units]
    moments = Moments(units[0])
    for grads in units:
        moments.add(grads, keep="borrow")
    moments.summary()
    for grads, old in zip(units, before, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(grads, old, strict=True))


@pytest.mark.parametrize("keep", ["copy", "own"])
def test_units_in_different_memory_orders_and_expanded_ones(keep, device):
    weights = [torch.ones(6, 4, 3, 5, device=device)]
    units = [[g.clone() for g in unit([(6, 4, 3, 5)], i, device=device)] for i in range(6)]
    moments = Moments(weights)
    for index, (grad,) in enumerate(units):
        if index == 1:
            grad = grad.to(memory_format=torch.channels_last)
        if index == 2:
            units[2] = [torch.full((), 0.5, device=device).expand(6, 4, 3, 5)]
            grad = units[2][0]
        moments.add([grad.clone() if keep == "own" and index != 2 else grad], keep=keep)
    assert_close(
        table(moments.summary(weights=weights)), spelled_out(units, weights), tolerance=1e-5
    )


def test_one_tensor_as_the_gradient_of_two_layers(device):
    weights = [torch.ones(50, device=device)] * 2
    units = [unit([(50,)], i, device=device) * 2 for i in range(6)]
    moments = Moments(weights)
    for grads in units:
        shared = grads[0].clone()
        moments.add([shared, shared], keep="own")
    assert_close(
        table(moments.summary(weights=weights)), spelled_out(units, weights), tolerance=1e-5
    )


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"dtype must be float32 or float64, got torch\.float16"):
        Moments([], dtype=torch.float16)
    moments = Moments([torch.ones(3)])
    with pytest.raises(ValueError, match="grads must hold one tensor a layer, 1, got 2"):
        moments.add([None, None])
    with pytest.raises(ValueError, match="last must hold one tensor a layer, 1, got 2"):
        moments.summary(last=[None, None])
    with pytest.raises(ValueError, match=r"grads\[0\] must be \[3\] on cpu, got \[4\] on cpu"):
        moments.add([torch.ones(4)])
    with pytest.raises(ValueError, match=r"grads\[0\] must be a dense tensor, got a torch\.sparse"):
        moments.add([torch.ones(3).to_sparse()])
    with pytest.raises(ValueError, match="keep must be one of .*, got 'Copy'"):
        moments.add([torch.ones(3)], keep="Copy")
