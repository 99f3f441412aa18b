"""Checks of the sizes that spaces are made with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from sigeo.errors import InputError

N = TypeVar("N", int, float)


def check_whole(space: str, name: str, value: object, low: int = 1) -> int:
    """A whole number of at least ``low``.

    Raises:
        InputError: It is something else.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < low:
        raise InputError(f"{space}: {name} must be a whole number of at least {low}, got {value!r}")
    return value


def listed(value: N | Sequence[N]) -> tuple[N, ...]:
    """One number or several, as a tuple; a word is one value, which the checks then refuse."""
    return (value,) if isinstance(value, (int, float, str)) else tuple(value)


def check_each(space: str, name: str, values: Sequence[object], low: int = 1) -> tuple[int, ...]:
    """Whole numbers of at least ``low``, one at least.

    Raises:
        InputError: There is none, or one is something else.
    """
    if not values:
        raise InputError(f"{space}: {name} must be one number at least, got none")
    return tuple(check_whole(space, name, value, low) for value in values)


def check_share(space: str, name: str, value: object) -> float:
    """A number from 0 to below 1.

    Raises:
        InputError: It is something else.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1:
        raise InputError(f"{space}: {name} must be from 0 to below 1, got {value!r}")
    return float(value)


def check_ascending(space: str, name: str, values: Sequence[N]) -> tuple[N, ...]:
    """Numbers above 0, each above the one before, one at least.

    Raises:
        InputError: They are not.
    """
    for value in values:
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            raise InputError(f"{space}: {name} must be numbers, got {value!r}")
    if not values or min(values) <= 0 or sorted(set(values)) != list(values):
        raise InputError(f"{space}: {name} must be ascending and above 0, got {list(values)}")
    return tuple(values)
