"""The one exception for input that a user can mend, and checks that many arguments need."""

from __future__ import annotations

import numbers
from collections.abc import Iterable, Sequence
from typing import Any


class InputError(ValueError):
    """Bad input: the message is one line that names what is wrong, what was expected, what came.

    The command line prints it and exits with 2.
    """


def lacks_memory(error: BaseException) -> bool:
    """Whether there was too little memory; torch has no class of its own for a CPU's."""
    if isinstance(error, RuntimeError):  # of which torch.OutOfMemoryError is one
        return type(error).__name__ == "OutOfMemoryError" or "DefaultCPUAllocator" in str(error)
    return isinstance(error, MemoryError)


_SHORT = 60  # letters of a list that a message shows whole


def check_one_of(what: str, value: object, known: Iterable[str]) -> None:
    """Check that a value is one of some names.

    Args:
        what: The argument, for the message.
        value: Its value.
        known: The names.

    Raises:
        InputError: It is none of them.
    """
    names = tuple(known)
    if value not in names:
        raise InputError(f"{what} must be one of {', '.join(names)}, got {described(value)}")


def check_kind(value: Any, kind: type, where: str) -> None:
    """Check that an object is there where one belongs, not its name or its class.

    Args:
        value: What came.
        kind: Its class; of a protocol its members are looked for.
        where: The argument, for the message.

    Raises:
        InputError: It is something else.
    """
    absent: list[str] = []
    if getattr(kind, "_is_protocol", False):
        absent = lacking(value, kind)
        fits = not absent and not isinstance(value, type)
    else:
        fits = isinstance(value, kind)
    if not fits:
        article = "an" if kind.__name__[0] in "AEIOU" else "a"
        got = described(value, absent)
        raise InputError(f"{where} must be {article} {kind.__name__}, got {got}")


def lacking(value: Any, kind: Any) -> list[str]:
    """The members that an object does not have of a protocol; none of another kind."""
    if not getattr(kind, "_is_protocol", False):
        return []
    members = [name for name in vars(kind) if name[0] != "_" or name == "__call__"]
    return [name for name in members if not hasattr(value, name)]


def described(value: Any, absent: Sequence[str] = ()) -> str:
    """What came, for a message: the value where it is short, else what it is and lacks."""
    if value is None or isinstance(value, (str, numbers.Number)):
        return repr(value)
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if isinstance(value, (list, tuple, dict)) and len(value) < _SHORT:
        text = repr(value)
        if len(text) <= _SHORT and "\n" not in text:
            return text
    missing = f" without {', '.join(absent)}" if absent else ""
    return f"{type(value).__name__}{missing}"
