"""Which architectures a verb is about: drawn, or read from a file."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sigeo.cli import options
from sigeo.errors import InputError

if TYPE_CHECKING:
    from sigeo.spaces import SearchSpace


def add(parser: argparse.ArgumentParser, *, default: int = 64) -> Any:
    """The options; returns their group, for what else belongs there."""
    which = parser.add_argument_group("architectures")
    either = which.add_mutually_exclusive_group()
    either.add_argument(
        "--archs",
        type=options.positive,
        default=str(default),  # as text: the default's own number is given as well, not left out
        help="how many to draw (default: %(default)s)",
    )
    either.add_argument(
        "--archs-file",
        type=options.existing_file,
        metavar="FILE",
        help="one architecture string a line instead",
    )
    return which


def lines(args: argparse.Namespace) -> list[str] | None:
    """The lines of the file, None without one; to be read once, as it may be a pipe.

    Raises:
        InputError: It is no text, or holds none.
    """
    if args.archs_file is None:
        return None
    path = Path(args.archs_file)
    found = [line.strip() for line in options.text_of(path).splitlines()]
    if not any(found):
        raise InputError(f"{path}: expected one architecture a line, got none")
    return found


def chosen(
    args: argparse.Namespace, listed: list[str] | None, space: SearchSpace[Any]
) -> list[Any]:
    """The architectures, none twice; ``listed`` are the `lines`.

    Raises:
        InputError: More than the space has, or a line that is no architecture of it.
    """
    import random

    from sigeo.spaces import distinct

    if listed is None:
        if args.archs > space.size:
            raise InputError(f"--archs: the space has {space.size} architectures, got {args.archs}")
        return distinct(space, args.archs, random.Random(args.seed))
    archs = []
    for number, line in enumerate(listed, start=1):
        if line:
            try:
                archs.append(space.parse(line))
            except InputError as error:
                raise InputError(f"{args.archs_file}:{number}: {error}") from None
    return list(dict.fromkeys(archs))
