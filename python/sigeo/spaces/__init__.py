"""Search spaces: sets of architectures, their networks and their shared weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sigeo.errors import InputError
from sigeo.spaces.base import Choice, Cost, InputShape, SearchSpace, Stack, Supernet, distinct
from sigeo.spaces.nasbench201 import NASBench201
from sigeo.spaces.regions import Kind, Product, Region

__all__ = [
    "Choice",
    "Cost",
    "InputShape",
    "Kind",
    "Product",
    "Region",
    "SearchSpace",
    "Stack",
    "Supernet",
    "distinct",
    "get",
    "names",
]

_SPACES: dict[str, Callable[..., Any]] = {NASBench201.name: NASBench201}


def names() -> list[str]:
    """The names that `get` takes."""
    return sorted(_SPACES)


def get(name: str, shape: InputShape, **sizes: int) -> SearchSpace[Any]:
    """The space of a name, for inputs of a shape.

    Args:
        name: One of `names`.
        shape: Of the images and classes.
        **sizes: The space's own, for nasbench201 ``channels`` and ``cells``.

    Raises:
        InputError: No space of that name.
    """
    if name not in _SPACES:
        raise InputError(f"space must be one of {', '.join(names())}, got {name!r}")
    space: SearchSpace[Any] = _SPACES[name](shape, **sizes)
    return space
