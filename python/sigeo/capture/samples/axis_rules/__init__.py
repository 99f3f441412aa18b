"""The rule of each aten operation: where the samples of its result are."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from sigeo.capture.samples.axis import Axis, Lost, Where
from sigeo.capture.samples.axis_rules import products, shapes
from sigeo.capture.samples.axis_rules.broadcasting import broadcast, pointwise
from sigeo.capture.samples.axis_rules.dimensions import leading, padded
from sigeo.capture.samples.axis_rules.parts import indexed, picks_samples
from sigeo.capture.samples.axis_rules.registry import RULES, Rule
from sigeo.capture.samples.functions import leaves, tensors_in

__all__ = [
    "follow", "indexed", "keep_single", "leading", "padded", "picks_samples", "pointwise",
    "products", "shapes",
]  # fmt: skip


def follow(
    func: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    result: Any,
    of: Callable[[Tensor], Where],
) -> list[Where]:
    """Where the samples are in each result of an aten operation."""
    results = leaves(result)
    given = [of(tensor) for tensor in tensors_in(*args, *kwargs.values())]
    lost = next((w for w in given if isinstance(w, Lost)), None)
    if lost is not None:
        return [lost] * len(results)
    if all(w is None for w in given):
        return [None] * len(results)
    known = _rule_of(func)
    if known is None:
        return [Lost(f"no rule says where {func._schema.name} puts the samples")] * len(results)
    found: list[Where] = []
    for index, leaf in enumerate(results):
        if not isinstance(leaf, Tensor):
            found.append(None)
            continue
        place = known(given, args, {**kwargs, "_result": index}, leaf)
        if isinstance(place, Axis) and not _holds(place, leaf):
            place = Lost(f"{func._schema.name} broke the samples up")
        found.append(keep_single(place, given, leaf))
    return found


def keep_single(place: Where, given: Sequence[Where], result: Tensor) -> Where:
    """What a rule found, except that a batch of a single sample never loses it.

    There is no other sample that it could be mixed with, so all of the result is its own, and any
    dimension may be named as the one that holds it.
    """
    if not isinstance(place, Lost) or result.dim() == 0:
        return place
    if not all(w is None or (isinstance(w, Axis) and w.samples == 1) for w in given):
        return place
    dim = next((d for d, size in enumerate(result.shape) if size == 1), 0)
    return Axis(dim, 1, result.shape[dim])


@functools.cache
def _rule_of(func: Any) -> Rule | None:
    name = func._schema.name.removeprefix("aten::").removesuffix("_")
    return RULES.get(name, broadcast if torch.Tag.pointwise in func.tags else None)


def _holds(axis: Axis, tensor: Tensor) -> bool:
    entries = axis.outer * axis.samples * axis.inner
    return axis.dim < tensor.dim() and tensor.shape[axis.dim] == entries
