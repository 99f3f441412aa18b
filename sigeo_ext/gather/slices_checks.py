"""What the slice ops require of their arguments.

Of each layer there are two checks: one of shapes and dtypes, which fake tensors have too, and one
that also reads the lists of places.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sigeo_ext import _check
from sigeo_ext.gather.selection import check_dtypes, check_index, check_list, check_width, length


def check_linear(op: str, x: Tensor, weight: Tensor, masked: bool, *selection: Any) -> None:
    """Require a weight, a selection of it and an input that fit together."""
    _, inputs, output_index, input_index = selection
    _check_linear_lists(op, weight, output_index, input_index)
    check_index(op, "outputs", output_index, weight.shape[0])
    check_index(op, "inputs", input_index, weight.shape[1])
    check_width(op, "x", x, -1, weight.shape[1], masked, inputs, input_index)
    check_dtypes(op, x, weight)


def check_linear_shapes(op: str, x: Tensor, weight: Tensor, masked: bool, *selection: Any) -> None:
    """What `check_linear` requires of shapes and dtypes, and so of fake tensors."""
    _, inputs, output_index, input_index = selection
    _check_linear_lists(op, weight, output_index, input_index)
    check_width(op, "x", x, -1, weight.shape[1], masked, inputs, input_index)
    check_dtypes(op, x, weight)


def _check_linear_lists(
    op: str, weight: Tensor, output_index: Tensor | None, input_index: Tensor | None
) -> None:
    if weight.dim() != 2:
        got = f"got {list(weight.shape)}"
        _check.require(False, op, f"weight must be [outputs, inputs], {got}")
    check_list(op, "outputs", output_index)
    check_list(op, "inputs", input_index)


def check_bias(op: str, bias: Tensor | None, weight: Tensor) -> None:
    """Require one value an output, of the weight's dtype."""
    if bias is not None and (bias.shape != weight.shape[:1] or bias.dtype != weight.dtype):
        expected = f"bias must be [{weight.shape[0]}] of the weight's dtype"
        got = f"{_check.dtype_of(bias)} {list(bias.shape)}"
        _check.require(False, op, f"{expected}, got {got}")


def check_convolution(
    op: str,
    x: Tensor,
    weight: Tensor,
    outputs: Sequence[int],
    inputs: Sequence[int],
    output_index: Tensor | None,
    input_index: Tensor | None,
    groups: int,
    masked: bool,
) -> int:
    """How many groups are selected."""
    selection = (outputs, inputs, output_index, input_index)
    check_convolution_shapes(op, x, weight, *selection, groups, masked)
    width = weight.shape[1]
    check_index(op, "outputs", output_index, weight.shape[0])
    check_index(op, "inputs", input_index, width * groups)
    return 1 if groups == 1 else int(length(inputs, input_index) // width)


def check_convolution_shapes(
    op: str,
    x: Tensor,
    weight: Tensor,
    outputs: Sequence[int],
    inputs: Sequence[int],
    output_index: Tensor | None,
    input_index: Tensor | None,
    groups: int,
    masked: bool,
) -> None:
    """Require shapes and dtypes that fit together, also of fake tensors."""
    if x.dim() != weight.dim() or x.dim() not in (3, 4, 5):
        expected = "x must be [B, inputs, *size] and weight [outputs, inputs / groups, *kernel]"
        got = f"got x {list(x.shape)}, weight {list(weight.shape)}"
        _check.require(False, op, f"{expected}, {got}")
    check_list(op, "outputs", output_index)
    check_list(op, "inputs", input_index)
    check_width(op, "x", x, 1, weight.shape[1] * groups, masked, inputs, input_index)
    check_dtypes(op, x, weight)


def check_embedding(op: str, tokens: Tensor, weight: Tensor, columns: Tensor | None) -> None:
    """Require tokens, a table and a list of its columns."""
    check_embedding_shapes(op, tokens, weight, columns)
    check_index(op, "columns", columns, weight.shape[1])


def check_embedding_shapes(op: str, tokens: Tensor, weight: Tensor, columns: Tensor | None) -> None:
    """What `check_embedding` requires of shapes and dtypes, and so of fake tensors."""
    whole = tokens.dtype in (torch.int64, torch.int32)
    _check.require(whole, op, f"tokens must be int64 or int32, got {_check.dtype_of(tokens)}")
    _check.require(
        weight.dim() == 2, op, f"weight must be [rows, columns], got {list(weight.shape)}"
    )
    check_list(op, "columns", columns)
