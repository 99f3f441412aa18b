"""The proxies by name."""

from __future__ import annotations

import inspect
import numbers
from collections.abc import Callable, Collection, Sequence
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from sigeo.errors import InputError
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


def options_of(name: str) -> dict[str, Any]:
    """The options of a proxy, with their defaults.

    Raises:
        InputError: No proxy of that name.
    """
    parameters = inspect.signature(_factory(name)).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is not p.VAR_KEYWORD}


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
    kinds = _kinds(factory) if options else {}
    for option, value in options.items():
        kind = kinds.get(option, Any)
        if not _is_of(value, kind):
            raise InputError(f"proxy {name}: {option} must be {_words(kind)}, got {value!r}")
    try:
        proxy = factory(**options)
    except TypeError as error:
        raise InputError(f"proxy {name}: {error}") from error
    if not isinstance(proxy, Proxy):
        raise InputError(f"proxy {name}: its function must return a Proxy, got {proxy!r}")
    return proxy


def _factory(name: str) -> Callable[..., Proxy]:
    if name not in _FACTORIES:
        raise InputError(f"proxy must be one of {', '.join(names())}, got {name!r}")
    return _FACTORIES[name]


def _kinds(factory: Callable[..., Proxy]) -> dict[str, Any]:
    """The annotations of a factory's options, as far as they can be had."""
    try:
        return get_type_hints(factory)
    except (NameError, TypeError):  # of what only type checkers import; of no function
        return {}


def _is_of(value: Any, kind: Any) -> bool:
    """Whether a value is of an annotated kind; true of kinds that are not known here."""
    if get_origin(kind) in (Union, UnionType):
        return any(_is_of(value, one) for one in get_args(kind))
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    if get_origin(kind) is Sequence:
        listed = isinstance(value, Collection) and not isinstance(value, (str, bytes))
        return listed and all(_is_of(item, *get_args(kind)) for item in value)
    if kind in (int, float):
        number = numbers.Integral if kind is int else numbers.Real
        return isinstance(value, number) and not isinstance(value, bool)
    return kind not in (str, bool, NoneType) or isinstance(value, kind)


def _words(kind: Any) -> str:
    """What `_is_of` takes."""
    if get_origin(kind) in (Union, UnionType):
        return " or ".join(_words(one) for one in get_args(kind))
    if get_origin(kind) is Literal:
        return " or ".join(map(repr, get_args(kind)))
    if get_origin(kind) is Sequence:
        return f"a list, each {_words(*get_args(kind))}"
    known = {int: "a whole number", float: "a number", str: "a text", bool: "True or False"}
    return known.get(kind, "None")
