"""What a person sees: tables on standard output, progress on standard error."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

Report = Callable[[int, int], None]


@contextmanager
def progress(what: str) -> Iterator[Report]:
    """A progress bar on standard error.

    Yields:
        A function of (done, in all) that moves it.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    hidden = not console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=hidden) as bars:
        task = bars.add_task(what, total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)


def say(text: str) -> None:
    """One line to standard error."""
    Console(stderr=True, highlight=False).print(text, markup=False, soft_wrap=True)


def show_table(
    title: str, columns: Sequence[tuple[str, bool]], rows: Iterable[Sequence[str]]
) -> None:
    """A table on standard output; columns are (heading, whether numbers)."""
    table = Table(title=title, title_justify="left")
    for heading, number in columns:
        table.add_column(heading, justify="right" if number else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    console = Console(markup=False)
    if not console.is_terminal:
        console.width = 200  # a file or a pipe: no reason to fold
    console.print(table)


def one_line(text: object) -> str:
    """A text without line breaks."""
    return " ".join(str(text).split())


def number(value: float | None) -> str:
    """A number for a table."""
    if value is None:
        return "not finite"
    return f"{int(value):,}" if float(value).is_integer() else f"{value:.6g}"
