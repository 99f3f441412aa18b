"""Layers on slices of super-weights, which stay where they are.

A super-weight holds the weights of the largest layer; a subnet uses a *selection* of it along each
of its dimensions:

* ``None``: everything;
* an int ``n``: the first n;
* a slice of step 1: a chunk;
* an int64 tensor [n]: the places it lists, none of them twice. Where a graph is traced they are not
  looked at.

In *clean* mode the input has the selected width and so has the result. In *masked* mode both have
the full width: the result is that of the layer on the whole weight, of whose input the places that
are not selected count as zero, with zeros in the output's places that are not selected.

Gradients of super-weights have the super-weight's shape and are zero outside the selection.
``accumulate=True`` allows the backward pass to add a large weight's gradient to the ``.grad`` that
it has already, in place, where the weight is a leaf of the graph; no tensor of the super-weight's
size is made then. ``torch.autograd.grad`` sees no gradient of such a weight, and hooks on it do not
run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sigeo_ext import _check
from sigeo_ext._kinds import named_arguments
from sigeo_ext._op import call
from sigeo_ext.gather import slices_op as op
from sigeo_ext.gather import slices_reference as reference
from sigeo_ext.gather.routes import must_be_plain
from sigeo_ext.gather.selection import Selection, Window, check_index, length, plain, window_of
from sigeo_ext.gather.slices_norms import batch_norm, group_norm, layer_norm

__all__ = [
    "Selection",
    "batch_norm",
    "check_convolution_selection",
    "check_selection",
    "convolution",
    "embedding",
    "group_norm",
    "layer_norm",
    "linear",
]

SMALL = 1 << 18
"""Weights of a linear layer or convolution up to which plain torch's slices serve.

Not where a linear layer's selection is a list, and not in masked mode.
"""
SMALL_TABLE = 1 << 20
"""Weights of a table up to which windows of its columns are plain torch's slices."""


@named_arguments("slices.linear")
def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    outputs: Selection = None,
    inputs: Selection = None,
    masked: bool = False,
    accumulate: bool = False,
) -> Tensor:
    """A linear layer on a part of a super-weight. Differentiable.

    Equivalent to ``F.linear(x, weight[outputs][:, inputs], bias[outputs])``; masked: to
    ``F.linear(x, weight, bias)`` with zeros where an output is not selected.

    Args:
        x: [..., selected inputs]; masked: [..., inputs].
        weight: [outputs, inputs], of x's dtype.
        bias: [outputs].
        outputs: Selection of the weight's rows.
        inputs: Selection of its columns.
        masked: Full width, in and out.
        accumulate: Allows adding to ``weight.grad`` in place.

    Returns:
        [..., selected outputs]; masked: [..., outputs].

    Raises:
        RuntimeError: A selection that the weight does not have, or shapes that do not fit.
    """
    name = "slices.linear"
    _check_dims(name, weight, 2, "weight must be [outputs, inputs]")
    rows, row_index = window_of(name, "outputs", outputs, weight.shape[0])
    columns, column_index = window_of(name, "inputs", inputs, weight.shape[1])
    given: Any = (x, weight, bias, rows, columns, row_index, column_index, masked, accumulate)
    listed = row_index is not None or column_index is not None
    if _in_plain_torch(weight, SMALL, listed or masked):
        return reference.linear(*given)
    y: Tensor = call(op.gather_slice_linear, *given)
    return y


@named_arguments("slices.convolution")
def convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    outputs: Selection = None,
    inputs: Selection = None,
    kernel: int | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    masked: bool = False,
    accumulate: bool = False,
) -> Tensor:
    """A convolution on a part of a super-weight, one to three dimensions. Differentiable.

    Equivalent to ``F.conv2d(x, weight[outputs][:, inputs][..., crop, crop], bias[outputs], ...)``.
    With groups, ``inputs`` selects whole groups, the outputs follow, and the result is that of a
    convolution of so many groups; a list of places needs groups of one input channel each
    (depthwise layers).

    Args:
        x: ``[B, selected inputs, *size]``; masked: ``[B, inputs, *size]``.
        weight: ``[outputs, inputs / groups, *kernel]``, of x's dtype.
        bias: [outputs].
        outputs: Selection of output channels; None where there are groups.
        inputs: Selection of input channels.
        kernel: The odd size to which an odd kernel is cropped around its centre.
        stride: As of the layer.
        padding: As of the layer, in zeros, for the cropped kernel.
        dilation: As of the layer.
        groups: Of the whole super-weight.
        masked: Full width, in and out.
        accumulate: Allows adding to ``weight.grad`` in place.

    Returns:
        ``[B, selected outputs, *size]``; masked: ``[B, outputs, *size]``.

    Raises:
        RuntimeError: A selection that the weight does not have, or shapes that do not fit.
    """
    name = "slices.convolution"
    dims = weight.dim() - 2
    if dims not in (1, 2, 3):
        message = "weight must be [outputs, inputs / groups, *kernel] of one to three dimensions"
        _check.require(False, name, f"{message}, got {list(weight.shape)}")
    (rows, row_index), (columns, column_index), size = _convolution_choice(
        name, weight, groups, outputs, inputs, kernel
    )
    geometry = []
    for argument, values, least in (
        ("stride", stride, 1), ("padding", padding, 0), ("dilation", dilation, 1),
    ):  # fmt: skip
        numbers = _spread(name, argument, values, dims)
        message = f"{argument} must be at least {least}, got {numbers}"
        _check.require(min(numbers) >= least, name, message)
        geometry.append(numbers)
    selection = (rows, columns, row_index, column_index)
    given: Any = (x, weight, bias, *selection, size, *geometry, groups, masked, accumulate)
    empty = not length(rows, row_index) or not length(columns, column_index)
    if not empty and _in_plain_torch(weight, SMALL, masked):
        return reference.convolution(*given)
    y: Tensor = call(op.gather_slice_convolution, *given)
    return y


@named_arguments("slices.embedding")
def embedding(
    tokens: Tensor,
    weight: Tensor,
    *,
    columns: Selection = None,
    padding_idx: int | None = None,
    accumulate: bool = False,
) -> Tensor:
    """Rows of a super-table, cut to a selection of its columns. Differentiable.

    Equivalent to ``F.embedding(tokens, weight[:, columns], padding_idx)``.

    Args:
        tokens: int64 or int32, any shape.
        weight: [rows, columns].
        columns: Selection of the width.
        padding_idx: The row that gets no gradient.
        accumulate: Allows adding to ``weight.grad`` in place; the cost is then that of the tokens,
            whatever the size of the table.

    Returns:
        ``[*tokens.shape, selected columns]``.

    Raises:
        RuntimeError: A selection that the table does not have, or, on a CPU, a token that it does
            not have (an IndexError where plain torch serves); Triton's kernels give NaN for it, and
            no gradient.
    """
    name = "slices.embedding"
    _check_dims(name, weight, 2, "weight must be [rows, columns]")
    window, index = window_of(name, "columns", columns, weight.shape[1])
    padding = -1 if padding_idx is None else padding_idx
    fits = padding_idx is None or -len(weight) <= padding < len(weight)
    _check.require(fits, name, f"padding_idx must be a row below {len(weight)}, got {padding_idx}")
    if padding_idx is not None and padding < 0:
        padding += len(weight)
    given: Any = (tokens, weight, window, index, padding, accumulate)
    if _in_plain_torch(weight, SMALL_TABLE, index is not None or accumulate):
        return reference.embedding(*given)
    y: Tensor = call(op.gather_slice_embedding, *given)
    return y


def _in_plain_torch(weight: Tensor, small: int, special: bool) -> bool:
    """Whether plain torch's slicing and autograd serve.

    They do where a zero-filled tensor of the weight's size costs less than an op of our own, and
    where autocast, `torch.func` or someone who watches torch's functions must see the layer's call.
    """
    return (weight.numel() <= small and not special) or must_be_plain(weight)


def check_selection(name: str, argument: str, selection: Selection, size: int) -> None:
    """Require that a selection is one of ``size`` places, as the functions here do.

    Args:
        name: Of the layer, for the message.
        argument: Its own name.
        selection: As above.
        size: Of the dimension.

    Raises:
        RuntimeError: It is no such selection.
    """
    check_index(name, argument, window_of(name, argument, selection, size)[1], size)


def check_convolution_selection(
    name: str,
    weight: Tensor,
    groups: int,
    *,
    outputs: Selection,
    inputs: Selection,
    kernel: int | None,
) -> None:
    """Require selections that `convolution` would run; arguments as there.

    Raises:
        RuntimeError: `convolution` would refuse them.
    """
    _convolution_choice(name, weight, groups, outputs, inputs, kernel)
    check_selection(name, "inputs", inputs, weight.shape[1] * groups)
    check_selection(name, "outputs", outputs, weight.shape[0])


def _convolution_choice(
    name: str,
    weight: Tensor,
    groups: int,
    outputs: Selection,
    inputs: Selection,
    kernel: int | None,
) -> tuple[Window, Window, list[int]]:
    """What is selected of the outputs and of the inputs, and the size of the kernel."""
    if groups < 1 or weight.shape[0] % groups:
        message = f"groups must divide the {weight.shape[0]} outputs, got {groups}"
        _check.require(False, name, message)
    columns = window_of(name, "inputs", inputs, weight.shape[1] * groups)
    if groups == 1:
        rows = window_of(name, "outputs", outputs, weight.shape[0])
    else:
        rows = _rows_of_groups(name, weight, groups, outputs, *columns)
    return rows, columns, _cropped(name, weight.shape[2:], kernel)


def _rows_of_groups(
    name: str,
    weight: Tensor,
    groups: int,
    outputs: Selection,
    channels: list[int],
    index: Tensor | None,
) -> Window:
    """The outputs of the groups that are selected through their input channels."""
    _check.require(
        outputs is None, name, f"outputs must be None where there are groups, got {outputs!r}"
    )
    width, each = weight.shape[1], weight.shape[0] // groups
    if index is None:
        whole = channels[0] % width == 0 and channels[1] % width == 0
        expected = f"inputs must be whole groups of {width} channels"
        _check.require(whole, name, f"{expected}, got {channels[1]} from {channels[0]}")
        return [channels[0] // width * each, channels[1] // width * each], None
    expected = "inputs must be None, an int or a slice where groups have several input channels"
    _check.require(width == 1, name, f"{expected}, got a tensor for groups of {width}")
    if each == 1:
        return [0, 0], index
    outputs_of = torch.arange(each, device=index.device)
    return [0, 0], (index[:, None] * each + outputs_of).flatten()


def _cropped(name: str, size: Sequence[int], kernel: int | None) -> list[int]:
    if kernel is None:
        return list(size)
    fits = kernel % 2 == 1 and all(n % 2 == 1 and 0 < kernel <= n for n in size)
    expected = f"kernel must be odd, at most the super-weight's odd {list(size)}"
    _check.require(fits, name, f"{expected}, got {kernel}")
    return [kernel] * len(size)


def _spread(name: str, argument: str, values: int | Sequence[int], dims: int) -> list[int]:
    values = plain(values)
    found = [values] * dims if isinstance(values, int) else list(values)
    if len(found) != dims:
        _check.require(False, name, f"{argument} must be an int or {dims} of them, got {found}")
    return found


def _check_dims(name: str, weight: Tensor, dims: int, expected: str) -> None:
    if weight.dim() != dims:
        _check.require(False, name, f"{expected}, got {list(weight.shape)}")
