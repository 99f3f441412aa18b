"""Time that something took, also over several processes."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import TracebackType

from sigeo.errors import InputError
from sigeo.whole_files import write_whole_text


class Clock:
    """Adds up the time inside ``with`` blocks, and keeps it in a file.

    A kill loses the time since the last `lap`; work that is done again after it counts twice.

    Attributes:
        seconds: So far.
    """

    def __init__(self, file: Path | None = None):
        """Begin, or go on from a file.

        Args:
            file: Where the seconds are kept; None for nowhere.

        Raises:
            InputError: The file holds something else.
        """
        self.file, self.seconds = file, 0.0
        if file is not None and file.exists():
            try:
                self.seconds = float(json.loads(file.read_text(encoding="utf-8")))
            except (ValueError, TypeError, UnicodeDecodeError):
                raise InputError(f"{file}: expected a number of seconds") from None
        self._began = 0.0
        self._kept = self.seconds

    def __enter__(self) -> None:
        """Start."""
        self._began = time.perf_counter()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop, and keep."""
        self.lap()

    def lap(self, *, every: float = 0.0) -> None:
        """Inside a block: add the time so far, and keep it.

        Args:
            every: Seconds between two writings of the file; in between the time is only added.

        Raises:
            InputError: The file cannot be written.
        """
        now = time.perf_counter()
        self.seconds += now - self._began
        self._began = now
        if self.file is not None and self.seconds - self._kept >= every:
            self._kept = self.seconds
            write_whole_text(self.file, json.dumps(self.seconds))
