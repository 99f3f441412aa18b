"""Batch norm of blocks against torch's, block by block."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from sigeo_ext import gather
from sigeo_ext.testing import assert_close
from tests.slices import randn

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-11}
BOTH = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


def block_by_block(x, weight, bias, mean, var, *, training, groups=1, momentum=0.1):
    """torch's batch norm on each block; groups one after another."""
    blocks = []
    for k, block in enumerate(x):
        parts = [
            F.batch_norm(
                part,
                None if mean is None else mean[k],
                None if var is None else var[k],
                weight[k],
                bias[k],
                training=training,
                momentum=momentum,
            )
            for part in block.chunk(groups)
        ]
        blocks.append(torch.cat(parts))
    return torch.stack(blocks)


def arguments(dtype, *, shared):
    x = (2 + 3 * randn(3, 12, 5, dtype=dtype)).requires_grad_()
    rows = randn(2, 3, 5, dtype=dtype, seed=1)
    if shared:
        rows = rows[:, :1].expand(2, 3, 5)
    weight, bias = (row.detach().requires_grad_() for row in rows)
    return x, weight, bias


@BOTH
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize(("tracked", "training"), [(False, True), (True, True), (True, False)])
def test_each_block_is_normed_as_torch_does(dtype, shared, groups, tracked, training):
    x, weight, bias = arguments(dtype, shared=shared)
    mean, var = randn(3, 5, dtype=dtype, seed=2), randn(3, 5, dtype=dtype, seed=3).abs() + 0.5
    ours = (mean.clone(), var.clone()) if tracked else (None, None)
    theirs = (mean.clone(), var.clone()) if tracked else (None, None)
    options = {"training": training, "groups": groups, "momentum": 0.3}
    got = gather.batch_norm(x, weight, bias, *ours, **options)
    expected = block_by_block(x, weight, bias, *theirs, **options)
    assert_close(got, expected, tolerance=TOLERANCE[dtype])
    for a, b in zip(ours, theirs, strict=True):
        if a is not None:
            assert_close(a, b, tolerance=TOLERANCE[dtype])
    d = randn(*x.shape, dtype=dtype, seed=4)
    found = torch.autograd.grad((got * d).sum(), [x, weight, bias])
    judge = torch.autograd.grad((expected * d).sum(), [x, weight, bias])
    for a, b in zip(found, judge, strict=True):
        assert_close(a, b, tolerance=10 * TOLERANCE[dtype])


def test_scale_and_shift_may_be_left_out():
    x = randn(2, 8, 3, dtype=torch.float64)
    ones, zeros = torch.ones(2, 3, dtype=x.dtype), torch.zeros(2, 3, dtype=x.dtype)
    assert torch.equal(gather.batch_norm(x), gather.batch_norm(x, ones, zeros))


def test_a_variance_far_below_eps_is_tracked():
    x = 1e-5 * randn(1, 64, 2)
    mean, var = torch.zeros(1, 2), torch.ones(1, 2)
    gather.batch_norm(x, None, None, mean, var, momentum=1.0)
    assert_close(var[0], x[0].var(0), tolerance=2e-2)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"x": torch.zeros(2, 3)}, "x must be [n, positions, channels], got [2, 3]"),
        ({"weight": torch.zeros(5)}, "weight must be [3, 5] like x, got [5]"),
        ({"bias": torch.zeros(3, 4)}, "bias must be [3, 5] like x, got [3, 4]"),
        ({"eps": -1e-5}, "eps must be at least 0, got -1e-05"),
        ({"groups": 5}, "groups must divide the 12 positions, got 5"),
        ({"running_mean": torch.zeros(3, 5)}, "running_mean and running_var belong together"),
        ({"training": False}, "are needed where not training"),
        (
            {"running_mean": torch.zeros(5), "running_var": torch.ones(5)},
            "running_mean must be [3, 5] like x, got [5]",
        ),
        (
            {"running_mean": torch.zeros(3, 5), "running_var": torch.ones(1, 5).expand(3, 5)},
            "running_var must have a row of its own for each block",
        ),
        (
            {"running_mean": torch.zeros(3, 5), "running_var": torch.ones(3, 5), "groups": 12},
            "a running variance needs two values a channel, got 1",
        ),
    ],
)
def test_a_wrong_argument_is_named(change, text):
    given = {"x": torch.zeros(3, 12, 5)} | change
    with pytest.raises(RuntimeError) as caught:
        gather.batch_norm(given.pop("x"), **given)
    assert text in str(caught.value)
