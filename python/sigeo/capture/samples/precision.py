"""Whether a module that ran again gave what it had given, but for rounding."""

from __future__ import annotations

import math
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

# Of products of float32 matrices where that was allowed, and on a GPU, whose convolutions take
# TF32 unless told otherwise.
_ROUNDED = {"highest": 0.0, "high": 2.0**-10, "medium": 2.0**-7}

ROUNDINGS = 8  # of the terms of a sum that cancels out, where nothing else tells its size


class Autocast:
    """What autocast did on a device at some moment."""

    def __init__(self, device: torch.device):
        """As it is now."""
        self.device = device
        known = torch.amp.is_autocast_available(device.type)
        self.dtype = torch.get_autocast_dtype(device.type) if known else None
        self.on = known and torch.is_autocast_enabled(device.type)

    def again(self) -> AbstractContextManager[Any]:
        """The same once more."""
        if self.dtype is None:
            return nullcontext()
        return torch.autocast(self.device.type, self.dtype, enabled=self.on)


def tolerance(tensors: Iterable[Tensor], autocast: Autocast) -> float:
    """How far two runs may be apart, as a share of the largest value: rounding stays well below.

    It is the root of the unit roundoff, of float32 at least: a model in float64 may do some of its
    work in float32, and batches of other sizes take other kernels.
    """
    dtypes = {t.dtype for t in tensors if t.is_floating_point() or t.is_complex()}
    if autocast.on and autocast.dtype is not None:
        dtypes.add(autocast.dtype)
    roundoff: float = max(torch.finfo(dtype).eps for dtype in {torch.float32, *dtypes})
    products = _ROUNDED[torch.get_float32_matmul_precision()]
    if autocast.device.type != "cpu":
        products = max(products, _ROUNDED["high"])
    return math.sqrt(max(roundoff, products))


def largest(tensors: Iterable[Any]) -> float:
    """The largest finite value of some tensors; 1 at least."""
    sizes = [
        float(t.detach().abs().nan_to_num(0.0, 0.0).max())
        for t in tensors
        if isinstance(t, Tensor) and t.numel() and (t.is_floating_point() or t.is_complex())
    ]
    return max([1.0, *sizes])


class Recorded:
    """An output of a module as it was, whatever is written to it later."""

    def __init__(self, output: Tensor, allowed: float):
        """Keep a copy; ``allowed`` is a `tolerance`."""
        self.value = output.detach().clone()
        self._allowed = allowed
        self._scale: float | None = None

    def agrees(self, again: Any, before: Tensor, inputs: Iterable[Any]) -> bool:
        """Whether a second output is what some rows of this one were, made of some inputs."""
        if not isinstance(again, Tensor) or again.shape != before.shape:
            return False
        again = again.detach()
        if again.dtype == before.dtype and torch.equal(again, before):
            return True
        if self._scale is None:  # what cancels out leaves the rounding of what it was made of
            own = float(self.value.abs().nan_to_num(0.0, 0.0).max())
            self._scale = self._allowed * own + ROUNDINGS * self._allowed**2 * largest(inputs)
        apart = again - before
        if bool(apart.abs().max() <= self._scale):  # not so with NaN
            return True
        same = (again == before) | (again.isnan() & before.isnan())
        apart = apart.masked_fill(same, 0.0)
        if bool(apart.abs().max() <= self._scale):
            return True
        # Where values are rounded to a grid, single ones may fall on the other side.
        whole = before.nan_to_num(0.0, 0.0, 0.0).flatten()
        return bool(apart.flatten().norm() <= self._allowed * whole.norm())
