"""The one exception for input that a user can mend."""

from collections.abc import Iterable


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
