"""Files that are there whole or not at all."""

from __future__ import annotations

import contextlib
import glob
import os
import re
import secrets
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING

from sigeo.errors import InputError

if TYPE_CHECKING:
    import pyarrow as pa


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Write another file, then put it in the place of ``path``; a kill leaves the old one.

    The other file is this call's own, so that two that write the same path do not meet. Those of
    processes that were killed are removed. Links are followed. A pipe or a device is written to as
    it is, and what standard output goes to, as /dev/stdout, is written on from where it is.

    Args:
        path: Of the file.
        write: Writes into the file whose path it is given; that file is locked, so that it must not
            put another in its place.

    Raises:
        InputError: The file cannot be written.
    """
    try:
        if (stream := _stream(path)) is not None:
            _write_on(stream, write)
            return
        if path.exists() and not path.is_file():  # a folder refuses
            write(path)
            return
        place = Path(os.path.realpath(path))
        _remove_left(place)
        with _own(place) as partial:
            write(partial)
            partial.replace(place)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None


def _stream(path: Path) -> int | None:
    """The descriptor of this process that a path or a link names, if it is of a file."""
    if not path.is_file():
        return None
    own = re.escape(os.path.realpath("/proc/self"))
    while True:
        path = Path(os.path.realpath(path.parent)) / path.name
        named = re.fullmatch(rf"(?:/dev|{own})/fd/(\d+)", str(path))
        if named is not None:
            return int(named[1])
        if not path.is_symlink():
            return None
        path = path.parent / os.readlink(path)


def _write_on(stream: int, write: Callable[[Path], object]) -> None:
    """Write a whole file, and then what it holds to a descriptor."""
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / "whole"
        write(whole)
        sys.stdout.flush()
        with whole.open("rb") as file, open(stream, "wb", closefd=False) as out:
            shutil.copyfileobj(file, out)


def write_whole_text(path: Path, text: str) -> None:
    """Write a text in UTF-8, whole or not at all.

    Raises:
        InputError: The file cannot be written.
    """
    write_whole(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def write_whole_table(path: Path, table: pa.Table) -> None:
    """Write a table as parquet, whole or not at all.

    Raises:
        InputError: The file cannot be written.
    """
    from pyarrow import parquet

    def write(partial: Path) -> None:
        with partial.open("wb") as file:  # as a name, "s3:run" would be a place on the network
            parquet.write_table(table, file)

    write_whole(path, write)


@contextlib.contextmanager
def _own(path: Path) -> Iterator[Path]:
    """A new file beside another, held while it is written and removed after it.

    Yields:
        Its path.
    """
    held = None
    while held is None:
        partial = path.with_name(f"{path.name}.{secrets.randbelow(10**10)}.partial")
        held = _new(partial)
    with held:
        try:
            yield partial
        finally:
            with contextlib.suppress(OSError):  # half a file is of no use, and fills the disk
                partial.unlink()


def _new(path: Path) -> IO[bytes] | None:
    """A file that was not there, held.

    Returns:
        None if there is one of that name, or another process took it for one that was left.
    """
    try:
        file = path.open("xb")
    except FileExistsError:
        return None
    _hold(file, wait=True)
    if path.exists():
        return file
    file.close()
    return None


def _remove_left(path: Path) -> None:
    """Remove what processes that are no more have left of writing the same path."""
    for name in glob.glob(f"{glob.escape(str(path))}.*.partial"):
        left = Path(name)
        if not left.stem.removeprefix(f"{path.name}.").isdecimal():
            continue  # of another path
        with contextlib.suppress(OSError), left.open("rb") as file:
            if _hold(file, wait=False) and os.path.samestat(os.fstat(file.fileno()), left.stat()):
                left.unlink()


def _hold(file: IO[bytes], *, wait: bool) -> bool:
    """Lock a file until it is closed or the process ends.

    Returns:
        False if another holds it, or files cannot be locked there.
    """
    try:
        import fcntl  # not on every system

        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except (ImportError, OSError):
        return False
    return True
