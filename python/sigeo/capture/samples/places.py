"""Writes to some samples by their places in the batch.

A module that runs again on a unit alone would write to others.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from sigeo.capture.samples.axis import Axis, Lost, mark, where
from sigeo.capture.samples.axis_rules import picks_samples
from sigeo.capture.samples.functions import tensors_in


def lose_places(func: Any, args: tuple[Any, ...], output: Any) -> None:
    """Lose the samples that a function has just written to by their places in the batch."""
    if func is Tensor.__setitem__:
        target, index = args[:2]
        place = where(target)
        if isinstance(place, Axis) and picks_samples(place, target.dim(), index):
            _lose(target, Lost("a parameter was written to some samples by their places"))
        return
    given = tensors_in(args)
    for tensor in tensors_in(output):
        place = where(tensor)
        if isinstance(place, Lost) and any(tensor is other for other in given):
            _lose(tensor, place)


def _lose(tensor: Tensor, reason: Lost) -> None:
    for whole in (tensor, tensor._base):
        if whole is not None:
            mark(whole, reason)
