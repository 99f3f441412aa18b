"""Options of a benchmark table, and how many of its architectures count as the best."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from sigeo.cli import console, options
from sigeo.errors import InputError

if TYPE_CHECKING:
    from sigeo.tables import Table

METRIC = "cifar10.test"
"""The column that is taken by default."""


def add(parser: argparse.ArgumentParser, why: str) -> None:
    """A benchmark table and its column."""
    parser.add_argument(
        "--table", type=options.existing_file, metavar="FILE", help=f"benchmark table {why}"
    )
    parser.add_argument("--metric", help=f"its column (default: {METRIC})")


def metric(args: argparse.Namespace) -> str:
    """The column of the table.

    Raises:
        InputError: A column without a table.
    """
    if args.metric is not None and args.table is None:
        raise InputError("--metric: has no effect without --table")
    return METRIC if args.metric is None else str(args.metric)


def say_if_code(table: Table, metric: str) -> None:
    """Say so where a column seems to be no result; someone may mean it all the same.

    Raises:
        InputError: The table has no such column.
    """
    reason = table.code_like(metric)
    if reason is not None:
        column = table.column(metric)
        console.say(f"--metric: {column} seems to be a code and not a result: {reason}")


def read(file: str | None, metric: str) -> Table | None:
    """The benchmark table of a file, None without one; read before torch is imported.

    Raises:
        InputError: It cannot be read, or has no such column.
    """
    if file is None:
        return None

    from sigeo.tables import read_table

    found = read_table(file)
    say_if_code(found, metric)
    return found


def check_scored(table: Table, metric: str, archs: Sequence[str]) -> None:
    """Check that enough architectures that are scored have a value.

    Raises:
        InputError: They have not; or rows of one architecture are no repetitions.
    """
    truth = table.lookup(metric)
    known = sum(arch in truth for arch in archs)
    if known < 3:
        raise InputError(
            f"--table: needs values of at least 3 of the architectures scored, {table.path} has "
            f"{known} of {len(archs)}"
        )


def add_top(parser: argparse._ActionsContainer) -> None:
    """How many of the architectures that are ranked count as the best."""
    parser.add_argument(
        "--top",
        type=options.positive,
        help="how many are the best (default: a tenth, 5 at least, or all of fewer)",
    )


def top(args: argparse.Namespace, count: int) -> int:
    """How many of ``count`` are the best; by default so many that Kendall's tau among them counts.

    Raises:
        InputError: More than there are.
    """
    from sigeo.tables import FEWEST

    if args.top is None:
        return min(count, max(FEWEST, -(-count // 10)))
    if args.top > count:
        raise InputError(f"--top: must be at most the {count} architectures ranked, got {args.top}")
    return int(args.top)
