"""The grouped linear layers; float64 goes to the reference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from sigeo_ext.gather import grouped_reference as reference
from sigeo_ext.gather.grouped_reference import Windows, window
from sigeo_ext.gather.slices_checks import check_bias
from sigeo_ext.gather.slices_reference import rows_of
from sigeo_ext.gather.triton.grouped_kernels import COLUMNS, rows_kernel, weight_kernel
from sigeo_ext.sample_moments.precision import matmul_precision

TYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
# Rows, or outputs, and columns, or inputs.
TILE = (64, 64)
# What is summed over at once.
INNER = {torch.float32: 16, torch.bfloat16: 32, torch.float16: 32}
# So that no kernel spills registers on any of the architectures.
OPTIONS: dict[str, Any] = {
    "num_warps": 8,
    "num_stages": 3,
    "enable_fp_fusion": True,
    "maxnreg": 255,
}


def constants(dtype: torch.dtype) -> dict[str, Any]:
    """The constants of a kernel that forms products of a dtype."""
    return {**OPTIONS, "PRECISION": matmul_precision(), "DTYPE": TYPES[dtype]}


def linear(
    x: Sequence[Tensor],
    weight: Tensor,
    bias: Tensor | None,
    outputs: Windows,
    inputs: Windows,
    accumulate: bool,
) -> list[Tensor]:
    """Each subnet's layer on its part of the weight."""
    if weight.dtype not in TYPES:
        return reference.linear(x, weight, bias, outputs, inputs, accumulate)
    op = "gather_grouped_linear"
    reference.check_subnets(op, x, weight, outputs, inputs)
    check_bias(op, bias, weight)
    y = [
        rows.new_empty(*rows.shape[:-1], width)
        for rows, width in zip(x, outputs[1::2], strict=True)
    ]
    _rows(x, y, weight, bias, outputs, inputs, backward=False)
    return y


def linear_backward(
    d: Sequence[Tensor],
    x: Sequence[Tensor],
    weight: Tensor,
    outputs: Windows,
    inputs: Windows,
    need: Sequence[bool],
) -> tuple[list[Tensor], Tensor, Tensor]:
    """Gradients of the inputs, the super-weight and its bias, as far as needed."""
    if weight.dtype not in TYPES:
        return reference.linear_backward(d, x, weight, outputs, inputs, need)
    op = "gather_grouped_linear_backward"
    reference.check_subnets(op, x, weight, outputs, inputs)
    reference.check_gradients(op, d, x, outputs)
    into_x: list[Tensor] = []
    if need[0]:
        into_x = [rows.new_empty(rows.shape) for rows in x]
        _rows(d, into_x, weight, None, outputs, inputs, backward=True)
    into_weight = weight.new_empty(0)
    if need[1]:
        into_weight = torch.empty_like(weight)
        _add(d, x, into_weight, outputs, inputs, add=False)
    return into_x, into_weight, reference.bias_gradient(d, weight, outputs, need[2])


def linear_accumulate(
    d: Sequence[Tensor], x: Sequence[Tensor], into: Tensor, outputs: Windows, inputs: Windows
) -> None:
    """Add the weight's gradient to ``into``, the gradient of the whole super-weight."""
    if into.dtype not in TYPES:
        return reference.linear_accumulate(d, x, into, outputs, inputs)
    op = "gather_grouped_linear_accumulate"
    reference.check_subnets(op, x, into, outputs, inputs)
    reference.check_gradients(op, d, x, outputs)
    _add(d, x, into, outputs, inputs, add=True)
    return None


def _table(
    read: Sequence[Tensor],
    other: Sequence[Tensor],
    outputs: Windows,
    inputs: Windows,
    before: Sequence[int],
) -> Tensor:
    """What the kernels must know of each subnet, on the device."""
    table = [
        [
            rows.data_ptr(),
            dense.data_ptr(),
            *rows.stride(),
            len(rows),
            *window(outputs, subnet),
            *window(inputs, subnet),
            before[subnet],
        ]
        for subnet, (rows, dense) in enumerate(zip(read, other, strict=True))
    ]
    assert all(len(row) == COLUMNS for row in table)
    return torch.tensor(table, dtype=torch.int64).to(read[0].device)


def _rows(
    read: Sequence[Tensor],
    into: Sequence[Tensor],
    weight: Tensor,
    bias: Tensor | None,
    outputs: Windows,
    inputs: Windows,
    *,
    backward: bool,
) -> None:
    """Products of the subnets' rows with the weight, written ``into`` dense tensors."""
    read = [rows_of(rows) for rows in read]
    widths = (inputs if backward else outputs)[1::2]
    counts = [
        -(-len(rows) // TILE[0]) * -(-width // TILE[1])
        for rows, width in zip(read, widths, strict=True)
    ]
    if not sum(counts):
        return
    before = [sum(counts[:subnet]) for subnet in range(len(counts))]
    table = _table(read, into, outputs, inputs, before)
    tiles = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    strides = weight.stride() if backward else weight.stride()[::-1]
    with torch.cuda.device_of(weight):
        rows_kernel[(len(tiles),)](
            table, tiles.to(weight.device), weight, bias, *strides,
            BACKWARD=backward, BIAS=bias is not None,
            BLOCK_ROWS=TILE[0], BLOCK_COLUMNS=TILE[1], BLOCK_INNER=INNER[weight.dtype],
            **constants(weight.dtype),
        )  # fmt: skip


def _add(
    d: Sequence[Tensor],
    x: Sequence[Tensor],
    into: Tensor,
    outputs: Windows,
    inputs: Windows,
    *,
    add: bool,
) -> None:
    """The weight's gradient, written or added ``into`` a tensor of its shape."""
    tiles = -(-into.shape[0] // TILE[0]) * -(-into.shape[1] // TILE[1])
    if not tiles or not d:
        return
    rows = [rows_of(t).contiguous() for t in x]
    gradients = [rows_of(t) for t in d]
    table = _table(gradients, rows, outputs, inputs, [0] * len(x))
    with torch.cuda.device_of(into):
        weight_kernel[(tiles,)](
            table, into, len(x), *into.shape, *into.stride(),
            ADD=add,
            BLOCK_OUTPUTS=TILE[0], BLOCK_INPUTS=TILE[1], BLOCK_ROWS=INNER[into.dtype],
            **constants(into.dtype),
        )  # fmt: skip
