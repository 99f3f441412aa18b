"""``sigeo VERB``: reads arguments, runs the verb, turns bad input into one line and exit code 2."""

from __future__ import annotations

import argparse
import os
import sqlite3
import sys
from collections.abc import Sequence

from sigeo.cli import correlate, doctor, rank, report, score, tables, warmup
from sigeo.errors import InputError

_VERBS = (rank, score, warmup, correlate, tables, report, doctor)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sigeo", description="Rank neural architectures without training them."
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for module in _VERBS:
        name = module.__name__.rpartition(".")[2]
        text = (module.__doc__ or "").partition("\n\n")[0].replace("\n", " ")
        verb = verbs.add_parser(name, help=module.HELP, description=text)
        module.add_arguments(verb)
        verb.set_defaults(execute=module.run)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        0 if it did what was asked, 1 if a check that it is there for failed, 2 for bad input.
    """
    # Set before torch starts its threads: spinning ones starve each other on small machines.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    parsed = _parser().parse_args(arguments)
    try:
        code: int = parsed.execute(parsed)
    except (InputError, OSError, sqlite3.Error) as error:
        print(f"sigeo {parsed.verb}: {_one_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"sigeo {parsed.verb}: stopped; the same command goes on from here", file=sys.stderr)
        return 130
    return code


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split())
