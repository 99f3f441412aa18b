"""Settings of the whole process that passes need, whichever threads they run in."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from torch.nn.attention import SDPBackend, sdpa_kernel


class ProcessSetting(AbstractContextManager[None]):
    """A setting that is changed as the first body needs it, and put back as the last one ends.

    torch's own context managers put back what each found as it began. Of two threads whose bodies
    overlap the one that ends last would so put back what the other had set, for good.
    """

    def __init__(self, change: Callable[[], AbstractContextManager[Any]]):
        """Nothing is changed yet.

        Args:
            change: Makes torch's context manager of the setting.
        """
        self._change = change
        self._lock = threading.Lock()
        self._bodies = 0
        self._changed: AbstractContextManager[Any]

    def __enter__(self) -> None:
        """Change it, unless another body needs it already."""
        with self._lock:
            if self._bodies == 0:
                self._changed = self._change()
                self._changed.__enter__()
            self._bodies += 1

    def __exit__(self, *_: object) -> None:
        """Put it back, unless another body needs it still."""
        with self._lock:
            self._bodies -= 1
            if self._bodies == 0:
                self._changed.__exit__(None, None, None)


# The fused kernels of attention have neither second nor forward-mode derivatives.
PLAIN_ATTENTION = ProcessSetting(lambda: sdpa_kernel(SDPBackend.MATH))
