"""The proxies by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sigeo.errors import InputError
from sigeo.proxies.base import Proxy

_FACTORIES: dict[str, Callable[..., Proxy]] = {}


def register(name: str) -> Callable[[Callable[..., Proxy]], Callable[..., Proxy]]:
    """Make a function that builds a proxy known under ``name``.

    The function's keyword arguments are the proxy's options.

    Raises:
        ValueError: The name is taken.
    """

    def enter(factory: Callable[..., Proxy]) -> Callable[..., Proxy]:
        if name in _FACTORIES:
            raise ValueError(f"proxy name {name!r} is taken")
        _FACTORIES[name] = factory
        return factory

    return enter


def names() -> list[str]:
    """The names that `get` takes."""
    return sorted(_FACTORIES)


def get(name: str, **options: Any) -> Proxy:
    """The proxy of a name.

    Args:
        name: One of `names`.
        **options: The proxy's own, for sigeo ``lambdas``.

    Raises:
        InputError: No proxy of that name, or an option that it does not have.
    """
    if name not in _FACTORIES:
        raise InputError(f"proxy must be one of {', '.join(names())}, got {name!r}")
    try:
        return _FACTORIES[name](**options)
    except TypeError as error:
        raise InputError(f"proxy {name}: {error}") from error
