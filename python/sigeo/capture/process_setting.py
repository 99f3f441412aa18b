"""Settings of the whole process that passes need, whichever threads they run in."""

from __future__ import annotations

import os
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
        self._bodies: list[int] = []  # the threads that they run in
        self._changed: AbstractContextManager[Any]
        if hasattr(os, "register_at_fork"):  # not on every system
            os.register_at_fork(after_in_child=self._leave_others)

    def __enter__(self) -> None:
        """Change it, unless another body needs it already."""
        with self._lock:
            if not self._bodies:
                self._changed = self._change()
                self._changed.__enter__()
            self._bodies.append(threading.get_ident())

    def __exit__(self, *_: object) -> None:
        """Put it back, unless another body needs it still."""
        with self._lock:
            own = threading.get_ident()
            self._bodies.remove(own if own in self._bodies else self._bodies[0])
            if not self._bodies:
                self._changed.__exit__(None, None, None)

    def _leave_others(self) -> None:
        """End the bodies of other threads in a process that was forked, where these are not."""
        self._lock = threading.Lock()  # which one of them may have held
        before, own = self._bodies, threading.get_ident()
        self._bodies = [thread for thread in before if thread == own]
        if before and not self._bodies:
            self._changed.__exit__(None, None, None)


# The fused kernels of attention have neither second nor forward-mode derivatives.
PLAIN_ATTENTION = ProcessSetting(lambda: sdpa_kernel(SDPBackend.MATH))
