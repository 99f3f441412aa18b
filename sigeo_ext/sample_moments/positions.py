"""Norms of units' gradients from products of positions, where these are few."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sigeo_ext.sample_moments import patches
from sigeo_ext.sample_moments.layout import widened
from sigeo_ext.sample_moments.statistics import SampleMoments

# Values that the products of positions hold at once.
AT_ONCE = 1 << 22


def few(positions: int, inputs: int, outputs: int) -> bool:
    """Whether products of positions cost less than a unit's gradient, by multiply-adds.

    They are taken in float64, at half the speed: where contributions of positions cancel, squares
    of the large ones must too.
    """
    return 2 * positions * (inputs + outputs) < inputs * outputs


def sq_norms(
    x: Tensor, d: Tensor, unit: int, factor: float, axes: Sequence[patches.Axis] = ()
) -> SampleMoments:
    """||g||^2 = sum over t, s of (x_t . x_s)(d_t . d_s): no gradient is formed.

    A few units at a time; of a convolution if there are ``axes``.
    """
    units = len(x) // unit
    seen = math.prod(d.shape[2:]) if axes else d.shape[1]
    inputs = x.shape[1] * patches.taps_of(axes) if axes else x.shape[2]
    at_once = max(1, AT_ONCE // max(1, unit * seen * (unit * seen + inputs)))
    norms = x.new_empty(units, dtype=torch.float64)
    for begin in range(0, units, at_once):
        part = slice(begin * unit, (begin + at_once) * unit)
        a, b = widened(x[part]), widened(d[part])
        if axes:
            a, b = patches.seen_by_positions(a, axes), b.flatten(2).transpose(1, 2)
        a, b = (patches.of_units(t, unit).double() for t in (a, b))
        products = torch.bmm(a, a.mT).mul_(torch.bmm(b, b.mT))
        norms[begin : begin + at_once] = products.sum((1, 2))
    return SampleMoments(sq_norm=norms.clamp_min_(0) * factor**2)
