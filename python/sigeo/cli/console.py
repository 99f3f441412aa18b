"""What a person sees: tables on standard output, progress on standard error."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import IO, TextIO

from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

Report = Callable[[int, int], None]
_SECONDS_BETWEEN_LINES = 30.0
_SECONDS_OF_SILENCE = 2.0
_CONTINUED = ", continued"
_FOLDED = 20  # letters of a column of text in a line, at least


@contextmanager
def _while_read(stream: TextIO) -> Iterator[None]:
    """Where a stream is closed early, by ``| head`` say, no more goes there.

    The verb goes on, as it has files to write.

    Args:
        stream: Standard output or error.

    Yields:
        Once, to write.
    """
    try:
        yield
    except BrokenPipeError:
        _write_no_more(stream)


def _write_no_more(stream: IO[str]) -> None:
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, stream.fileno())
    os.close(nothing)


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """As `_while_read`, in the place of an exit: bars are also drawn by a thread."""
        _write_no_more(self.file)


_STDERR = _Console(stderr=True, highlight=False)
"""One for bars and lines: it moves a running bar below what is said."""


@contextmanager
def progress(what: str) -> Iterator[Report]:
    """A progress bar on standard error, or where that is no terminal a line now and then.

    Yields:
        A function of (done, in all) that moves it.
    """
    if not _STDERR.is_terminal:
        yield _lines(what)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=_STDERR, transient=True) as bars:
        task = bars.add_task(what, total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)


def _lines(what: str) -> Report:
    said = time.monotonic()

    def report(done: int, total: int) -> None:
        nonlocal said
        now = time.monotonic()
        if now - said >= _SECONDS_BETWEEN_LINES:
            said = now
            say(f"{what}: {done:,} of {total:,}")

    return report


def announced(line: str, report: Report) -> Report:
    """The same report, which first says a line: only if there is anything to report."""
    said = False

    def announce(done: int, total: int) -> None:
        nonlocal said
        if not said:
            say(line)
        said = True
        report(done, total)

    return announce


@contextmanager
def said_if_slow(line: str) -> Iterator[None]:
    """Say a line if what is done inside takes long.

    Args:
        line: What is being done.

    Yields:
        Once, to do it.
    """
    timer = threading.Timer(_SECONDS_OF_SILENCE, say, (line,))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def say(text: str) -> None:
    """One line to standard error."""
    with _while_read(sys.stderr):
        _STDERR.print(text, markup=False, soft_wrap=True)


def show_table(
    title: str, columns: Sequence[tuple[str, bool]], rows: Iterable[Sequence[str]]
) -> None:
    """A table on standard output; columns are (heading, whether numbers).

    Where the terminal is too narrow for the columns, several tables, each with the first column.
    """
    cells = list(rows)
    for part in _fitting(columns, cells, _stdout().width):
        table = Table(title=title, title_justify="left")
        for heading, number in (columns[place] for place in part):
            table.add_column(
                heading,
                justify="right" if number else "left",
                overflow="fold",
                no_wrap=number and len(part) > 2,  # else it may be wider than the terminal
            )
        for row in cells:
            table.add_row(*(row[place] for place in part))
        show(table)
        title = title.removesuffix(_CONTINUED) + _CONTINUED


def _fitting(
    columns: Sequence[tuple[str, bool]], rows: Sequence[Sequence[str]], width: int
) -> list[list[int]]:
    """The columns of tables of some width, the first in each; numbers are not folded, text is."""
    found, used = [[0]], 0
    for place, (heading, number) in enumerate(columns):
        longest = max(cell_len(text) for text in (heading, *(row[place] for row in rows)))
        needs = 3 + (longest if number or place == 0 else min(longest, _FOLDED))  # with its edges
        if place == 0:
            first = used = 1 + needs
        elif used + needs > width and len(found[-1]) > 1:
            found.append([0, place])
            used = first + needs
        else:
            found[-1].append(place)
            used += needs
    return found


def show(what: RenderableType) -> None:
    """A table or a tree on standard output."""
    with _while_read(sys.stdout):
        _stdout().print(what)


def out(text: str) -> None:
    """A text on standard output, as it is."""
    with _while_read(sys.stdout):
        print(text, flush=True)


def complain(text: str) -> None:
    """A text on standard error, as it is."""
    with _while_read(sys.stderr):
        print(text, file=sys.stderr, flush=True)


def _stdout() -> Console:
    console = _Console(markup=False)
    if not console.is_terminal:
        console.width = 200  # a file or a pipe: no reason to fold
    return console


def one_line(text: object) -> str:
    """A text without line breaks."""
    return " ".join(str(text).split())


def said(error: BaseException) -> str:
    """An exception's type and its message in one line, if it has one."""
    message = one_line(error)
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


def number(value: float | None) -> str:
    """A number for a table."""
    if value is None:
        return "not finite"
    return f"{int(value):,}" if float(value).is_integer() else f"{value:.6g}"
