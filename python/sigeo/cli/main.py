"""``sigeo VERB``: reads arguments, runs the verb, turns bad input into one line and exit code 2."""

from __future__ import annotations

import argparse
import os
import signal
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

from sigeo.cli import (
    compare,
    console,
    correlate,
    doctor,
    rank,
    report,
    score,
    split,
    tables,
    train,
    warmup,
)
from sigeo.errors import InputError, lacks_memory

_VERBS = (rank, score, warmup, split, compare, train, correlate, tables, report, doctor)
_RESUMED = ("rank", "warmup", "split", "compare", "train")


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, as all errors of the command line are."""

    def error(self, message: str) -> NoReturn:
        """Print and exit with 2."""
        console.complain(f"{self.prog}: {console.one_line(message)}")
        self.exit(2)


def _parser() -> _Parser:
    parser = _Parser(prog="sigeo", description="Rank neural architectures without training them.")
    own, torch = (version or "not installed" for version in doctor.versions("sigeo-ext", "torch"))
    parser.add_argument("--version", action="version", version=f"sigeo {own}, torch {torch}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for module in _VERBS:
        name = module.__name__.rpartition(".")[2]
        text = (module.__doc__ or "").partition("\n\n")[0].replace("\n", " ")
        verb = verbs.add_parser(name, help=module.HELP, description=text)
        module.add_arguments(verb)
        verb.set_defaults(execute=module.run, parser=verb, verbs=verbs.choices)
    return parser


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parsed, unknown = _parser().parse_known_args(arguments)
    if unknown:  # argparse's own complaint does not name the verb
        option = unknown[0].partition("=")[0]
        known = [
            name for name, verb in parsed.verbs.items() if option in verb._option_string_actions
        ]
        of = f"; {option} is an option of {', '.join(known)}" if known else ""
        parsed.parser.error(f"unrecognized arguments: {' '.join(unknown)}{of}")
    return parsed


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        0 if it did what was asked, 1 if a check that it is there for failed, 2 for bad input and
        where memory does not suffice.
    """
    # Set before torch starts its threads: spinning ones starve each other on small machines.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    parsed = _parse(arguments)
    interrupts: list[int] = []
    try:
        with _noted(interrupts):
            code: int = parsed.execute(parsed)
    except BaseException as error:
        stopped = bool(interrupts) or _interrupted(error)
        if not stopped and isinstance(error, (InputError, OSError, sqlite3.Error)):
            console.complain(f"sigeo {parsed.verb}: {_message(error)}")
            return 2
        if not stopped and lacks_memory(error):
            first = str(error).partition("\n")[0]  # torch's goes on with its own frames
            console.complain(f"sigeo {parsed.verb}: out of memory{first and ': '}{first}")
            return 2
        if not stopped:
            raise
        kept = "; the same command goes on from here" if parsed.verb in _RESUMED else ""
        console.complain(f"sigeo {parsed.verb}: stopped{kept}")
        return 130
    return code


@contextmanager
def _noted(interrupts: list[int]) -> Iterator[None]:
    """Note each Ctrl-C, which raises KeyboardInterrupt as ever.

    A library that is being imported may turn that into an error of its own, or swallow it and fail
    at what it then lacks.

    Yields:
        Once, while they are noted: not in another thread, nor where Ctrl-C does something else.
    """

    def note(number: int, frame: Any) -> None:
        interrupts.append(number)
        signal.default_int_handler(number, frame)

    ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if not ours or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _interrupted(error: BaseException | None) -> bool:
    """Whether an exception is that of Ctrl-C, or follows from it.

    Python 3.11 and older raise another where a class is being made, as when torch imports its own.
    """
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


def _message(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename is not None:
        return console.one_line(f"{error.filename}: {error.strerror}")
    return console.one_line(error)
