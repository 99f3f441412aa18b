"""The op on convolutions and linear layers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sigeo_ext import _check
from sigeo_ext.sample_moments import reference, tiles
from sigeo_ext.sample_moments.precision import matmul_precision
from sigeo_ext.sample_moments.triton.product_kernels import convolution_kernel, pairs_kernel
from sigeo_ext.sample_moments.triton.results import OPTIONS, Results, dtype_of, zeros

# Positions added up before the sum goes to a second one: bounds the growth of rounding errors.
_RUN = 2048
_LAST_INT32 = 2**31 - 1


def convolution(
    x: Tensor,
    d: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    unit: int,
    segments: int,
    want: int,
    factor: float,
) -> list[Tensor]:
    """Statistics [segments, O, *kernel, I/groups] and sq_norm [units] of a convolution's weight."""
    op = "sample_moments_convolution"
    reference.check_convolution(op, x, d, kernel, stride, padding, dilation, groups)
    reference.check_units(op, x.shape[0], unit, segments, want)
    in_size, out_size = x.shape[1:-1], d.shape[1:-1]
    inputs, outputs = x.shape[-1], d.shape[-1]
    in_group, of_group = inputs // groups, outputs // groups
    taps, positions, units = math.prod(kernel), math.prod(out_size), x.shape[0] // unit
    shape = (outputs, *kernel, in_group)
    if 0 in (units, taps * outputs * in_group, positions):
        return zeros(x, shape, units, segments, want)
    values = max(x[0].numel(), d[0].numel()) * unit
    _check.require(
        values <= _LAST_INT32, op, f"a unit must have at most {_LAST_INT32} values, got {values}"
    )
    x, d = x.contiguous(), d.contiguous()

    folded = taps > 1 and in_group < tiles.FOLDED_CHANNELS
    columns = taps * in_group if folded else in_group
    narrow = min(of_group, columns) < tiles.FEWEST_CHANNELS
    few = unit * positions < tiles.FEWEST_POSITIONS
    constants: dict[str, Any] = {
        "WANT": want,
        "DIMS": len(kernel),
        "PLAIN": taps == 1 and set(stride) == {1} and set(padding) == {0},
        "RUN": _RUN,
    }
    if x.dtype == torch.float64 or narrow or few:
        most_pairs, most_positions = tiles.shipped().pairs
        pairs = tiles.power_of_two(outputs * in_group, most_pairs, 16)
        constants["DTYPE"] = dtype_of(x)
        constants["BLOCK_PAIRS"] = pairs
        constants["BLOCK_POSITIONS"] = tiles.power_of_two(unit * positions, most_positions)
        run, blocks = pairs_kernel, -(-outputs * in_group // pairs) * taps
    else:
        tile = tiles.shipped().tiles[tiles.class_of(of_group, columns, want)]
        constants |= tile_constants(tile, matmul_precision())
        constants["FOLD"] = folded
        run = convolution_kernel
        blocks = -(-columns // tile.columns) * (1 if folded else taps)
        blocks *= -(-of_group // tile.outputs) * groups
    results = Results(x, shape, blocks, units, segments, want)
    with torch.cuda.device_of(x):
        run[(results.programs,)](
            x, d, results.pointers, results.norms, factor, unit, results.units, results.length,
            results.parts, positions, math.prod(in_size), inputs, outputs, groups,
            (tuple(in_size), tuple(out_size), tuple(kernel)),
            (tuple(stride), tuple(padding), tuple(dilation)), taps, **constants, **OPTIONS,
        )  # fmt: skip
        return results.collect(factor)


def tile_constants(tile: tiles.Tile, precision: str) -> dict[str, Any]:
    """What `convolution_kernel` is compiled for."""
    return {
        "PRECISION": precision,
        "BLOCK_OUTPUTS": tile.outputs,
        "BLOCK_COLUMNS": tile.columns,
        "BLOCK_POSITIONS": tile.positions,
        "num_warps": tile.warps,
        "num_stages": tile.stages,
    }
