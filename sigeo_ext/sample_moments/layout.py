"""Arguments as the kernels want them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def each_dimension(value: int | Sequence[int], dims: int) -> list[int]:
    """One number for each dimension."""
    return [value] * dims if isinstance(value, int) else list(value)


def widened(tensor: Tensor) -> Tensor:
    """At least float32."""
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor


def as_channels_last(tensor: Tensor) -> Tensor:
    """[B, channels, *size] as [B, *size, channels] in memory, without a copy where it is so."""
    return widened(tensor).movedim(1, -1).contiguous()
