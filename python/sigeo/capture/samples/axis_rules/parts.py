"""Rules of operations that take a part of a tensor, or put parts together."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from sigeo.capture.samples.axis import Axis, Lost, Where, where
from sigeo.capture.samples.axis_rules.broadcasting import pointwise
from sigeo.capture.samples.axis_rules.registry import first, mixed, rule, taken_out


def indexed(axis: Axis, dims: int, index: Any) -> Axis | None:
    """The rule of ``x[index]`` for numbers, slices and None that leave the samples alone.

    None where the index is of another kind: the aten rules find out.
    """
    entries = list(index) if isinstance(index, tuple) else [index]
    taken = sum(entry is not None and entry is not Ellipsis for entry in entries)
    if Ellipsis in entries:
        at = entries.index(Ellipsis)
        entries[at : at + 1] = [slice(None)] * (dims - taken)
    source = place = 0
    for entry in entries:
        if source > axis.dim:
            break
        if isinstance(entry, int) and not isinstance(entry, bool) and source != axis.dim:
            source += 1
        elif isinstance(entry, slice) and (source != axis.dim or entry == slice(None)):
            place += source < axis.dim
            source += 1
        elif entry is None:
            place += 1
        else:
            return None
    return axis.at(place + max(0, axis.dim - source))


def picks_samples(axis: Axis, dims: int, index: Any) -> bool:
    """Whether ``x[index] = value`` may choose samples by their numbers; masks made of them do not.

    Each then is treated as its place in the batch says, and alone would be treated otherwise.
    """
    entries = list(index) if isinstance(index, tuple) else [index]
    sizes = [_taken(entry) for entry in entries]
    source = 0
    for entry, size in zip(entries, sizes, strict=True):
        if entry is Ellipsis:
            source += dims - sum(sizes)
        elif source <= axis.dim < source + size:
            whole = isinstance(entry, slice) and entry == slice(None)
            masks = isinstance(entry, Tensor) and entry.dtype == torch.bool
            place = where(entry) if masks else None
            made = isinstance(place, Axis) and place.at(source + place.dim) == axis
            return not (whole or made)
        source += size
    return False


def _taken(entry: Any) -> int:
    """How many dimensions an index takes."""
    if entry is None or entry is Ellipsis:
        return 0
    masks = isinstance(entry, Tensor) and entry.dtype in (torch.bool, torch.uint8)
    return entry.dim() if masks else 1


def _part(axis: Axis, begin: int, size: int) -> Where:
    """Entries [begin, begin + size) of the samples' dimension, if they are whole rounds of them."""
    of_round = axis.samples * axis.inner
    if begin % of_round or size % of_round or not size:
        return taken_out("a part of the samples")
    return Axis(axis.dim, axis.samples, size // of_round, axis.inner)


@rule("slice")
def _sliced(given: list[Where], args: Any, kwargs: Any, result: Tensor) -> Where:
    axis = first(given)
    dim, begin, _, step = (list(args[1:]) + [0, None, None, 1][len(args) - 1 :])[:4]
    size = args[0].shape[axis.dim]
    if dim % result.dim() != axis.dim:
        return axis
    if step != 1:
        return taken_out("a slice of the samples")
    begin = 0 if begin is None else max(0, begin + size if begin < 0 else begin)
    return _part(axis, begin, result.shape[axis.dim])


@rule("split", "split_with_sizes", "chunk", "unsafe_split", "unsafe_chunk")
def _split(given: list[Where], args: Any, kwargs: Any, result: Tensor) -> Where:
    axis = first(given)
    dim = (args[2] if len(args) > 2 else kwargs.get("dim", 0)) % result.dim()
    if dim != axis.dim:
        return axis
    sizes, index = args[1], kwargs["_result"]
    begin = sizes * index if isinstance(sizes, int) else sum(sizes[:index])
    return _part(axis, begin, result.shape[dim])


@rule("select", "unbind")
def _selected(given: list[Where], args: Any, kwargs: Any, result: Tensor) -> Where:
    axis = first(given)
    dim = (args[1] if len(args) > 1 else 0) % args[0].dim()
    if dim == axis.dim:
        return taken_out("one sample")
    return axis.at(axis.dim - (dim < axis.dim))


@rule("cat")
def _joined(given: list[Where], args: Any, kwargs: Any, result: Tensor) -> Where:
    axis = first(given)
    dim = (args[1] if len(args) > 1 else kwargs.get("dim", 0)) % result.dim()
    if dim != axis.dim:
        same = all(w == axis for w in given if isinstance(w, Axis))
        return axis if same else Lost("tensors with their samples in different places were joined")
    rounds = [w for w in given if isinstance(w, Axis)]
    if len(rounds) < len(given) or any(
        w.at(0) != Axis(0, w.samples, w.outer, axis.inner) for w in rounds
    ):
        return mixed("joining along the samples")
    return Axis(dim, axis.samples, sum(w.outer for w in rounds), axis.inner)


@rule("stack")
def _stacked(given: list[Where], args: Any, kwargs: Any, result: Tensor) -> Where:
    axis = first(given)
    dim = (args[1] if len(args) > 1 else kwargs.get("dim", 0)) % result.dim()
    if any(w != axis for w in given if isinstance(w, Axis)):
        return Lost("tensors with their samples in different places were joined")
    return axis.at(axis.dim + (dim <= axis.dim))


@rule("embedding")
def _embedded(given: list[Where], args: Any, kwargs: Any, result: Tensor) -> Where:
    return given[1] if given[0] is None else mixed("an embedding whose table holds samples")


@rule("index_select", "index_fill")
def _picked(given: list[Where], args: Any, kwargs: Any, result: Tensor) -> Where:
    axis = given[0]
    if axis is None and isinstance(given[1], Axis):
        return given[1].at(args[1] % args[0].dim())  # rows of a constant table
    if not isinstance(axis, Axis) or isinstance(given[1], Axis):
        return mixed("an index by samples")
    return axis if args[1] % args[0].dim() != axis.dim else mixed("an index along the samples")


@rule("index")
def _indexed(given: list[Where], args: Any, kwargs: Any, result: Tensor) -> Where:
    axis, indices = given[0], args[1]
    dims = [dim for dim, index in enumerate(indices) if index is not None]
    chosen = [indices[d] for d in dims]
    shape = np.broadcast_shapes(*(index.shape for index in chosen))
    together = dims == list(range(dims[0], dims[0] + len(dims)))
    begin = dims[0] if together else 0  # of what the indices make, in the result
    by_samples = any(isinstance(w, Axis) for w in given[1:])
    if axis is None or (isinstance(axis, Axis) and axis.dim in dims):
        places = list(given[1:])
        if isinstance(axis, Axis):  # each takes of its own, if they are counted off
            own = dims.index(axis.dim)
            if places[own] is not None or not _counts(chosen[own], axis):
                return mixed("an index along the samples or by them")
            places[own] = axis.at(0)
        of_indices = pointwise(places, [index.dim() for index in chosen], len(shape))
        return of_indices.at(begin + of_indices.dim) if isinstance(of_indices, Axis) else of_indices
    if not isinstance(axis, Axis) or by_samples:
        return mixed("an index along the samples or by them")
    if not together:
        return Lost("an index by several tensors that do not stand together")
    return axis if axis.dim < begin else axis.at(axis.dim + len(shape) - len(dims))


def _counts(index: Tensor, axis: Axis) -> bool:
    """Whether an index has each sample's own number in the sample's place, [samples, 1, ...]."""
    samples = axis.samples
    if not axis.alone or index.dtype == torch.bool or index.shape[:1] != (samples,):
        return False
    numbers = index.flatten()
    return len(numbers) == samples and numbers.tolist() == list(range(samples))
