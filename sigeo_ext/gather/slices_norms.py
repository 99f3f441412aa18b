"""Norms with a part of their channels; `sigeo_ext.gather.slices` explains selections and modes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sigeo_ext import _check
from sigeo_ext._kinds import named_arguments
from sigeo_ext.gather.selection import Selection, check_index, length, window_of


@named_arguments("slices.layer_norm")
def layer_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    *,
    features: Selection = None,
    size: int | None = None,
    masked: bool = False,
    eps: float = 1e-5,
) -> Tensor:
    """A layer norm over the last dimension, with a part of its scale and shift. Differentiable.

    Clean mode takes mean and variance over the selected features, masked mode over all of them (the
    layer as it stands, then zeros where a feature is not selected).

    Args:
        x: [..., selected features]; masked: [..., features].
        weight: [features] or None.
        bias: [features] or None.
        features: Selection.
        size: Number of features, where there is neither weight nor bias.
        masked: Full width, in and out.
        eps: Added to the variance.

    Returns:
        Like ``x``.

    Raises:
        RuntimeError: A selection that the features do not have, an x of another width, or vectors
            of different lengths.
    """
    name = "slices.layer_norm"
    given = _size(name, size, weight=weight, bias=bias)
    window, index = window_of(name, "features", features, given)
    check_index(name, "features", index, given)
    _check_width(name, x, -1, given if masked else length(window, index))
    if masked:
        return _hidden(F.layer_norm(x, (given,), weight, bias, eps), -1, given, window, index)
    scale, shift = (_part(v, window, index) for v in (weight, bias))
    return F.layer_norm(x, (x.shape[-1],), scale, shift, eps)


@named_arguments("slices.group_norm")
def group_norm(
    x: Tensor,
    groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    *,
    channels: Selection = None,
    size: int | None = None,
    masked: bool = False,
    eps: float = 1e-5,
) -> Tensor:
    """A group norm with a part of its groups. Differentiable.

    The selection takes whole groups, which keep their channels; masked mode takes any selection
    (the layer as it stands, then zeros).

    Args:
        x: ``[B, selected channels, *size]``; masked: ``[B, channels, *size]``.
        groups: Of the whole layer.
        weight: [channels] or None.
        bias: [channels] or None.
        channels: Selection.
        size: Number of channels, where there is neither weight nor bias.
        masked: Full width, in and out.
        eps: Added to the variance.

    Returns:
        Like ``x``.

    Raises:
        RuntimeError: A selection that the channels do not have or that cuts a group, groups that
            do not divide the channels, or vectors of different lengths.
    """
    name = "slices.group_norm"
    given = _size(name, size, weight=weight, bias=bias)
    window, index = window_of(name, "channels", channels, given)
    check_index(name, "channels", index, given)
    _check_width(name, x, 1, given if masked else length(window, index))
    message = f"groups must divide the {given} channels, got {groups}"
    _check.require(groups > 0 and given % groups == 0, name, message)
    if masked:
        return _hidden(F.group_norm(x, groups, weight, bias, eps), 1, given, window, index)
    width = given // groups
    whole = window[0] % width == 0 and window[1] % width == 0
    listed = index is not None and width != 1
    message = f"channels must be whole groups of {width} channels, got"
    _check.require(not listed, name, f"{message} a list of places")
    _check.require(index is not None or whole, name, f"{message} {window[1]} from {window[0]}")
    scale, shift = (_part(v, window, index) for v in (weight, bias))
    return F.group_norm(x, x.shape[1] // width, scale, shift, eps)


@named_arguments("slices.batch_norm")
def batch_norm(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    *,
    channels: Selection = None,
    size: int | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    masked: bool = False,
) -> Tensor:
    """A batch norm with a part of its channels. Differentiable.

    Clean mode updates the running statistics of the selected channels, masked mode those of
    all (the layer as it stands, then zeros).

    Args:
        x: ``[B, selected channels, *size]``; masked: ``[B, channels, *size]``.
        running_mean: [channels] or None, updated in place if ``training``.
        running_var: [channels] or None, updated in place if ``training``.
        weight: [channels] or None.
        bias: [channels] or None.
        channels: Selection.
        size: Number of channels, where there is neither statistics nor weight nor bias.
        training: Whether the batch's own statistics count.
        momentum: Weight of the batch in the running statistics.
        eps: Added to the variance.
        masked: Full width, in and out.

    Returns:
        Like ``x``.

    Raises:
        RuntimeError: A selection that the channels do not have, an x of another width, or vectors
            of different lengths.
    """
    name = "slices.batch_norm"
    statistics = (running_mean, running_var)
    vectors = {"running_mean": running_mean, "running_var": running_var}
    given = _size(name, size, **vectors, weight=weight, bias=bias)
    window, index = window_of(name, "channels", channels, given)
    check_index(name, "channels", index, given)
    _check_width(name, x, 1, given if masked else length(window, index))
    if masked:
        y = F.batch_norm(x, *statistics, weight, bias, training, momentum, eps)
        return _hidden(y, 1, given, window, index)
    mean, var = (_part(v, window, index) for v in statistics)
    scale, shift = (_part(v, window, index) for v in (weight, bias))
    y = F.batch_norm(x, mean, var, scale, shift, training, momentum, eps)
    if training and index is not None:  # a list of places copied the statistics
        for whole, part in zip(statistics, (mean, var), strict=True):
            if whole is not None and part is not None:
                whole.index_copy_(0, index, part)
    return y


def _part(vector: Tensor | None, window: list[int], index: Tensor | None) -> Tensor | None:
    """A view for a window. A vector's gradient is of no account beside the layer's."""
    if vector is None:
        return None
    return vector.narrow(0, *window) if index is None else vector.index_select(0, index)


def _hidden(y: Tensor, dim: int, size: int, window: list[int], index: Tensor | None) -> Tensor:
    """Zeros where a place along ``dim`` is not selected."""
    if index is None and window[1] == size:
        return y
    hidden = torch.ones(size, dtype=torch.bool, device=y.device)
    if index is None:
        hidden.narrow(0, *window).zero_()
    else:
        hidden[index] = False
    shape = [1] * y.dim()
    shape[dim] = size
    return y.masked_fill(hidden.view(shape), 0)


def _size(name: str, size: int | None, **vectors: Tensor | None) -> int:
    """The size of the whole layer: that of its vectors, or where there are none, the given one.

    Raises:
        RuntimeError: There is neither, or the vectors differ in it.
    """
    known = [(what, vector) for what, vector in vectors.items() if vector is not None]
    if known:
        size = known[0][1].numel()
    if size is None:
        raise RuntimeError(f"{name}: size must be given without weight and bias, got None")
    for what, vector in known:
        if vector.dim() != 1 or vector.shape[0] != size:
            raise RuntimeError(f"{name}: {what} must be [{size}], got {list(vector.shape)}")
    return size


def _check_width(name: str, x: Tensor, dim: int, width: int) -> None:
    got = x.shape[dim] if x.dim() > max(dim, 0) else "none"
    _check.require(got == width, name, f"x must have {width} values in dimension {dim}, got {got}")
