"""Search spaces: sets of architectures, their networks and their shared weights."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from sigeo.errors import InputError, check_kind
from sigeo.kinds import named_arguments
from sigeo.spaces.base import (
    Choice,
    Cost,
    InputShape,
    SearchSpace,
    Stack,
    Supernet,
    Watch,
    distinct,
)
from sigeo.spaces.choices import Architecture
from sigeo.spaces.elastic import ElasticSpace, ElasticSupernet, Groups
from sigeo.spaces.mlp import MLP
from sigeo.spaces.mobilenet import MobileNet
from sigeo.spaces.nasbench201 import NASBench201
from sigeo.spaces.regions import Kind, Product, Region
from sigeo.spaces.resnet import ResNet
from sigeo.spaces.transformer import Transformer

__all__ = [
    "MLP",
    "Architecture",
    "Choice",
    "Cost",
    "ElasticSpace",
    "ElasticSupernet",
    "Groups",
    "InputShape",
    "Kind",
    "MobileNet",
    "NASBench201",
    "Product",
    "Region",
    "ResNet",
    "SearchSpace",
    "Stack",
    "Supernet",
    "Transformer",
    "Watch",
    "described",
    "distinct",
    "get",
    "names",
    "sizes_of",
]

_SPACES: dict[str, Callable[..., Any]] = {
    space.name: space for space in (MLP, MobileNet, NASBench201, ResNet, Transformer)
}


def names() -> list[str]:
    """The names that `get` takes."""
    return sorted(_SPACES)


@named_arguments("spaces.sizes_of")
def sizes_of(name: str) -> dict[str, Any]:
    """The sizes that a space of a name can be made with, and their defaults.

    Raises:
        InputError: No space of that name.
    """
    parameters = inspect.signature(_maker(name)).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


@named_arguments("spaces.get")
def get(name: str, shape: InputShape, **sizes: Any) -> SearchSpace[Any]:
    """The space of a name, for inputs of a shape.

    Args:
        name: One of `names`.
        shape: Of the images and classes.
        **sizes: The space's own, see `sizes_of`.

    Raises:
        InputError: No space of that name, or it has no such size.
    """
    known = sizes_of(name)
    for size in sizes:
        if size not in known:
            raise InputError(f"{name}: size must be one of {', '.join(known)}, got {size!r}")
    check_kind(shape, InputShape, f"{name}: shape")
    space: SearchSpace[Any] = _maker(name)(shape, **sizes)
    return space


@named_arguments("spaces.described")
def described(sizes: Mapping[str, Any]) -> SearchSpace[Any]:
    """The space whose ``describe()`` gave these sizes, also by way of JSON.

    Raises:
        InputError: They are of no space.
    """
    known = dict(sizes)
    try:
        shape = InputShape(
            channels=known.pop("in_channels"),
            size=known.pop("image_size"),
            classes=known.pop("classes"),
        )
        return get(known.pop("name"), shape, **known)
    except InputError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"space: expected a description with all sizes, got {error!r}") from None


def _maker(name: str) -> Callable[..., Any]:
    if name not in _SPACES:
        raise InputError(f"space must be one of {', '.join(names())}, got {name!r}")
    return _SPACES[name]
