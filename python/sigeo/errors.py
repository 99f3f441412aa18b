"""The one exception for input that a user can mend, and checks that many arguments need."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


class InputError(ValueError):
    """Bad input: the message is one line that names what is wrong, what was expected, what came.

    The command line prints it and exits with 2.
    """


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
        raise InputError(f"{what} must be one of {', '.join(names)}, got {value!r}")


def check_kind(value: Any, kind: type, where: str) -> None:
    """Check that an object is there where one belongs, not its name or its class.

    Args:
        value: What came.
        kind: Its class; of a protocol its members are looked for.
        where: The argument, for the message.

    Raises:
        InputError: It is something else.
    """
    lacking: list[str] = []
    if getattr(kind, "_is_protocol", False):
        members = [name for name in vars(kind) if name[0] != "_" or name == "__call__"]
        lacking = [name for name in members if not hasattr(value, name)]
        fits = not lacking and not isinstance(value, type)
    else:
        fits = isinstance(value, kind)
    if fits:
        return
    if value is None or isinstance(value, (str, bool, int, float)):
        got = repr(value)
    elif isinstance(value, type):
        got = f"the class {value.__name__}"
    else:
        missing = f" without {', '.join(lacking)}" if lacking else ""
        got = f"{type(value).__name__}{missing}"
    raise InputError(f"{where} must be a {kind.__name__}, got {got}")
