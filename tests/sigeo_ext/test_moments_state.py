"""`Moments`, the running state."""

from __future__ import annotations

import pytest
import torch

from sigeo_ext.moments import Moments
from sigeo_ext.testing import TOLERANCE, assert_close
from tests.cases import LAYERS, tensors
from tests.sigeo_ext.test_moments import spelled_out, unit

SHAPES = LAYERS["convs"]


def table(summary):
    return torch.stack(summary, 1).cpu()


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("n", range(2, 9))
def test_any_number_of_units_equals_definition(n, dtype, own, device):
    weights = tensors(SHAPES, device=device)
    units = [unit(SHAPES, i, device=device) for i in range(n)]
    expected = spelled_out(units, weights)
    last_apart, all_added = (Moments(weights, dtype=dtype) for _ in range(2))
    for index, grads in enumerate(units):
        all_added.add([g.clone() for g in grads], own=own)
        if index + 1 < n:
            last_apart.add([g.clone() for g in grads], own=own)
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
    for own in (False, True):
        moments = Moments(weights)
        for grads in units:
            moments.add(grads, own=own)
        assert_close(
            table(moments.summary(weights=weights)), spelled_out(units, weights), tolerance=1e-5
        )


@pytest.mark.parametrize("n", [1, 3])
def test_shared_states_grow_apart(n, device):
    units = [unit(SHAPES, i, device=device) for i in range(8)]
    weights = tensors(SHAPES, device=device)
    first = Moments(weights)
    for grads in units[:n]:
        first.add([g.clone() for g in grads], own=True)
    second = first.share()
    for grads in units[n : n + 3]:
        first.add([g.clone() for g in grads], own=True)
    for grads in units[n + 3 :]:
        second.add([g.clone() for g in grads], own=True)
    assert_close(
        table(first.summary()), spelled_out(units[: n + 3], weights) * no_inner(), tolerance=1e-5
    )
    expected = spelled_out(units[:n] + units[n + 3 :], weights) * no_inner()
    assert_close(table(second.summary()), expected, tolerance=1e-5)


def no_inner():
    return torch.tensor([1, 1, 0, 1, 1, 1], dtype=torch.float64)


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"dtype must be float32 or float64, got torch\.float16"):
        Moments([], dtype=torch.float16)
    moments = Moments([torch.ones(3)])
    with pytest.raises(ValueError, match="grads must hold one tensor a layer, 1, got 2"):
        moments.add([None, None])
    for _ in range(4):
        moments.add([torch.ones(3)])
    with pytest.raises(RuntimeError, match="share needs at most 3 units, got 4"):
        moments.share()
