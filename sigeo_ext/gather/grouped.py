"""Products of many subnets of different widths over one super-weight, in one call.

Subnet s has rows of its own, ``x[s]``, and windows of its own of the super-weight's outputs and
inputs:

* ``None``: everything;
* an int ``n``: the first n;
* a slice of step 1: a chunk.

Batches are *ragged*: subnets may have other numbers of rows, and other widths. So they go in and
come out as lists, a tensor a subnet. Nothing is padded and nobody keeps offsets; packing all rows
into one tensor would gain nothing, because rows of different widths do not lie below one another.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sigeo_ext import _check
from sigeo_ext._kinds import named_arguments
from sigeo_ext._op import call, needs_gradient
from sigeo_ext.gather import grouped_op as op
from sigeo_ext.gather import grouped_reference as reference
from sigeo_ext.gather.grouped_statistics import sample_moments, subnet_moments
from sigeo_ext.gather.grouped_windows import Window, windows_of
from sigeo_ext.gather.routes import must_be_plain

__all__ = ["Window", "linear", "sample_moments", "subnet_moments"]

SMALL = 1 << 18
"""Weights times subnets up to which plain torch's slices serve: its zero-filled gradients, one a
subnet, then cost less than a call of ours.
"""
FEW = 8
"""Subnets below which plain torch serves where no gradient is wanted."""


@named_arguments("grouped.linear")
def linear(
    x: Sequence[Tensor],
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    outputs: Sequence[Window] | None = None,
    inputs: Sequence[Window] | None = None,
    accumulate: bool = False,
) -> list[Tensor]:
    """A linear layer of every subnet on its part of a super-weight. Differentiable.

    Equivalent to ``[F.linear(x[s], weight[outputs[s], inputs[s]], bias[outputs[s]]) for s in ...]``
    with one gradient of the super-weight, zero where no subnet's part lies, to which all subnets'
    products add in a fixed order. Subnets of few rows whose inputs are the same go through the
    library's products together.

    Args:
        x: A tensor a subnet, [..., its inputs], with any number of rows, also none.
        weight: [outputs, inputs], of the dtype of all of ``x``.
        bias: [outputs].
        outputs: A window of the weight's rows a subnet; without it all use all.
        inputs: Likewise of its columns.
        accumulate: Allows the backward pass to add to ``weight.grad`` in place, as in
            `sigeo_ext.gather.slices`.

    Returns:
        A tensor a subnet, [..., its outputs].

    Raises:
        RuntimeError: A window that the weight does not have, or shapes that do not fit.
    """
    name = "grouped.linear"
    if weight.dim() != 2:
        expected = "weight must be [outputs, inputs]"
        _check.require(False, name, f"{expected}, got {list(weight.shape)}")
    windows = [
        windows_of(name, argument, given, len(x), size)
        for argument, given, size in (
            ("outputs", outputs, weight.shape[0]),
            ("inputs", inputs, weight.shape[1]),
        )
    ]
    if not x:
        return []
    arguments: Any = (list(x), weight, bias, *windows, accumulate)
    if must_be_plain(weight) or not _pays(arguments):
        return reference.in_windows(*arguments[:-1])
    y: list[Tensor] = call(op.gather_grouped_linear, *arguments)
    return y


def _pays(arguments: Any) -> bool:
    """Whether an op of ours is worth its call."""
    x, weight, *_ = arguments
    if torch.compiler.is_compiling():
        return True
    enough = len(x) * weight.numel() > SMALL if needs_gradient(arguments) else len(x) >= FEW
    return bool(enough)
