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


def chosen(args: argparse.Namespace, space: SearchSpace[Any]) -> list[Any]:
    """The architectures, none twice.

    Raises:
        InputError: More than the space has, or a line of the file that is none.
    """
    import random

    from sigeo.spaces import distinct

    if args.archs_file is None:
        if args.archs > space.size:
            raise InputError(f"--archs: the space has {space.size} architectures, got {args.archs}")
        return distinct(space, args.archs, random.Random(args.seed))
    path = Path(args.archs_file)
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}: expected text in UTF-8, {error.reason} at {error.start}"
        ) from None
    archs = []
    for number, line in enumerate(lines, start=1):
        if line:
            try:
                archs.append(space.parse(line))
            except InputError as error:
                raise InputError(f"{path}:{number}: {error}") from None
    if not archs:
        raise InputError(f"{path}: expected one architecture a line, got none")
    return list(dict.fromkeys(archs))
