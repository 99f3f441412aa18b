"""Files that are there whole or not at all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

from sigeo.errors import InputError


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Write another file, then put it in the place of ``path``; a kill leaves the old one.

    The other file is this process's own, so that two that write the same path do not meet.

    Args:
        path: Of the file.
        write: Writes to the path that it is given.

    Raises:
        InputError: The file cannot be written.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        write(partial)
        partial.replace(path)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
    finally:
        with contextlib.suppress(OSError):  # half a file is of no use, and fills the disk
            partial.unlink()
