"""Selections along dimensions: windows [begin, length] and lists of places, read and written.

Windows are read through views; an index copies what it selects.
"""

from __future__ import annotations

import numbers
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from sigeo_ext import _check

# Lists that were looked at, in which state and for how many places: a layer comes with the same
# list in every pass, and to look at one on a GPU is to wait for the GPU.
_checked = WeakTensorKeyDictionary()

Selection = int | slice | Tensor | None
Window = tuple[list[int], Tensor | None]
_WHOLE = (int, torch.SymInt)  # not a union, which would be made anew in each call


def window_of(name: str, argument: str, selection: Selection, size: int) -> Window:
    """The window or the index of a selection of ``size`` places."""
    if selection is None:
        return [0, size], None
    if isinstance(selection, Tensor):
        return [0, 0], selection
    if isinstance(selection, slice):
        begin = plain(selection.start or 0)
        end = size if selection.stop is None else plain(selection.stop)
        whole = isinstance(begin, _WHOLE) and isinstance(end, _WHOLE)
        if selection.step not in (None, 1) or not (whole and 0 <= begin <= end <= size):
            expected = f"{argument} must be a slice of step 1 from 0 to {size}"
            _check.require(False, name, f"{expected}, got {selection}")
        return [begin, end - begin], None
    count = plain(selection)
    if not isinstance(count, _WHOLE) or isinstance(count, bool):
        expected = f"{argument} must be None, an int, a slice or an int64 tensor"
        _check.require(False, name, f"{expected}, got {type(count).__name__}")
    if not 0 <= count <= size:
        _check.require(False, name, f"{argument} must be from 0 to {size}, got {count}")
    return [0, count], None


def plain(value: Any) -> Any:
    """A whole number of NumPy's as Python's, anything else as it is."""
    if isinstance(value, _WHOLE) or not isinstance(value, numbers.Integral):
        return value
    return int(value)


def check_list(op: str, name: str, index: Tensor | None) -> None:
    """Require that an index can be a list of places, whatever it holds."""
    if index is not None and (index.dim() != 1 or index.dtype != torch.int64):
        got = f"got {_check.dtype_of(index)} {list(index.shape)}"
        _check.require(False, op, f"{name} must be int64 [n], {got}")


def check_index(op: str, name: str, index: Tensor | None, size: int) -> None:
    """Require a list of different places below ``size``, as far as its values can be looked at."""
    if index is None:
        return
    unknown = torch.compiler.is_compiling() or index.is_inference()
    seen = None if unknown else (index._version, index.shape, size)
    if seen is not None and _checked.get(index) == seen:
        return
    check_list(op, name, index)
    if not _check.has_values(index):
        return
    if index.numel():
        _check_places(op, name, index, size)
    if seen is not None:
        _checked[index] = seen


def _check_places(op: str, name: str, index: Tensor, size: int) -> None:
    # One transfer for all three numbers where the index is on another device.
    ordered = index.sort().values
    low, high, repeats = torch.stack(
        [ordered[0], ordered[-1], (ordered[1:] == ordered[:-1]).sum()]
    ).tolist()
    _check.require(
        low >= 0 and high < size,
        op,
        f"{name} must be from 0 to {size - 1}, got {low if low < 0 else high}",
    )
    _check.require(repeats == 0, op, f"{name} must be without repeats, got {repeats} repeats")


def length(window: Sequence[int], index: Tensor | Sequence[int] | None) -> Any:
    """How many a selection takes; ``index`` may be its shape."""
    if index is None:
        return window[1]
    return index.shape[0] if isinstance(index, Tensor) else index[0]


def select(x: Tensor, dim: int, window: Sequence[int], index: Tensor | None) -> Tensor:
    """The selected part along a dimension: a view for a window, a copy for an index."""
    if index is not None:
        return x.index_select(dim, index)
    return x if window[1] == x.shape[dim] else x.narrow(dim, *window)


def place(part: Tensor, size: int, dim: int, window: Sequence[int], index: Tensor | None) -> Tensor:
    """Zeros, ``size`` along a dimension, with ``part`` where the selection was taken."""
    if index is None and window[1] == size:
        return part
    if index is None:  # keeps the memory format
        after = size - window[0] - window[1]
        behind = part.dim() - 1 - dim % part.dim()
        return torch.constant_pad_nd(part, [*[0, 0] * behind, window[0], after])
    shape = list(part.shape)
    shape[dim] = size
    whole = part.new_zeros(shape)
    return whole.index_copy_(dim, index, part)


def place_block(
    part: Tensor,
    like: Tensor,
    outputs: Sequence[int],
    inputs: Sequence[int],
    output_index: Tensor | None,
    input_index: Tensor | None,
) -> Tensor:
    """Zeros in the form of ``like`` with ``part`` in the selected rows and columns."""
    whole = torch.zeros_like(like, memory_format=torch.preserve_format)
    block = crop(whole, part.shape[2:])
    if output_index is None and input_index is None:
        block.narrow(0, *outputs).narrow(1, *inputs).copy_(part)
    elif input_index is None:
        block.narrow(1, *inputs).index_copy_(0, _index_of(output_index), part)
    elif output_index is None:
        block.narrow(0, *outputs).index_copy_(1, input_index, part)
    else:
        block.index_put_((output_index[:, None], input_index[None]), part)
    return whole


def add_block(
    part: Tensor,
    into: Tensor,
    outputs: Sequence[int],
    inputs: Sequence[int],
    output_index: Tensor | None,
    input_index: Tensor | None,
) -> None:
    """Add ``part`` to the selected rows and columns of ``into``."""
    block = crop(into, part.shape[2:])
    if output_index is None and input_index is None:
        block.narrow(0, *outputs).narrow(1, *inputs).add_(part)
        return
    if output_index is None:
        block.narrow(0, *outputs).index_add_(1, _index_of(input_index), part)
        return
    if input_index is None:
        block.narrow(1, *inputs).index_add_(0, output_index, part)
        return
    # Places are different, so adding to what is read there is exact and needs no atomics.
    places = (output_index[:, None], input_index[None])
    block[places] = block[places] + part


def crop(weight: Tensor, kernel: Sequence[int]) -> Tensor:
    """The centre of a convolution's kernel."""
    for dim, size in enumerate(kernel, 2):
        if size != weight.shape[dim]:
            weight = weight.narrow(dim, (weight.shape[dim] - size) // 2, size)
    return weight


def _index_of(index: Tensor | None) -> Tensor:
    assert index is not None  # the callers' cases
    return index


def check_width(
    op: str,
    name: str,
    x: Tensor,
    dim: int,
    size: int,
    masked: bool,
    window: Sequence[int],
    index: Tensor | None,
) -> None:
    """Require the width of a mode: all ``size`` places or the selected ones."""
    width = size if masked else length(window, index)
    got = x.shape[dim] if x.dim() > max(dim, 0) else "none"
    if got != width:
        kind = "all" if masked else "the selected"
        _check.require(
            False, op, f"{name} must have {kind} {width} values in dimension {dim}, got {got}"
        )


def check_dtypes(op: str, x: Tensor, weight: Tensor) -> None:
    """Require one dtype of both, but for autocast, which converts them."""
    if x.dtype != weight.dtype and not torch.is_autocast_enabled(x.device.type):
        message = f"x and the weight must be of one dtype, got {_check.dtype_of(x)} and"
        _check.require(False, op, f"{message} {_check.dtype_of(weight)}")
