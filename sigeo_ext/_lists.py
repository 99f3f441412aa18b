"""What ops over lists of tensors, one a layer, share: counts for FLOPs, and batching rules."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

TensorList = Sequence[Tensor]
OptionalTensorList = Sequence[Tensor | None]


def numel(shapes: Sequence[Sequence[int]]) -> int:
    """The number of coordinates of all tensors."""
    return sum(math.prod(shape) for shape in shapes)


def device_of(*lists: OptionalTensorList) -> torch.device:
    """The device of the first tensor that is there; the CPU if there is none."""
    return next(
        (t.device for tensors in lists for t in tensors if t is not None), torch.device("cpu")
    )


def detached(tensors: OptionalTensorList) -> list[Tensor | None]:
    """The tensors without their graphs."""
    return [None if t is None else t.detach() for t in tensors]


def batched(tensors: OptionalTensorList, dims: Any, batch: int) -> list[Tensor | None]:
    """Each tensor with the batch as its first dimension."""
    if not isinstance(dims, (list, tuple)):
        dims = [dims] * len(tensors)
    return [
        None if t is None else t.movedim(d, 0) if d is not None else t.expand(batch, *t.shape)
        for t, d in zip(tensors, dims, strict=True)
    ]


def per_member(name: str, stacked: Sequence[bool]) -> Callable[..., tuple[Any, int]]:
    """The batching rule of the op ``name``, which maps lists to one row a layer.

    Each member of the batch becomes further layers of one call: still one launch for all.
    ``stacked[i]`` says whether argument i holds lists end to end, as many as argument 2 says.
    """

    def rule(info: Any, in_dims: Any, *args: Any) -> tuple[Any, int]:
        batch = info.batch_size
        flat: list[Any] = []
        for argument, dims, is_stacked in zip(args, in_dims, stacked, strict=True):
            if not isinstance(argument, (list, tuple)):
                flat.append(argument)
                continue
            tensors = batched(argument, dims, batch)
            layers = len(tensors) // (args[2] if is_stacked else 1)
            members: list[Tensor | None] = []
            for begin in range(0, len(tensors), layers or 1):
                unit = tensors[begin : begin + layers]
                members += [None if t is None else t[b] for b in range(batch) for t in unit]
            flat.append(members)
        out = getattr(torch.ops.sigeo_ext, name)(*flat)
        return out.view(batch, -1, *out.shape[1:]), 0

    return rule
