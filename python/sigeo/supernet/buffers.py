"""Running statistics and other buffers that a pass must not change."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn


@contextlib.contextmanager
def kept_buffers(module: nn.Module) -> Iterator[None]:
    """Give a module's buffers their values back on exit.

    Args:
        module: Any module.

    Yields:
        Once, when the values are kept.
    """
    buffers = [(buffer, buffer.clone()) for buffer in module.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)
