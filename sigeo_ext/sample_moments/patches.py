"""A convolution as a linear layer with a position for each output: what each of them sees."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor


class Axis:
    """One dimension of a convolution, without the taps that see nothing but padding."""

    def __init__(self, size: int, out: int, kernel: int, stride: int, padding: int, dilation: int):
        last = (out - 1) * stride  # where the last output's first tap is, padding counted
        inside = [
            tap
            for tap in range(kernel)
            if tap * dilation - padding < size and tap * dilation - padding + last >= 0
        ]
        first = inside[0] if inside else 0
        self.taps, self.out = len(inside), out
        self.stride, self.dilation = stride, dilation
        self.before = padding - first * dilation
        self.after = last + (self.taps - 1) * dilation + 1 - size - self.before


def taps_of(axes: Sequence[Axis]) -> int:
    """How many taps of the kernel see more than padding."""
    return math.prod([axis.taps for axis in axes])  # of a list: torch.compile follows no generator


def seen_by_positions(x: Tensor, axes: Sequence[Axis]) -> Tensor:
    """What each output position sees of x [B, I, *size], 1- or 2-d: [B, T, I * taps]."""
    if any(axis.taps == 0 for axis in axes):  # nothing but padding is seen
        positions = math.prod([axis.out for axis in axes])
        return x.new_zeros(len(x), positions, 1)
    if len(axes) == 1:
        x, axes = x[:, :, None], [Axis(1, 1, 1, 1, 0, 1), *axes]
    padded = F.pad(x, [size for axis in reversed(axes) for size in (axis.before, axis.after)])
    taps = tuple(axis.taps for axis in axes)
    dilation, stride = tuple(axis.dilation for axis in axes), tuple(axis.stride for axis in axes)
    return F.unfold(padded, taps, dilation, 0, stride).transpose(1, 2)


def fit(x: Tensor, d: Tensor, unit: int, segments: int | None = None) -> bool:
    """Whether x and d are what the ops would take, so that another route may."""
    same = x.dtype == d.dtype and x.device == d.device and x.dim() == d.dim() > 2
    run = unit * (1 if segments is None else segments)
    whole = run > 0 and unit > 0 and len(x) % run == 0
    return same and whole and len(x) == len(d) and x.is_floating_point()


def axes_of(
    size: Sequence[int],
    out: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> list[Axis]:
    """The dimensions of a convolution; none where the sizes are no convolution's."""
    lists = (size, out, kernel, stride, padding, dilation)
    if any(len(values) != len(kernel) for values in lists):
        return []
    axes = []
    for n, m, k, step, pad, apart in zip(*lists, strict=True):
        if min(k, step, apart) < 1 or n + 2 * pad <= apart * (k - 1):
            return []
        if m != (n + 2 * pad - apart * (k - 1) - 1) // step + 1:
            return []
        axes.append(Axis(n, m, k, step, pad, apart))
    return axes


def exchanged(
    x: Tensor,
    d: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> tuple[Tensor, Tensor]:
    """Input and output gradient of a transposed convolution as those of an ordinary one.

    g[i, o, k] pairs the input at t with the output at t's tap k: the roles change places. Behind
    an output that was extended by a stride or more, an ordinary convolution has room for further
    positions: they see input of zero.
    """
    lists = (d.shape[2:], x.shape[2:], kernel, stride, padding, dilation)
    if all(len(values) == len(kernel) for values in lists) and min(stride) > 0:
        missing = [
            (n + 2 * pad - apart * (k - 1) - 1) // step + 1 - m
            for n, m, k, step, pad, apart in zip(*lists, strict=True)
        ]
        if max(missing) > 0 and min(missing) >= 0:
            x = F.pad(x, [size for room in reversed(missing) for size in (0, room)])
    return d, x


def of_units(values: Tensor, unit: int) -> Tensor:
    """[samples, positions, channels] as [units, positions of all its samples, channels]."""
    units: Tensor = values.unflatten(0, (-1, unit))
    return units.flatten(1, 2)
