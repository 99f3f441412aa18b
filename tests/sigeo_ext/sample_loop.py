"""The judge of sample_moments: gradients one sample at a time, statistics spelled out."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from sigeo_ext import sample_moments as sm
from sigeo_ext.testing import TOLERANCE, assert_close

FLOATS = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
EVERYTHING = sm.STATISTICS


def by_loop(gradients, unit=1, segments=None):
    """The statistics of [samples, *shape] gradients, spelled out in float64."""
    g = gradients.double().unflatten(0, (-1, unit)).sum(1)
    parts = g.unflatten(0, (segments or 1, -1))
    result = {
        "sum": parts.sum(1),
        "abs_sum": parts.abs().sum(1),
        "sq_sum": (parts**2).sum(1),
        "m2": ((parts - parts.mean(1, keepdim=True)) ** 2).sum(1),
        "sign_sum": parts.sign().sum(1),
    }
    result = {name: v if segments else v[0] for name, v in result.items()}
    return result | {"sq_norm": (g**2).flatten(1).sum(1)}


def assert_statistics(got, expected, tolerance):
    for name, value in expected.items():
        assert_close(getattr(got, name), value, tolerance=0 if name == "sign_sum" else tolerance)


def weight_gradients(x, d, weight, function):
    """Each sample's gradient of a layer's weight, by autograd."""
    rows = []
    for b in range(len(x)):
        w = weight.double().detach().requires_grad_()
        y = function(x[b : b + 1].double(), w)
        (g,) = torch.autograd.grad(y, w, d[b : b + 1].double())
        rows.append(g)
    return torch.stack(rows)


def tolerance_of(dtype):
    return 1e-10 if dtype == torch.float64 else TOLERANCE[dtype]


FUNCTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
