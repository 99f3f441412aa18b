"""Arguments of another kind than a function's annotations say, named where they make it fail.

A call that succeeds costs nothing but a call: kinds are looked at only once an exception is there.
"""

from __future__ import annotations

import functools
import numbers
import re
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from inspect import signature
from typing import Any, Literal, ParamSpec, TypeVar, Union, get_args, get_origin, get_type_hints

import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")

# What an argument of another kind runs into, in torch and in Python.
_RAW = (AttributeError, IndexError, KeyError, RuntimeError, TypeError)
# A message of ours.
_OURS = re.compile(r"\w*[._][\w.]*: ")
_LISTS = (Sequence, Iterable, list, tuple)
_WORDS = {
    Tensor: "tensor",
    int: "int",
    float: "number",
    bool: "bool",
    str: "string",
    slice: "slice",
    torch.dtype: "torch.dtype",
}


def named_arguments(
    name: str, misfit: Callable[..., str | None] | None = None
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Let a function say which argument is of the wrong kind, where that makes it fail.

    An exception whose message is one of ours, and any other that has another cause, goes through;
    so does each of a call that is traced into a graph.

    Args:
        name: Of the function, for the message.
        misfit: What is wrong with the shapes of a call's arguments, in words, or None: for a
            function whose op is given them in another form, of which the op's message speaks.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def run(*args: P.args, **kwargs: P.kwargs) -> R:
            try:
                return function(*args, **kwargs)
            except _RAW as error:
                # Looking at kinds cannot be traced, and would hide the exception behind that.
                if torch.compiler.is_compiling():
                    raise
                wrong = None if _tells(error) else _wrong(function, args, kwargs)
                if wrong is not None:
                    raise TypeError(f"{name}: {wrong}") from error
                if misfit is None or isinstance(error, TypeError):  # called wrongly
                    raise
                unfit = misfit(*args, **kwargs)
                if unfit is not None:
                    raise RuntimeError(f"{name}: {unfit}") from error
                raise

        return run

    return decorate


def _tells(error: Exception) -> bool:
    """Whether an exception says by itself what is wrong: a message of ours, or no more memory."""
    ours = isinstance(error, RuntimeError) and _OURS.match(str(error)) is not None
    return ours or isinstance(error, torch.OutOfMemoryError)


def _wrong(function: Callable[..., Any], args: Any, kwargs: Any) -> str | None:
    """The first argument that is not what its annotation says."""
    try:
        given = signature(function).bind(*args, **kwargs).arguments
    except TypeError:  # not the function's arguments, which Python says well
        return None
    hints = get_type_hints(function)
    for argument, value in given.items():
        found = _misfit(argument, value, hints[argument]) if argument in hints else None
        if found is not None:
            place, hint, got = found
            return f"{place} must be {_described(hint)}, got {_kind(got)}"
    return None


def _misfit(place: str, value: Any, hint: Any) -> tuple[str, Any, Any] | None:
    """The place in a value that does not fit, what it should be, and what it is."""
    options = _options(hint)
    if hasattr(value, "_fields") and type(value) in options:
        fields = get_type_hints(type(value)).items()
        found = (_misfit(f"{place}.{name}", getattr(value, name), of) for name, of in fields)
        return next((one for one in found if one is not None), None)
    if any(_is_one(value, option) for option in options):
        return None
    of_lists = [option for option in options if get_origin(option) in _LISTS]
    if not of_lists or not _is_list(value, of_lists[0]):
        return place, hint, value
    (of, *_) = get_args(of_lists[0])
    found = (_misfit(f"{place}[{index}]", each, of) for index, each in enumerate(value))
    return next((one for one in found if one is not None), None)


def _options(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _is_one(value: Any, option: Any) -> bool:
    """Whether a value is of a kind that is no list."""
    if option is Any:
        return True
    if option is int:
        return isinstance(value, numbers.Integral | torch.SymInt)
    if option is bool:
        return isinstance(value, int | torch.SymBool)
    if option is float:
        known = isinstance(value, int | float | torch.SymInt | torch.SymFloat)
        return known or (hasattr(value, "__float__") and not isinstance(value, Tensor))
    if get_origin(option) is Literal:
        return any(type(value) is type(word) for word in get_args(option))
    if option is Tensor:
        return isinstance(value, Tensor) and value.layout is torch.strided
    kind = get_origin(option) or option  # an array's, say, of whatever numbers
    return isinstance(kind, type) and kind not in _LISTS and isinstance(value, kind)


def _is_list(value: Any, option: Any) -> bool:
    """Whether a value serves as a list, or, for an option that says so, is gone through once."""
    needs = ("__iter__",) if get_origin(option) is Iterable else ("__len__", "__getitem__")
    return all(hasattr(value, name) for name in needs) and not (
        isinstance(value, str | bytes | Mapping | Tensor) or hasattr(value, "__array__")
    )


def _described(hint: Any, *, several: bool = False) -> str:
    """A kind in words: "a list of tensors", or of several "lists of tensors"."""
    words = []
    for option in _options(hint):
        if option is type(None):
            words.append("Nones" if several else "None")
        elif get_origin(option) in _LISTS:
            of = _described(get_args(option)[0], several=True)
            words.append(f"{'lists' if several else 'a list'} of {of}")
        else:
            word = _word(option)
            one = f"{'an' if word[0] in 'aeio' else 'a'} {word}"
            words.append(f"{word}s" if several else one)
    return (" and " if several else " or ").join(words)


def _word(option: Any) -> str:
    kind = get_origin(option) or option
    if kind is Literal:
        kind = type(get_args(option)[0])
    return _WORDS.get(kind) or str(getattr(kind, "__name__", kind)).removeprefix("nd")


def _kind(value: Any) -> str:
    if isinstance(value, Tensor):
        dense = value.layout is torch.strided
        return "a tensor" if dense else f"a {value.layout} one, which is not dense"
    return "None" if value is None else type(value).__name__
