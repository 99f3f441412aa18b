"""Arguments as the kernels want them."""

from __future__ import annotations

import numbers
from collections.abc import Sequence

import torch
from torch import Tensor


def each_dimension(value: int | Sequence[int], dims: int) -> list[int]:
    """One number for each dimension."""
    return [value] * dims if isinstance(value, (int, numbers.Integral)) else list(value)


def entries_of_unit(name: str, rows: Tensor, count: int, units: Tensor | None) -> int:
    """How many entries of a table's look-ups a unit has; of no account where ``units`` says it.

    Raises:
        ValueError: Units that do not have equally many.
    """
    if units is None and count > 0 and len(rows) % count:
        raise ValueError(
            f"{name}: rows must be as many for each of the {count} units, got {len(rows)}"
        )
    return max(1, len(rows) // max(1, count))


def widened(tensor: Tensor) -> Tensor:
    """At least float32."""
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor


def with_positions(x: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
    """[B, T, channels] with one position of zeros in the place of none: the same gradients."""
    if x.dim() == d.dim() == 3 and x.shape[1] == d.shape[1] == 0:
        return x.new_zeros(x.shape[0], 1, x.shape[2]), d.new_zeros(d.shape[0], 1, d.shape[2])
    return x, d


def as_lines(tensor: Tensor) -> Tensor:
    """[B, T, channels] as the kernels read it: on a CPU also with samples and positions exchanged.

    Only the channels of a position must lie one after another, and a sample's positions not too far
    apart for an offset of 32 bits.
    """
    tensor = widened(tensor)
    if tensor.device.type == "cpu" and tensor.dim() == 3 and tensor.shape[1] > 1:
        sample, position, channel = tensor.stride()
        apart = min(sample, position) >= tensor.shape[2] and channel == 1
        if apart and tensor.shape[1] * position < 2**31:
            return tensor
    return tensor.contiguous()


def as_channels_last(tensor: Tensor) -> Tensor:
    """[B, channels, *size] as [B, *size, channels] in memory, without a copy where it is so."""
    tensor = widened(tensor)
    return (tensor.movedim(1, -1) if tensor.dim() > 1 else tensor).contiguous()
