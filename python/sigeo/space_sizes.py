"""What the sizes of search spaces may be, each by itself.

Known without torch, so that the command line refuses a wrong one at once. What depends on other
sizes or on the images, the spaces check themselves.
"""

from __future__ import annotations

import numbers
from collections.abc import Callable, Iterable
from typing import Any, TypeGuard

from sigeo.errors import InputError

LARGEST = 1_000_000
"""Larger whole numbers are refused: no network of such a size is built."""

Rule = Callable[[object], Any]
"""A value to what the space keeps; InputError says what was expected, of a size without a name."""


def whole(value: object) -> int:
    """A whole number from 1, and no more than networks have.

    Raises:
        InputError: It is something else.
    """
    if not _is_whole(value) or value < 1:
        raise InputError(f"must be a whole number of at least 1, got {value!r}")
    if value > LARGEST:
        raise InputError(f"must be at most {LARGEST}, got {value}")
    return int(value)


def _listed(value: object) -> tuple[object, ...]:
    """One value or several, as a tuple; a word or an array [] is one, which the rules refuse.

    Raises:
        InputError: There is none.
    """
    if not isinstance(value, Iterable) or isinstance(value, str) or not getattr(value, "ndim", 1):
        return (value,)
    found = tuple(value)
    if not found:
        raise InputError("must be one number at least, got none")
    return found


def _wholes(value: object) -> tuple[int, ...]:
    return tuple(map(whole, _listed(value)))


def _ascending(value: object) -> tuple[float, ...]:
    values: list[float] = []
    for part in _listed(value):
        if not _is_number(part):
            raise InputError(f"must be numbers, got {part!r}")
        values.append(_plain(part))
    if sorted(set(values)) != values or not all(0 < part <= LARGEST for part in values):
        raise InputError(f"must be ascending, above 0 and at most {LARGEST}, got {values}")
    return tuple(values)


def _ascending_wholes(value: object) -> tuple[int, ...]:
    values = _wholes(value)
    _ascending(values)
    return values


def _kernels(value: object) -> tuple[int, ...]:
    values = _ascending_wholes(value)
    if not all(kernel % 2 for kernel in values):
        raise InputError(f"must be odd, got {list(values)}")
    return values


def _ratios_to_one(value: object) -> tuple[float, ...]:
    values = _ascending(value)
    if values[-1] != 1:
        raise InputError(f"must end with 1, got {list(values)}")
    return values


def _share(value: object) -> float:
    if not _is_number(value) or not 0 <= value < 1:
        raise InputError(f"must be from 0 to below 1, got {value!r}")
    return float(value)


def _factor(value: object) -> float:
    if not _is_number(value) or not 0 < value <= 64:
        raise InputError(f"must be above 0 and at most 64, got {value!r}")
    return _plain(value)


def _is_whole(value: object) -> TypeGuard[int]:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _plain(value: float) -> float:
    """A number of NumPy's as Python's."""
    return int(value) if isinstance(value, numbers.Integral) else float(value)


def _one_of(*known: object) -> Rule:
    def rule(value: object) -> object:
        if value not in known:
            raise InputError(f"must be {' or '.join(map(str, known))}, got {value!r}")
        return known[known.index(value)]

    return rule


SIZES: dict[str, dict[str, Rule]] = {
    "mlp": {"widths": _ascending_wholes, "depths": _ascending_wholes, "dropout": _share},
    "mobilenet": {
        "channels": _wholes,
        "blocks": _wholes,
        "strides": _wholes,
        "stem": whole,
        "first": whole,
        "last": whole,
        "stem_stride": whole,
        "kernels": _kernels,
        "expansions": _ascending_wholes,
        "width": _factor,
    },
    "nasbench201": {"channels": whole, "cells": whole},
    "resnet": {
        "channels": whole,
        "depths": _wholes,
        "least": whole,
        "ratios": _ratios_to_one,
        "stem": _one_of(3, 7),
    },
    "transformer": {
        "patch": whole,
        "widths": _ascending_wholes,
        "depths": _ascending_wholes,
        "heads": _ascending_wholes,
        "ratios": _ascending,
        "head_width": whole,
        "pool": _one_of("class", "mean"),
        "dropout": _share,
    },
}
"""Of each space, in the order of its constructor."""


def checked(space: str, **sizes: object) -> dict[str, Any]:
    """Sizes of a space as it keeps them: one number or several that are to be several as a tuple.

    Raises:
        InputError: One is not what it may be.
    """
    return {name: check(space, name, value, SIZES[space][name]) for name, value in sizes.items()}


def check(owner: str, name: str, value: object, rule: Rule) -> Any:
    """What a rule makes of a value.

    Raises:
        InputError: The value breaks it; the message names the owner and the value.
    """
    try:
        return rule(value)
    except InputError as error:
        raise InputError(f"{owner}: {name} {error}") from None
