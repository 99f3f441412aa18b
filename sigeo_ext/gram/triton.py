"""Layers' Gram matrices on Triton's kernels: the reference's function, argument for argument.

`sigeo_ext.gram.op` registers it for CUDA. Importing this module imports Triton.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from sigeo_ext.gram import reference
from sigeo_ext.sample_moments import triton
from sigeo_ext.sample_moments.reference import SUM

__all__ = ["convolution"]

# Gradients that are held at once, in values.
_AT_ONCE = 1 << 24


def convolution(
    x: Tensor,
    d: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    unit: int,
) -> Tensor:
    """<g_u, g_v> of a convolution's weight, [units, units].

    The units' gradients of a part of the outputs, in one launch, and the products of all pairs of
    them; then the next part. Gradients are those of `sigeo_ext.sample_moments`, a segment a unit.
    """
    reference.check_units(x, d, kernel, stride, padding, dilation, groups, unit)
    units = x.shape[0] // unit
    out = x.new_zeros(units, units, dtype=torch.float64)
    if units == 0:
        return out
    values = units * math.prod(kernel) * (x.shape[-1] // groups)  # of one output
    for of_x, of_d, of_groups in _parts(x, d, groups, max(1, _AT_ONCE // max(1, values))):
        geometry = (kernel, stride, padding, dilation, of_groups)
        (gradients,) = triton.convolution(of_x, of_d, *geometry, unit, units, SUM, 1.0)
        out += torch.ops.sigeo_ext.gram_lists(list(gradients.unbind()), units, False)
    return out


def _parts(x: Tensor, d: Tensor, groups: int, outputs: int) -> Iterator[tuple[Tensor, Tensor, int]]:
    """The layer in parts of at most so many outputs: fewer groups, then parts of a group.

    Yields:
        The part's x, d and groups.
    """
    inputs, all_outputs = x.shape[-1], d.shape[-1]
    if all_outputs <= outputs:
        yield x, d, groups
    elif groups == 1:
        for begin in range(0, all_outputs, outputs):
            yield x, d[..., begin : begin + outputs], 1
    else:
        of_group = all_outputs // groups
        some = max(1, outputs // of_group)
        for begin in range(0, groups, some):
            end = min(groups, begin + some)
            part = x[..., inputs // groups * begin : inputs // groups * end]
            yield from _parts(part, d[..., of_group * begin : of_group * end], end - begin, outputs)
