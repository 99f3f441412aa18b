"""Parameters that have no per-sample gradients, where all must have them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sigeo.errors import InputError


class Unserved(InputError):
    """A parameter cannot be served, and the capture is strict.

    Attributes:
        fact: The message without what the user of `capture` can do.
    """

    def __init__(self, name: str, reason: str):
        """The error for a parameter."""
        self.fact = f"parameter {name} has no per-sample gradient here: {reason}"
        super().__init__(f"{self.fact}; strict=False leaves it out and names it in `unsupported`")


@contextmanager
def all_served() -> Iterator[None]:
    """For functions that need every parameter: what `capture` refuses, without ``strict=False``.

    Yields:
        Once, when captures refuse so.

    Raises:
        InputError: A parameter cannot be served.
    """
    try:
        yield
    except Unserved as error:
        raise InputError(error.fact) from error
