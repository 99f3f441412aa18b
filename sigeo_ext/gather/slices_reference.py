"""What the slice ops compute, in plain torch.

The three layers are differentiable as they stand, so they also serve where the ops' own gradients
would not pay or would hide the layer from whoever watches calls.

A dimension's selection is a window [begin, length] or, where an index is given, that index.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sigeo_ext.gather.selection import (
    add_block,
    check_width,
    crop,
    place,
    place_block,
    select,
)
from sigeo_ext.gather.slices_checks import (
    check_bias,
    check_convolution,
    check_embedding,
    check_linear,
)

aten = torch.ops.aten


def rows_of(x: Tensor) -> Tensor:
    """[..., n] as [rows, n]."""
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    outputs: Sequence[int],
    inputs: Sequence[int],
    output_index: Tensor | None,
    input_index: Tensor | None,
    masked: bool,
    accumulate: bool,
) -> Tensor:
    """The layer on the selected part of the weight."""
    op = "gather_slice_linear"
    check_linear(op, x, weight, masked, outputs, inputs, output_index, input_index)
    check_bias(op, bias, weight)
    part = select(select(weight, 0, outputs, output_index), 1, inputs, input_index)
    shift = None if bias is None else select(bias, 0, outputs, output_index)
    if masked:
        x = select(x, -1, inputs, input_index)
    y = F.linear(x, part, shift)
    return place(y, len(weight), -1, outputs, output_index) if masked else y


def linear_backward(
    d: Tensor,
    x: Tensor,
    weight: Tensor,
    outputs: Sequence[int],
    inputs: Sequence[int],
    output_index: Tensor | None,
    input_index: Tensor | None,
    masked: bool,
    need: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the input, the super-weight and its bias, as far as needed."""
    op = "gather_slice_linear_backward"
    selection = (outputs, inputs, output_index, input_index)
    check_linear(op, x, weight, masked, *selection)
    check_width(op, "d", d, -1, weight.shape[0], masked, outputs, output_index)
    if masked:
        d, x = select(d, -1, outputs, output_index), select(x, -1, inputs, input_index)
    rows = rows_of(d)
    into_x, into_weight, into_bias = (x.new_empty(0) for _ in range(3))
    if need[0]:
        part = select(select(weight, 0, outputs, output_index), 1, inputs, input_index)
        into_x = torch.mm(rows, part).view(*d.shape[:-1], part.shape[1])
        if masked:
            into_x = place(into_x, weight.shape[1], -1, inputs, input_index)
    if need[1] and output_index is None and input_index is None:
        into_weight = torch.zeros_like(weight)
        block = into_weight.narrow(0, *outputs).narrow(1, *inputs)
        torch.mm(rows.t(), rows_of(x), out=block)
    elif need[1]:
        part = torch.mm(rows.t(), rows_of(x))
        into_weight = place_block(part, weight, *selection)
    if need[2]:
        into_bias = place(rows.sum(0), len(weight), 0, outputs, output_index)
    return into_x, into_weight, into_bias


def linear_accumulate(
    d: Tensor,
    x: Tensor,
    into: Tensor,
    outputs: Sequence[int],
    inputs: Sequence[int],
    output_index: Tensor | None,
    input_index: Tensor | None,
    masked: bool,
) -> None:
    """Add the weight's gradient to ``into``, the gradient of the whole super-weight."""
    op = "gather_slice_linear_accumulate"
    selection = (outputs, inputs, output_index, input_index)
    check_linear(op, x, into, masked, *selection)
    check_width(op, "d", d, -1, into.shape[0], masked, outputs, output_index)
    if masked:
        d, x = select(d, -1, outputs, output_index), select(x, -1, inputs, input_index)
    rows, columns = rows_of(d), rows_of(x)
    if output_index is None and input_index is None:
        into.narrow(0, *outputs).narrow(1, *inputs).addmm_(rows.t(), columns)
    else:
        add_block(torch.mm(rows.t(), columns), into, *selection)


def _convolution_part(
    weight: Tensor,
    outputs: Sequence[int],
    inputs: Sequence[int],
    output_index: Tensor | None,
    input_index: Tensor | None,
    kernel: Sequence[int],
    groups: int,
) -> Tensor:
    part = select(crop(weight, kernel), 0, outputs, output_index)
    return part if groups > 1 else select(part, 1, inputs, input_index)


def _block_of(
    weight: Tensor,
    outputs: Sequence[int],
    inputs: Sequence[int],
    output_index: Tensor | None,
    input_index: Tensor | None,
    groups: int,
) -> tuple[Any, ...]:
    """The selection of the weight's first two dimensions."""
    if groups == 1:
        return outputs, inputs, output_index, input_index
    return outputs, [0, weight.shape[1]], output_index, None


def convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    outputs: Sequence[int],
    inputs: Sequence[int],
    output_index: Tensor | None,
    input_index: Tensor | None,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    masked: bool,
    accumulate: bool,
) -> Tensor:
    """The layer on the selected part of the weight; more than one group: of whole groups."""
    selection = (outputs, inputs, output_index, input_index)
    selected = check_convolution("gather_slice_convolution", x, weight, *selection, groups, masked)
    check_bias("gather_slice_convolution", bias, weight)
    part = _convolution_part(weight, *selection, kernel, groups)
    shift = None if bias is None else select(bias, 0, outputs, output_index)
    format = format_of(x, weight)
    if masked:
        x = select(x, 1, inputs, input_index)
    if not part.numel():  # which the library refuses
        y = x.new_zeros(x.shape[0], len(part), *convolved(x, kernel, stride, padding, dilation))
        if shift is not None:
            y += shift.view(-1, *[1] * len(stride))
    else:
        function = (F.conv1d, F.conv2d, F.conv3d)[len(stride) - 1]
        y = function(x, part, shift, stride, padding, dilation, selected)
    if masked:
        y = place(y, len(weight), 1, outputs, output_index)
    return y.contiguous(memory_format=format)


def format_of(x: Tensor, weight: Tensor) -> torch.memory_format:
    """The memory format of a convolution's output and of its input's gradient."""
    if torch._C._are_functorch_transforms_active():  # vmap, at any depth, knows no other
        return torch.contiguous_format
    kinds = {4: torch.channels_last, 5: torch.channels_last_3d}
    for tensor in (x, weight):
        last = kinds.get(tensor.dim())
        if last and tensor.is_contiguous(memory_format=last) and not tensor.is_contiguous():
            return last
    return torch.contiguous_format


def convolved(x: Tensor, kernel: Sequence[int], *geometry: Sequence[int]) -> list[int]:
    """The size of a convolution's output."""
    return [
        (size + 2 * pad - apart * (taps - 1) - 1) // step + 1
        for size, taps, step, pad, apart in zip(x.shape[2:], kernel, *geometry, strict=True)
    ]


def convolution_backward(
    d: Tensor,
    x: Tensor,
    weight: Tensor,
    outputs: Sequence[int],
    inputs: Sequence[int],
    output_index: Tensor | None,
    input_index: Tensor | None,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    masked: bool,
    need: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the input, the super-weight and its bias, as far as needed."""
    op = "gather_slice_convolution_backward"
    selection = (outputs, inputs, output_index, input_index)
    selected = check_convolution(op, x, weight, *selection, groups, masked)
    check_width(op, "d", d, 1, weight.shape[0], masked, outputs, output_index)
    format = format_of(x, weight)
    if masked:
        d, x = select(d, 1, outputs, output_index), select(x, 1, inputs, input_index)
    part = _convolution_part(weight, *selection, kernel, groups)
    if not part.numel():
        parts = [torch.zeros_like(x), torch.zeros_like(part), d.transpose(0, 1).flatten(1).sum(1)]
    else:
        geometry = (stride, padding, dilation, False, [0] * len(stride), selected)
        parts = aten.convolution_backward(d, x, part, [len(part)], *geometry, need)
    into_x, into_weight, into_bias = (x.new_empty(0) for _ in range(3))
    if need[0]:
        into_x = parts[0]
        if masked:
            into_x = place(into_x, weight.shape[1] * groups, 1, inputs, input_index)
        into_x = into_x.contiguous(memory_format=format)
    if need[1]:
        block = _block_of(weight, *selection, groups)
        into_weight = place_block(parts[1], weight, *block)
    if need[2]:
        into_bias = place(parts[2], len(weight), 0, outputs, output_index)
    return into_x, into_weight, into_bias


def convolution_accumulate(
    d: Tensor,
    x: Tensor,
    into: Tensor,
    outputs: Sequence[int],
    inputs: Sequence[int],
    output_index: Tensor | None,
    input_index: Tensor | None,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    masked: bool,
) -> None:
    """Add the weight's gradient to ``into``, the gradient of the whole super-weight."""
    op = "gather_slice_convolution_accumulate"
    selection = (outputs, inputs, output_index, input_index)
    selected = check_convolution(op, x, into, *selection, groups, masked)
    check_width(op, "d", d, 1, into.shape[0], masked, outputs, output_index)
    if masked:
        d, x = select(d, 1, outputs, output_index), select(x, 1, inputs, input_index)
    if not d.shape[1] or not x.shape[1]:
        return
    # Of the weight only the shape is read.
    part = d.new_empty(d.shape[1], x.shape[1] // selected, *kernel)
    geometry = (stride, padding, dilation, False, [0] * len(stride), selected)
    _, gradient, _ = aten.convolution_backward(d, x, part, None, *geometry, [False, True, False])
    add_block(gradient, into, *_block_of(into, *selection, groups))


def embedding(
    tokens: Tensor,
    weight: Tensor,
    columns: Sequence[int],
    column_index: Tensor | None,
    padding: int,
    accumulate: bool,
) -> Tensor:
    """Rows of the selected columns."""
    check_embedding("gather_slice_embedding", tokens, weight, column_index)
    skipped = padding if padding >= 0 else None
    if column_index is None and tokens.numel() >= len(weight):
        return F.embedding(tokens, select(weight, 1, columns, None), skipped)
    # With few tokens, cutting their rows costs less than a gradient of the cut table.
    return select(F.embedding(tokens, weight, skipped), -1, columns, column_index)


def embedding_backward(
    d: Tensor,
    tokens: Tensor,
    weight: Tensor,
    columns: Sequence[int],
    column_index: Tensor | None,
    padding: int,
) -> Tensor:
    """The gradient of the super-weight; none for the row ``padding`` (-1: no such row)."""
    op = "gather_slice_embedding_backward"
    check_embedding(op, tokens, weight, column_index)
    check_width(op, "d", d, -1, weight.shape[1], False, columns, column_index)
    part = aten.embedding_dense_backward(d, tokens, len(weight), padding, False)
    return place(part, weight.shape[1], 1, columns, column_index)


def embedding_accumulate(
    d: Tensor,
    tokens: Tensor,
    into: Tensor,
    columns: Sequence[int],
    column_index: Tensor | None,
    padding: int,
) -> None:
    """Add the gradient to ``into``, the gradient of the whole super-weight."""
    op = "gather_slice_embedding_accumulate"
    check_embedding(op, tokens, into, column_index)
    check_width(op, "d", d, -1, into.shape[1], False, columns, column_index)
    part = aten.embedding_dense_backward(d, tokens, len(into), padding, False)
    if column_index is None:
        into.narrow(1, *columns).add_(part)
    else:
        into.index_add_(1, column_index, part)
