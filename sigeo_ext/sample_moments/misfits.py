"""What is wrong with the shapes of a layer's input and output gradient, as their caller has them.

The ops are given channels last, and a transposed convolution as the ordinary one that it is with
input and output exchanged: their own messages speak of those.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from sigeo_ext.sample_moments.layout import each_dimension


def of_convolution(
    x: Tensor,
    d: Tensor,
    kernel_size: Sequence[int],
    *,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    transposed: bool = False,
    **others: Any,
) -> str | None:
    """The misfit of a convolution's arguments; None where the op says it."""
    dims = len(kernel_size)
    if not 1 <= dims <= 3:
        return None
    for name, tensor in (("x", x), ("d", d)):
        if tensor.dim() != dims + 2:
            return f"{name} must be [samples, channels, {dims} sizes], got {list(tensor.shape)}"
    if len(x) != len(d):
        return _other_samples(x, d)
    spread = [each_dimension(value, dims) for value in (stride, padding, dilation)]
    if any(len(values) != dims for values in spread):
        return None
    if min(*kernel_size, *spread[0], *spread[2]) < 1 or min(spread[1]) < 0:
        return None
    reach = [apart * (k - 1) + 1 for k, apart in zip(kernel_size, spread[2], strict=True)]
    geometry = zip(x.shape[2:], reach, *spread[:2], strict=True)
    if transposed:
        least = [max(1, (n - 1) * step + r - 2 * pad) for n, r, step, pad in geometry]
        if any(n < m for n, m in zip(d.shape[2:], least, strict=True)):
            return f"d must have sizes from {least} for x {list(x.shape)}, got {list(d.shape)}"
        return None
    room = [(n + 2 * pad - r, step) for n, r, step, pad in geometry]
    if any(free < 0 for free, _ in room):
        return (
            f"kernel_size must fit into x {list(x.shape)} with its padding, got {list(kernel_size)}"
        )
    expected = [*d.shape[:2], *(free // step + 1 for free, step in room)]
    if list(d.shape) != expected:
        return f"d must be {expected} for x {list(x.shape)}, got {list(d.shape)}"
    return None


def of_linear(x: Tensor, d: Tensor, **others: Any) -> str | None:
    """The misfit of a linear layer's arguments; None where the op says it."""
    if x.dim() not in (2, 3):
        return f"x must be [samples, inputs] or [samples, positions, inputs], got {list(x.shape)}"
    if d.dim() == x.dim() and len(x) != len(d):
        return _other_samples(x, d)
    if d.dim() != x.dim() or d.shape[:-1] != x.shape[:-1]:
        expected = ", ".join(map(str, (*x.shape[:-1], "outputs")))
        return f"d must be [{expected}] for x {list(x.shape)}, got {list(d.shape)}"
    return None


def _other_samples(x: Tensor, d: Tensor) -> str:
    return f"x and d must have the same number of samples, got {len(x)} and {len(d)}"
