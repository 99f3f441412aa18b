"""The proxies by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from sigeo.errors import InputError
from sigeo.kinds import kinds_of, misfit, named_arguments
from sigeo.proxies.base import Proxy

_FACTORIES: dict[str, Callable[..., Proxy]] = {}


def register(name: str) -> Callable[[Callable[..., Proxy]], Callable[..., Proxy]]:
    """Make a function that builds a proxy known under ``name``.

    The function's keyword arguments are the proxy's options; values are checked where they are
    annotated with numbers, texts, literals, sequences of these, or None.

    Raises:
        InputError: No name that the command line can read, or given to what is no function.
        ValueError: The name is taken.
    """
    if not isinstance(name, str) or not name or name != name.strip() or set(name) & set(",:="):
        raise InputError(f"proxy name: must be a text without any of ',:=', got {name!r}")

    def enter(factory: Callable[..., Proxy]) -> Callable[..., Proxy]:
        if not callable(factory):
            raise InputError(f"proxy {name}: expected a function that builds it, got {factory!r}")
        if name in _FACTORIES:
            raise ValueError(f"proxy name {name!r} is taken")
        _FACTORIES[name] = factory
        return factory

    return enter


def names() -> list[str]:
    """The names that `get` takes."""
    return sorted(_FACTORIES)


@named_arguments("proxies.options_of")
def options_of(name: str) -> dict[str, Any]:
    """The options of a proxy, with their defaults.

    Raises:
        InputError: No proxy of that name.
    """
    parameters = inspect.signature(_factory(name)).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is not p.VAR_KEYWORD}


@named_arguments("proxies.get")
def get(name: str, **options: Any) -> Proxy:
    """The proxy of a name.

    Args:
        name: One of `names`.
        **options: The proxy's own, see `options_of`; for sigeo ``lambdas``.

    Raises:
        InputError: No proxy of that name, an option that it does not have, a value that the option
            does not take, or something else registered in the place of a function to a proxy.
    """
    factory = _factory(name)
    try:
        inspect.signature(factory).bind(**options)
    except TypeError as error:
        have = ", ".join(options_of(name)) or "none"
        raise InputError(f"proxy {name}: {error}, options are {have}") from None
    kinds = kinds_of(factory) if options else {}
    for option, value in options.items():
        kind = kinds.get(option, Any)
        wrong = misfit(option, value, kind) if _is_checked(kind) else None
        if wrong is not None:
            raise InputError(f"proxy {name}: {wrong}")
    try:
        proxy = factory(**options)
    except TypeError as error:
        raise InputError(f"proxy {name}: {error}") from error
    if not isinstance(proxy, Proxy):
        raise InputError(f"proxy {name}: its function must return a Proxy, got {proxy!r}")
    return proxy


def _is_checked(kind: Any) -> bool:
    """Whether options of an annotated kind are checked here: those that `register` names."""
    if get_origin(kind) in (Union, UnionType, Sequence):
        return all(map(_is_checked, get_args(kind)))
    return get_origin(kind) is Literal or kind in (int, float, str, bool, NoneType)


def _factory(name: str) -> Callable[..., Proxy]:
    if name not in _FACTORIES:
        raise InputError(f"proxy must be one of {', '.join(names())}, got {name!r}")
    return _FACTORIES[name]
