"""What subnets use of a super-weight's dimensions: a window each."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from sigeo_ext import _check
from sigeo_ext.gather.selection import window_of

Window = int | slice | None
"""What a subnet uses along a dimension."""


def windows_of(
    name: str, argument: str, given: Sequence[Window] | None, subnets: int, size: int
) -> list[int]:
    """The windows [begin, length] of all subnets, end to end."""
    if given is None:
        return [0, size] * subnets
    if len(given) != subnets:
        expected = f"{argument} must be a window for each of {subnets} subnets"
        _check.require(False, name, f"{expected}, got {len(given)}")
    windows: list[int] = []
    for subnet, selection in enumerate(given):
        if type(selection) is int and 0 <= selection <= size:
            windows += (0, selection)
            continue
        place = f"{argument}[{subnet}]"
        if isinstance(selection, Tensor):
            expected = f"{place} must be None, an int or a slice of step 1"
            _check.require(False, name, f"{expected}, got a tensor; slices.linear takes lists")
        windows += window_of(name, place, selection, size)[0]
    return windows
