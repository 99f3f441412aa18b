"""Whether the networks of a space take the images of a data set."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sigeo.data import ImageData
from sigeo.errors import InputError
from sigeo.spaces import SearchSpace


def check_sized(space: SearchSpace[Any], data: ImageData) -> None:
    """Check the sizes that a space says of itself.

    Args:
        space: The space; one whose ``describe()`` has no sizes of its input is taken at its word.
        data: The images. Fewer classes than the networks tell apart are no harm.

    Raises:
        InputError: The networks take other images, or tell fewer classes apart.
    """
    described: Mapping[str, Any] = space.describe()
    names = ("in_channels", "image_size", "classes")
    if not all(name in described for name in names):
        return
    channels, size, classes = (described[name] for name in names)
    if (channels, size) != (data.channels, data.size) or classes < data.classes:
        raise InputError(
            f"space {space.name}: made for images {channels}x{size}x{size} of {classes} classes, "
            f"{data.name} has {data.channels}x{data.size}x{data.size} of {data.classes}; "
            "see InputShape"
        )
