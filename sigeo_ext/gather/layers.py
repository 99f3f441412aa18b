"""Layers whose blocks have weights of their own, or one weight that all of them share in memory.

The products are the framework's: a convolution over all blocks at once where they share the weight,
one a block where they do not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sigeo_ext import _check
from sigeo_ext.gather.reference import shared

aten = torch.ops.aten


class Convolution(torch.autograd.Function):
    """x [n, B, *size, I] and weight [n, O, I/groups, *kernel] to [n, B, *size, O].

    No op of its own: all of it is calls of the framework's.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, *geometry: Any) -> Tensor:
        """One call where the weight is one in memory, once for all where the input is as well."""
        check_convolution(x, weight, *geometry)
        ctx.save_for_backward(x, weight)
        ctx.geometry = geometry
        if shared(weight) and shared(x):
            one = _to_last(_convolve(x[0], weight[0], geometry))
            return one[None].expand(len(x), *one.shape)
        if shared(weight) or len(weight) == 1:
            y = _to_last(_convolve(x.flatten(0, 1), weight[0], geometry))
            return y.view(*x.shape[:2], *y.shape[1:])
        each = [_to_last(_convolve(a, w, geometry)) for a, w in zip(x, weight, strict=True)]
        return torch.stack(each)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d: Tensor) -> tuple[Tensor | None, ...]:
        """The input's gradient, and each block's own of the weight, as far as needed."""
        x, weight = ctx.saved_tensors
        stride, padding, dilation, groups = ctx.geometry
        geometry = (stride, padding, dilation, False, [0] * len(stride), groups)
        d = d.contiguous()

        def backward(d: Tensor, x: Tensor, w: Tensor, mask: list[bool]) -> Any:
            return aten.convolution_backward(_from_last(d), _from_last(x), w, None, *geometry, mask)

        into_x = into_weight = None
        if ctx.needs_input_grad[0]:
            like = x.new_empty(x.shape) if shared(x) else x  # only its sizes count
            mask = [True, False, False]
            if shared(weight) or len(weight) == 1:
                rows = backward(d.flatten(0, 1), like.flatten(0, 1), weight[0], mask)
                into_x = _to_last(rows[0]).view(x.shape)
            else:
                blocks = zip(d, like, weight, strict=True)
                into_x = torch.stack([_to_last(backward(*block, mask)[0]) for block in blocks])
        if ctx.needs_input_grad[1]:
            blocks = zip(d, x, weight, strict=True)
            each = [backward(*block, [False, True, False])[1] for block in blocks]
            into_weight = torch.stack(each) if each else torch.zeros_like(weight)
        return into_x, into_weight, None, None, None, None


def _convolve(x: Tensor, weight: Tensor, geometry: Sequence[Any]) -> Tensor:
    stride, padding, dilation, groups = geometry
    none = [0] * len(stride)
    return torch.convolution(
        _from_last(x), weight, None, stride, padding, dilation, False, none, groups
    )


def _from_last(x: Tensor) -> Tensor:
    """[B, *size, C] as the framework takes it, [B, C, *size] in channels_last memory."""
    return x.movedim(-1, 1)


def _to_last(y: Tensor) -> Tensor:
    return y.movedim(1, -1).contiguous()


def check_convolution(
    x: Tensor,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> None:
    """Require shapes, dtypes and a geometry that fit together."""
    op, got = "gather.convolution", f"got {list(weight.shape)} for {list(x.shape)}"
    message = "weight must be [blocks, outputs, inputs, *kernel] for x [blocks, B, *size, channels]"
    ok = 3 < weight.dim() == x.dim() < 7 and len(weight) == len(x)
    _check.require(ok, op, f"{message}, {got}")
    _check_dtype(op, x, weight=weight)
    for name, (value, *_), least in (
        ("stride", stride, 1),
        ("padding", padding, 0),
        ("dilation", dilation, 1),
        ("groups", (groups,), 1),
    ):
        _check.require(value >= least, op, f"{name} must be at least {least}, got {value}")
    _, outputs, inputs, *kernel = weight.shape
    ok = x.shape[-1] == inputs * groups and outputs % groups == 0
    message = "weight must have the inputs, and outputs, of whole groups of x's channels"
    _check.require(ok, op, f"{message}, {got} and groups {groups}")
    sizes = zip(x.shape[2:-1], kernel, padding, dilation, strict=True)
    ok = all(size + 2 * pad > step * (taps - 1) for size, taps, pad, step in sizes)
    _check.require(ok, op, f"weight must have a kernel that fits into x with its padding, {got}")


def check_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """Require shapes and dtypes that fit together."""
    op = "gather.linear"
    _check.require(x.dim() == 3, op, f"x must be [blocks, B, inputs], got {list(x.shape)}")
    ok = weight.dim() == 3 and len(weight) == len(x) and weight.shape[2] == x.shape[2]
    message = f"weight must be [{len(x)}, outputs, {x.shape[2]}] like x, got {list(weight.shape)}"
    _check.require(ok, op, message)
    if not torch.is_autocast_enabled(x.device.type):  # which brings all to its own dtype
        _check_dtype(op, x, weight=weight, bias=bias)
    if bias is not None:
        expected = list(weight.shape[:2])
        message = f"bias must be {expected} like the weight, got {list(bias.shape)}"
        _check.require(list(bias.shape) == expected, op, message)


def _check_dtype(op: str, x: Tensor, **others: Tensor | None) -> None:
    for name, value in others.items():
        if value is not None and value.dtype != x.dtype:
            dtypes = f"{_check.dtype_of(x)}, got {_check.dtype_of(value)}"
            _check.require(False, op, f"{name} must have the dtype of x, {dtypes}")
