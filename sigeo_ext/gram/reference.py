"""What the gram ops mean, in plain PyTorch: their fallback on any device, their judge.

Everything is computed in float64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sigeo_ext import _check
from sigeo_ext.sample_moments.reference import check_convolution, check_entries, unit_gradients

OptionalTensorList = list[Tensor | None]

# Gradients that are held at once, in values.
_AT_ONCE = 1 << 24


def lists(rows: Sequence[Tensor | None], count: int, difference: bool) -> Tensor:
    """Dot products, or squared distances, of ``count`` vectors in tensors, one after another's."""
    op = "gram_lists"
    _check.require(count > 0, op, f"count must be at least 1, got {count}")
    same = f"rows must hold the same number of tensors for each of {count}, got {len(rows)} tensors"
    _check.require(len(rows) % count == 0, op, same)
    layers = len(rows) // count
    _check.lists(op, rows=rows, layers=layers)
    present = next((t for t in rows if t is not None), torch.empty(0))
    out = present.new_zeros(count, count, dtype=torch.float64)
    for layer in range(layers):
        of_layer = rows[layer::layers]
        like = next((t for t in of_layer if t is not None), None)
        if like is None:
            continue
        values = torch.stack(
            [torch.zeros_like(like) if t is None else t for t in of_layer]
        ).double()
        flat = values[:, None] if values.dim() == 1 else values.flatten(1)
        if difference:
            out += torch.stack([(flat - row).square().sum(1) for row in flat])
        else:
            out += flat @ flat.t()
    return out


def check_units(
    x: Tensor,
    d: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    unit: int,
) -> None:
    """Require a convolution's input and output gradient, of whole units."""
    op = "gram_convolution"
    check_convolution(op, x, d, kernel, stride, padding, dilation, groups)
    divides = f"unit must divide the {x.shape[0]} samples, got {unit}"
    _check.require(unit > 0 and x.shape[0] % unit == 0, op, divides)


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
    """<g_u, g_v> of a convolution's weight, [units, units]."""
    check_units(x, d, kernel, stride, padding, dilation, groups, unit)
    units = x.shape[0] // unit
    weight = max(1, d.shape[-1] * (x.shape[-1] // groups) * math.prod(kernel))
    at_once = max(1, _AT_ONCE // weight)
    out = x.new_zeros(units, units, dtype=torch.float64)
    starts = range(0, units, at_once)

    def some(begin: int) -> Tensor:
        part = slice(begin * unit, (begin + at_once) * unit)
        geometry = (kernel, stride, padding, dilation, groups)
        return torch.stack([g.flatten() for g in unit_gradients(x[part], d[part], *geometry, unit)])

    for begin in starts:
        left = some(begin)
        for other in starts:
            if other < begin:
                continue
            block = left @ (left if other == begin else some(other)).t()
            out[begin : begin + at_once, other : other + at_once] = block
            out[other : other + at_once, begin : begin + at_once] = block.t()
    return (out + out.t()) / 2


def embedding(
    rows: Tensor,
    units: Tensor | None,
    gradients: Tensor,
    count: int,
    entries: int,
    skipped: int,
) -> Tensor:
    """<g_u, g_v> of an embedding table, [count, count]."""
    units = check_entries("gram_embedding", rows, units, gradients, count, entries)
    kept = rows != skipped
    touched, place = rows[kept].unique(return_inverse=True)
    units, values = units[kept], gradients[kept].double()
    width = gradients.shape[1]
    out = gradients.new_zeros(count, count, dtype=torch.float64)
    at_once = max(1, _AT_ONCE // max(1, count * width))
    for begin in range(0, len(touched), at_once):
        here = (place >= begin) & (place < begin + at_once)
        dense = values.new_zeros(count, min(at_once, len(touched) - begin), width)
        dense.index_put_((units[here], place[here] - begin), values[here], accumulate=True)
        flat = dense.flatten(1)
        out += flat @ flat.t()
    return out


def hamming(codes: Tensor) -> Tensor:
    """How many bits differ, int64 [count, count]."""
    right = codes.dim() == 2 and codes.dtype == torch.uint8
    message = f"codes must be uint8 [count, bytes], got {_check.form_of(codes)}"
    _check.require(right, "gram_hamming", message)
    shifts = torch.arange(8, device=codes.device)
    bits = (codes[:, :, None] >> shifts & 1).flatten(1).double()
    ones = bits.sum(1)
    both = bits @ bits.t()  # exact: counts below 2^53
    return (ones[:, None] + ones[None] - 2 * both).round().long()
