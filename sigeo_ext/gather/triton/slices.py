"""Slices of super-weights: linear layers with a list on either side, and embeddings.

The library's products read windows where they are, so linear layers on windows alone are the
reference's; float64 is, too, where there are products.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sigeo_ext import _check
from sigeo_ext.gather import slices_checks as checks
from sigeo_ext.gather import slices_reference as reference
from sigeo_ext.gather.selection import add_block, check_width, length, place, select
from sigeo_ext.gather.slices_reference import rows_of
from sigeo_ext.gather.triton.grouped import INNER, TILE, TYPES, constants
from sigeo_ext.gather.triton.slices_kernels import (
    chunks_kernel,
    gradient_kernel,
    product_kernel,
    rows_kernel,
    scatter_kernel,
)
from sigeo_ext.sample_moments import tiles
from sigeo_ext.sample_moments.triton import results

# Rows that one program sums up at least, before the rows of a gradient go to several.
_ROWS = 512
# Ordered tokens whose gradients one program adds up, one after the other.
_TOKENS = 64
# Values of a program of the embeddings, at most.
_VALUES = 1024
_COLUMNS = 512
Window = Sequence[int]


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    outputs: Window,
    inputs: Window,
    output_index: Tensor | None,
    input_index: Tensor | None,
    masked: bool,
    accumulate: bool,
) -> Tensor:
    """The layer on the selected part of the weight."""
    selection = (outputs, inputs, output_index, input_index)
    if not _has_kernel(x, weight, output_index, input_index):
        return reference.linear(x, weight, bias, *selection, masked, accumulate)
    op = "gather_slice_linear"
    checks.check_linear(op, x, weight, masked, *selection)
    checks.check_bias(op, bias, weight)
    _check_device(op, weight, x, bias, output_index, input_index)
    return _product(
        x, weight, bias, (inputs, input_index), (outputs, output_index), weight.stride()[::-1],
        weight.shape[0], masked,
    )  # fmt: skip


def linear_backward(
    d: Tensor,
    x: Tensor,
    weight: Tensor,
    outputs: Window,
    inputs: Window,
    output_index: Tensor | None,
    input_index: Tensor | None,
    masked: bool,
    need: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the input, the super-weight and its bias, as far as needed."""
    selection = (outputs, inputs, output_index, input_index)
    if not _has_kernel(x, weight, output_index, input_index):
        return reference.linear_backward(d, x, weight, *selection, masked, need)
    _check_gradient("gather_slice_linear_backward", d, x, weight, *selection, masked)
    into_x, into_weight, into_bias = (x.new_empty(0) for _ in range(3))
    if need[0]:
        into_x = _product(
            d, weight, None, (outputs, output_index), (inputs, input_index), weight.stride(),
            weight.shape[1], masked,
        )  # fmt: skip
    if need[1]:
        into_weight = torch.zeros_like(weight)
        _gradient(d, x, into_weight, *selection, masked, add=False)
    if need[2]:
        sums = rows_of(d).sum(0)
        if masked:
            sums = select(sums, 0, outputs, output_index)
        into_bias = place(sums, len(weight), 0, outputs, output_index)
    return into_x, into_weight, into_bias


def linear_accumulate(
    d: Tensor,
    x: Tensor,
    into: Tensor,
    outputs: Window,
    inputs: Window,
    output_index: Tensor | None,
    input_index: Tensor | None,
    masked: bool,
) -> None:
    """Add the weight's gradient to ``into``, the gradient of the whole super-weight."""
    selection = (outputs, inputs, output_index, input_index)
    if not _has_kernel(x, into, output_index, input_index):
        return reference.linear_accumulate(d, x, into, *selection, masked)
    _check_gradient("gather_slice_linear_accumulate", d, x, into, *selection, masked)
    _gradient(d, x, into, *selection, masked, add=True)
    return None


def embedding(
    tokens: Tensor,
    weight: Tensor,
    columns: Window,
    column_index: Tensor | None,
    padding: int,
    accumulate: bool,
) -> Tensor:
    """Rows of the selected columns; NaN for a token that the table does not have."""
    op = "gather_slice_embedding"
    _check_embedding(op, tokens, weight, column_index)
    width = length(columns, column_index)
    y = weight.new_empty(*tokens.shape, width)
    if y.numel():
        columns_of = tiles.power_of_two(width, _COLUMNS, 16)
        tokens_of = _VALUES // columns_of
        programs = -(-tokens.numel() // tokens_of) * -(-width // columns_of)
        with torch.cuda.device_of(weight):
            rows_kernel[(programs,)](
                tokens.contiguous(), weight, y, _dense(column_index), columns[0], tokens.numel(),
                len(weight), width, *weight.stride(), BLOCK_TOKENS=tokens_of,
                BLOCK_COLUMNS=columns_of, **results.OPTIONS,
            )  # fmt: skip
    return y


def embedding_backward(
    d: Tensor,
    tokens: Tensor,
    weight: Tensor,
    columns: Window,
    column_index: Tensor | None,
    padding: int,
) -> Tensor:
    """The gradient of the super-weight; none for the row ``padding`` (-1: no such row)."""
    into = torch.zeros_like(weight)
    op = "gather_slice_embedding_backward"
    _scatter(op, d, tokens, into, columns, column_index, padding, add=False)
    return into


def embedding_accumulate(
    d: Tensor,
    tokens: Tensor,
    into: Tensor,
    columns: Window,
    column_index: Tensor | None,
    padding: int,
) -> None:
    """Add the gradient to ``into``, the gradient of the whole super-weight."""
    op = "gather_slice_embedding_accumulate"
    _scatter(op, d, tokens, into, columns, column_index, padding, add=True)


def _has_kernel(x: Tensor, weight: Tensor, *lists: Tensor | None) -> bool:
    """Whether a product has a list on either side and a dtype that matrix units take."""
    return (
        any(index is not None for index in lists)
        and weight.dtype in TYPES
        and weight.dtype == x.dtype
    )


def _check_device(op: str, weight: Tensor, *tensors: Tensor | None) -> None:
    """Require all tensors where the weight is: a kernel would read anything."""
    for tensor in tensors:
        if tensor is not None and tensor.device != weight.device:
            expected = f"tensors must be on the weight's device {weight.device}"
            _check.require(False, op, f"{expected}, got one on {tensor.device}")


def _check_embedding(op: str, tokens: Tensor, weight: Tensor, columns: Tensor | None) -> None:
    checks.check_embedding(op, tokens, weight, columns)
    expected = "weight must be float32, float64, bfloat16 or float16"
    got = _check.dtype_of(weight)
    _check.require(_check.is_floating(weight), op, f"{expected}, got {got}")
    _check_device(op, weight, tokens, columns)


def _check_gradient(
    op: str,
    d: Tensor,
    x: Tensor,
    weight: Tensor,
    outputs: Window,
    inputs: Window,
    output_index: Tensor | None,
    input_index: Tensor | None,
    masked: bool,
) -> None:
    """Require a gradient of the output that such an input gives."""
    checks.check_linear(op, x, weight, masked, outputs, inputs, output_index, input_index)
    check_width(op, "d", d, -1, weight.shape[0], masked, outputs, output_index)
    expected = f"d must be {_check.dtype_of(x)} {list(x.shape[:-1])} but for its last dimension"
    fits = d.dtype == x.dtype and d.shape[:-1] == x.shape[:-1]
    _check.require(fits, op, f"{expected}, got {_check.dtype_of(d)} {list(d.shape)}")
    _check_device(op, weight, d, x, output_index, input_index)


def _dense(index: Tensor | None) -> Tensor | None:
    return None if index is None else index.contiguous()


def _product(
    a: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    inner: tuple[Window, Tensor | None],
    columns: tuple[Window, Tensor | None],
    strides: Sequence[int],
    size: int,
    masked: bool,
) -> Tensor:
    """Rows of ``a`` times the part, ``size`` places wide where masked."""
    rows, width = rows_of(a), length(*columns)
    shape = (*a.shape[:-1], size if masked else width)
    # The kernel leaves out what is not selected.
    into = a.new_zeros(shape) if shape[-1] > width else a.new_empty(shape)
    programs = -(-len(rows) // TILE[0]) * -(-width // TILE[1])
    if programs:
        with torch.cuda.device_of(weight):
            product_kernel[(programs,)](
                rows, weight, None if bias is None else bias.contiguous(), into,
                _dense(inner[1]), _dense(columns[1]), inner[0][0], columns[0][0],
                len(rows), length(*inner), width, *rows.stride(), *strides, shape[-1],
                MASKED=masked, BLOCK_ROWS=TILE[0], BLOCK_COLUMNS=TILE[1],
                BLOCK_INNER=INNER[a.dtype], **constants(a.dtype),
            )  # fmt: skip
    return into


def _gradient(
    d: Tensor,
    x: Tensor,
    into: Tensor,
    outputs: Window,
    inputs: Window,
    output_index: Tensor | None,
    input_index: Tensor | None,
    masked: bool,
    *,
    add: bool,
) -> None:
    """The weight's gradient, written or added ``into`` the selected places of its shape."""
    d, x = rows_of(d), rows_of(x)
    o, i = length(outputs, output_index), length(inputs, input_index)
    blocks = -(-o // TILE[0]) * -(-i // TILE[1])
    if not blocks or not len(x):
        return
    # A small part is too few tiles for a GPU, so its rows are cut into runs.
    runs, blocks_of_rows = tiles.parts(blocks, -(-len(x) // _ROWS), tiles.shipped().programs)
    partial = d.new_empty(runs, o, i, dtype=torch.float32) if runs > 1 else None
    with torch.cuda.device_of(into):
        gradient_kernel[(blocks * runs,)](
            d, x, into, partial, _dense(output_index), _dense(input_index), outputs[0], inputs[0],
            len(x), o, i, blocks_of_rows * _ROWS, *d.stride(), *x.stride(), *into.stride(),
            MASKED=masked, ADD=add, BLOCK_OUTPUTS=TILE[0], BLOCK_INPUTS=TILE[1],
            BLOCK_ROWS=INNER[d.dtype], **constants(d.dtype),
        )  # fmt: skip
        if partial is not None:
            total = partial.sum(0).to(into.dtype)
            add_block(total, into, outputs, inputs, output_index, input_index)


def _scatter(
    op: str,
    d: Tensor,
    tokens: Tensor,
    into: Tensor,
    columns: Window,
    column_index: Tensor | None,
    padding: int,
    *,
    add: bool,
) -> None:
    """Gradients of tokens, written or added ``into`` their rows; a row's in the tokens' order."""
    _check_embedding(op, tokens, into, column_index)
    check_width(op, "d", d, -1, into.shape[1], False, columns, column_index)
    fits = d.shape[:-1] == tokens.shape and d.dtype == into.dtype
    expected = f"d must be {_check.dtype_of(into)} {[*tokens.shape, d.shape[-1]]}"
    _check.require(fits, op, f"{expected}, got {_check.dtype_of(d)} {list(d.shape)}")
    _check_device(op, into, d)
    if not d.numel():
        return
    d = rows_of(d)
    count, width = d.shape
    ordered, order = tokens.flatten().sort(stable=True)
    block = tiles.power_of_two(width, _COLUMNS, 16)
    across = -(-width // block)
    chunks = -(-count // _TOKENS)
    wide = torch.float64 if d.dtype == torch.float64 else torch.float32
    partial = d.new_empty(chunks, width, dtype=wide)
    compiled: dict[str, Any] = {"DTYPE": results.dtype_of(d), "LENGTH": _TOKENS, "BLOCK": block}
    compiled |= results.OPTIONS
    with torch.cuda.device_of(into):
        if chunks > 1:
            chunks_kernel[(chunks * across,)](
                d, ordered, order, partial, count, width, padding, *d.stride(), **compiled
            )
        scatter_kernel[(count * across,)](
            d, ordered, order, partial, into, _dense(column_index), columns[0], count, len(into),
            width, padding, *d.stride(), *into.stride(), ADD=add, **compiled,
        )  # fmt: skip
