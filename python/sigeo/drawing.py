"""The style of figures, which matplotlib keeps for the whole process."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

_lock = threading.Lock()


@contextmanager
def styled(style: Mapping[str, Any]) -> Iterator[None]:
    """Draw in a style, one thread at a time.

    Of two threads at once the one that ends last would put back the other's style, for good.

    Args:
        style: Settings of matplotlib by name.

    Yields:
        Once, while they hold.
    """
    from matplotlib import rc_context  # slow to import, and only needed here

    with _lock, rc_context(dict(style)):  # type: ignore[arg-type]
        yield
