"""Runs a function that no layer is known for, and follows the samples through it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import _pop_mode_temporarily

from sigeo.capture.samples.axis import Axis, Lost, Where, mark, where, written
from sigeo.capture.samples.axis_rules import (
    follow,
    indexed,
    keep_single,
    leading,
    padded,
    pointwise,
)
from sigeo.capture.samples.follower import Follower, moved, takes_samples
from sigeo.capture.samples.functions import (
    LOSSES,
    OF_BATCH,
    POINTWISE,
    POOLS,
    SINGLE,
    tensors_in,
)
from sigeo.capture.samples.mode import LINEAR, linear_is


def followed(
    func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], tensors: list[Tensor]
) -> Any:
    """Run any other function, of these tensors, and note where the samples of its results are."""
    places: list[Where] = [where(t) for t in tensors]
    if func is Tensor.__getitem__ and isinstance(places[0], Axis) and len(places) == 1:
        kept = indexed(places[0], tensors[0].dim(), args[1])
        if kept is not None:
            output = func(*args)
            mark(output, keep_single(kept, places, output))
            return output
    if all(place is None for place in places):
        output = func(*args, **kwargs)
        for leaf in tensors_in(args[0] if func is Tensor.__setitem__ else output):
            if leaf.requires_grad and not leaf.is_leaf:
                mark(leaf, None)  # made of parameters alone, and seen to be
        return output
    single, named = SINGLE.get(func, (None, set()))
    if single is not None and kwargs.keys() <= named:
        output = func(*args, **kwargs)
        mark(output, follow(single, args, kwargs, output, where)[0])
        return output
    if func in LOSSES and not {"reduction", "reduce", "size_average"} & kwargs.keys():
        output = func(*args, **kwargs)
        if output.dim() == 0:
            mark(output, OF_BATCH)
            return output
    if func is F.pad:
        output = func(*args, **kwargs)
        widths = args[1] if len(args) > 1 else kwargs["pad"]
        mark(output, keep_single(padded(places[0], tensors[0].dim(), widths), places, output))
        return output
    plain = "out" not in kwargs and (func is not torch.where or len(tensors) > 1)
    if plain and (func in POINTWISE or func in POOLS):
        dims = [t.dim() for t in tensors]
        output = func(*args, **kwargs)
        place: Where = next((p for p in places if isinstance(p, Lost)), None)
        if place is None and func in POINTWISE:
            place = pointwise(places, dims, output.dim())
        elif place is None:
            place = leading(places[0], dims[0], POOLS[func])
        for leaf in tensors_in(output):
            mark(leaf, keep_single(place, places, leaf))
        place = where(output) if output is tensors[0] else None  # it was written in place
        shifted = place is not None and moved(places[0], place)
        if place is not None and shifted and takes_samples((args[1:], kwargs), where):
            _note_write(output, output, place)
        return output
    with Follower((args, kwargs)) as follower:
        output = func(*args, **kwargs)
    _mark(output, follower)
    for part, place in follower.writes_to(tensors[0]):
        _note_write(tensors[0], part, place)
    for target in tensors_in(kwargs.get("out")):
        place = follower.of(target)
        if place is not None:
            _note_write(target, target, place)
    return output


def _note_write(target: Tensor, part: Tensor, place: Axis | Lost) -> None:
    """Note a write to a part of a tensor, also for what the tensor is a view of."""
    if isinstance(place, Axis) and place.samples == 1:
        return
    for whole in (target, target._base):
        if whole is not None:
            written(whole, _in_whole(whole, part, place))


def _in_whole(whole: Tensor, part: Tensor, place: Axis | Lost) -> Axis | Lost:
    """Where the samples of a view are in the tensor that it shows, or shows a part of."""
    if isinstance(place, Lost):
        return place
    span = _span(part)
    if span is not None and span == _span(whole):  # all of it, in another shape
        view = torch.ops.aten.view.default
        return follow(view, (part, whole.shape), {}, whole, lambda _: place)[0] or place
    along = part.stride(place.dim), part.shape[place.dim]
    dims = [d for d in range(whole.dim()) if (whole.stride(d), whole.shape[d]) == along]
    if len(dims) == 1:
        return place.at(dims[0])
    return Lost(
        "samples were written through a view or a slice of another shape, which is not followed"
    )


def _span(tensor: Tensor) -> tuple[int, int] | None:
    """Where in memory a tensor's entries begin and end; None if there are gaps or another order."""
    start = int(tensor.storage_offset())
    return (start, start + tensor.numel()) if tensor.is_contiguous() else None


def _mark(output: Any, follower: Follower) -> None:
    for leaf in tensors_in(output):
        mark(leaf, follower.of_result(leaf))


def seen_through(
    call: Callable[..., Any], func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Run a composite Python function and hand its linear layers to ``call``."""
    with Follower((args, kwargs)) as follower:

        def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
            mark(input, follower.of(input))
            for given in (weight, bias):  # parts of parameters, or computed from some
                if given is not None and not given.is_leaf:
                    mark(given, follower.of(given))
            with _pop_mode_temporarily():  # of the follower: the layer's own rule is known
                output: Tensor = call(LINEAR, (input, weight, bias), {})
            follower.note(output, where(output))
            return output

        with linear_is(linear):
            output = func(*args, **kwargs)
    _mark(output, follower)
    return output
