"""Arguments of another kind than annotations say, named in one line."""

from __future__ import annotations

import functools
import numbers
import operator
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import fields
from inspect import Parameter, signature
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, ParamSpec, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np

from sigeo.errors import InputError, described, lacking, lacks_memory

P = ParamSpec("P")
R = TypeVar("R")

# What an argument of another kind runs into.
_RAW = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
_LARGEST_SEED = (1 << 63) - 1
_LEAST, _MOST = -(2**63), 2**64 - 1  # whole numbers that torch, NumPy and files take
_GONE_THROUGH = ("__iter__", "__getitem__")
_SPREAD = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
_WORDS = {
    int: "a whole number",
    float: "a number",
    str: "a text",
    bool: "True or False",
    Path: "a path",
    NoneType: "None",
}


def named_arguments(name: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Let a function say which argument is of the wrong kind, where that makes it fail.

    Kinds are looked at only once an exception is there. One that has another cause goes through, as
    does every InputError. NumPy's numbers, truth values and texts come to the function as Python's.

    Args:
        name: Of the function, for the message.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def run(*args: P.args, **kwargs: P.kwargs) -> R:
            try:
                return function(*map(plain, args), **{k: plain(v) for k, v in kwargs.items()})
            except InputError:
                raise
            except _RAW as error:
                wrong = None if lacks_memory(error) else _wrong(function, args, kwargs)
                if wrong is None:
                    raise
                raise InputError(f"{name}: {wrong}") from error

        return run

    return decorate


def check_fields(settings: Any, name: str) -> None:
    """Check the kinds of a dataclass's fields; NumPy's values become Python's, as JSON holds.

    Args:
        settings: Of the dataclass, which may be frozen.
        name: For the message.

    Raises:
        InputError: One is of another kind than its annotation says.
    """
    kinds = kinds_of(type(settings))
    for field in fields(settings):
        value = getattr(settings, field.name)
        wrong = misfit(field.name, value, kinds.get(field.name, Any))
        if wrong is not None:
            raise InputError(f"{name}: {wrong}")
        if isinstance(value, np.generic | np.ndarray):
            object.__setattr__(settings, field.name, value.tolist())


def plain(value: Any) -> Any:
    """A scalar of NumPy as Python's, anything else as it is."""
    return value.item() if isinstance(value, np.generic) else value


def whole_numbers(values: Iterable[Any]) -> tuple[int, ...] | None:
    """Whole numbers, also of NumPy's, as Python's; None if something else is among them."""
    try:
        return tuple(map(operator.index, values))
    except TypeError:
        return None


def checked_seed(seed: Any) -> int:
    """A seed, if it is one that torch takes.

    Raises:
        InputError: It is not.
    """
    if not is_of(seed, int) or not 0 <= seed <= _LARGEST_SEED:
        raise InputError(
            f"seed: must be a whole number from 0 to {_LARGEST_SEED}, got {described(seed)}"
        )
    return int(seed)


def kinds_of(annotated: Any) -> dict[str, Any]:
    """The annotations of a function or class, as far as they can be had."""
    try:
        return get_type_hints(annotated)
    except (NameError, TypeError):  # of what only type checkers import; of no function
        return {}


def misfit(argument: str, value: Any, kind: Any) -> str | None:
    """What is wrong with a value of another kind, in words; None where nothing is."""
    if is_of(value, kind):
        return None
    return f"{argument} must be {words(kind)}, got {_got(value, kind)}"


def is_of(value: Any, kind: Any) -> bool:
    """Whether a value is of an annotated kind; true of kinds that are not known here."""
    origin = get_origin(kind)
    if origin in (Union, UnionType):
        return any(is_of(value, one) for one in get_args(kind))
    if origin is Literal:
        return any(isinstance(value, type(one)) and value == one for one in get_args(kind))
    if _is_list(kind):
        return _is_list_of(value, origin, get_args(kind)[0])
    if kind in (int, float):
        number = numbers.Integral if kind is int else numbers.Real
        fits = isinstance(value, number) and not isinstance(value, bool)
        return fits and (kind is float or _LEAST <= value <= _MOST)
    if kind is bool:
        return isinstance(value, bool | np.bool_)
    known = origin or kind
    if known is Callable:
        return callable(value)
    if known is tuple:  # of so many values, which their own checks look at
        return isinstance(value, tuple | list)
    if known is Any or not isinstance(known, type):
        return True
    if getattr(known, "_is_protocol", False):
        return not isinstance(value, type) and not lacking(value, known)
    return isinstance(value, known)


def words(kind: Any) -> str:
    """What `is_of` takes."""
    origin = get_origin(kind)
    if origin in (Union, UnionType):
        return " or ".join(map(words, get_args(kind)))
    if origin is Literal:
        names = ", ".join(map(str, get_args(kind)))
        return f"one of {names}" if len(get_args(kind)) > 1 else names
    if _is_list(kind):
        of = get_args(kind)[0]
        return "a list" if of in (Any, object) else f"a list, each {words(of)}"
    known = origin or kind
    if known in (Callable, tuple):
        return "a function" if known is Callable else "a list"
    name = getattr(known, "__name__", str(known)).removeprefix("nd")
    return _WORDS.get(known) or f"{'an' if name[0] in 'AEIOUaeiou' else 'a'} {name}"


def _is_list(kind: Any) -> bool:
    """Whether a kind is of any number of values of one kind."""
    origin, of = get_origin(kind), get_args(kind)
    several = origin is not tuple or of[1:] == (...,)
    return origin in (Sequence, Collection, Iterable, list, tuple) and several and bool(of)


def _is_list_of(value: Any, origin: Any, of: Any) -> bool:
    if isinstance(value, str | bytes | type) or getattr(value, "ndim", 1) == 0:
        return False
    if not isinstance(value, Collection):  # gone through once, or as data sets are, by places
        return origin is Iterable and any(hasattr(value, name) for name in _GONE_THROUGH)
    return of in (Any, object) or all(is_of(one, of) for one in value)


def _got(value: Any, kind: Any) -> str:
    """What came, and what it lacks; of a list too long to be shown, the first that does not fit."""
    kinds = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    text = described(value, lacking(value, get_origin(kinds[0]) or kinds[0]))
    if isinstance(value, int) and not _LEAST <= value <= _MOST:
        return f"{text}, which 64 bits do not hold"
    for of in (get_args(one)[0] for one in kinds if _is_list(one)):
        if isinstance(value, list | tuple) and text == type(value).__name__:
            return f"{text} with {next(described(one) for one in value if not is_of(one, of))}"
    return text


def _wrong(function: Callable[..., Any], args: Any, kwargs: Any) -> str | None:
    """What is wrong with the first argument that is not of its annotation's kind."""
    try:
        given = signature(function).bind(*args, **kwargs)
    except TypeError:  # not the function's arguments, which Python says well
        return None
    kinds = kinds_of(function)
    for name, parameter in given.signature.parameters.items():
        if name in given.arguments and parameter.kind not in _SPREAD:
            wrong = misfit(name, given.arguments[name], kinds.get(name, Any))
            if wrong is not None:
                return wrong
    return None
