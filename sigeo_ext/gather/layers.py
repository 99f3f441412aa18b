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


def convolution(x: Tensor, weight: Tensor, *geometry: Any) -> Tensor:
    """X [n, B, *size, I] and weight [n, O, I/groups, *kernel] to [n, B, *size, O]."""
    _check_convolution("gather_convolution", x, weight)
    if shared(weight) and shared(x):
        one = _to_last(_convolve(x[0], weight[0], geometry))
        return one[None].expand(len(x), *one.shape)
    if shared(weight) or len(weight) == 1:
        y = _to_last(_convolve(x.flatten(0, 1), weight[0], geometry))
        return y.view(*x.shape[:2], *y.shape[1:])
    return torch.stack(
        [_to_last(_convolve(a, w, geometry)) for a, w in zip(x, weight, strict=True)]
    )


def convolution_backward(
    d: Tensor,
    x: Tensor,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    need: Sequence[bool],
) -> tuple[Tensor, Tensor]:
    """Gradients of the input and of each block's weight, as far as needed."""
    _check_convolution("gather_convolution_backward", x, weight)
    geometry = (stride, padding, dilation, False, [0] * len(stride), groups)

    def backward(d: Tensor, x: Tensor, w: Tensor, mask: list[bool]) -> Any:
        return aten.convolution_backward(_from_last(d), _from_last(x), w, None, *geometry, mask)

    into_x, into_weight = x.new_empty(0), x.new_empty(0)
    if need[0]:
        like = x.new_empty(x.shape) if shared(x) else x  # only its sizes count
        if shared(weight) or len(weight) == 1:
            rows = backward(d.flatten(0, 1), like.flatten(0, 1), weight[0], [True, False, False])
            into_x = _to_last(rows[0]).unflatten(0, x.shape[:2])
        else:
            into_x = torch.stack(
                [
                    _to_last(backward(*block, [True, False, False])[0])
                    for block in zip(d, like, weight, strict=True)
                ]
            )
    if need[1]:
        into_weight = torch.stack(
            [backward(*block, [False, True, False])[1] for block in zip(d, x, weight, strict=True)]
        )
    return into_x.contiguous(), into_weight.contiguous()


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


def _check_convolution(op: str, x: Tensor, weight: Tensor) -> None:
    message = "weight must be [blocks, outputs, inputs, *kernel] for x [blocks, B, *size, channels]"
    ok = weight.dim() == x.dim() and len(weight) == len(x)
    _check.require(ok, op, f"{message}, got {list(weight.shape)} for {list(x.shape)}")
