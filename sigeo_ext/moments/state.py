"""A running state over units whose number need not be known."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from sigeo_ext import moments
from sigeo_ext.moments.reference import OptionalTensorList, TensorList

_ROWS = 3
Keep = Literal["copy", "borrow", "own"]


class Moments:
    """Statistics of gradients that come one unit after another, in three times their memory.

    The first three units are kept as they come, which costs nothing; a fourth turns them into
    (A1, mean, M2), where they lie if they were handed over, and is added to it. `summary` can take
    the last unit along, so the usual four batches are read once and nothing is ever written.
    """

    def __init__(self, like: TensorList, *, dtype: torch.dtype = torch.float32) -> None:
        """Start with no unit.

        Args:
            like: One tensor a layer with the shape, memory order and device of its gradients.
            dtype: Of the state that the fourth unit makes, float32 or float64.

        Raises:
            ValueError: Another ``dtype``.
        """
        if dtype not in (torch.float32, torch.float64):
            raise ValueError(f"Moments: dtype must be float32 or float64, got {dtype}")
        self.count = 0
        self._like = [t.detach() for t in like]
        self._dtype = dtype
        self._rows: list[list[Tensor | None]] = []
        self._owned = True
        self._state: tuple[list[Tensor], list[Tensor], list[Tensor]] | None = None

    def add(self, grads: OptionalTensorList, *, keep: Keep = "copy") -> None:
        """Add a unit.

        Args:
            grads: One gradient a layer, None for zeros.
            keep: What becomes of the tensors. "copy": they stay the caller's, who may change them
                at once, even in place. "borrow": kept without a copy; neither side changes them.
                "own": handed over; kept without a copy, and overwritten later.

        Raises:
            ValueError: Not one gradient a layer.
        """
        if len(grads) != len(self._like):
            raise ValueError(
                f"Moments: grads must hold one tensor a layer, {len(self._like)}, got {len(grads)}"
            )
        if self._state is None and len(self._rows) < _ROWS:
            row = [None if g is None else g.detach() for g in grads]
            if keep == "copy":
                row = [None if g is None else g.clone() for g in row]
            self._rows.append(row)
            self._owned = self._owned and keep != "borrow"
        else:
            if self._state is None:
                self._state = self._fold()
            moments.update_(*self._state, grads, count=self.count)
        self.count += 1

    def summary(
        self, *, last: OptionalTensorList | None = None, weights: TensorList = (), ddof: int = 0
    ) -> moments.Summary:
        """Reduce to a few sums a layer, with the unit ``last`` taken in if given.

        Args:
            last: One more unit, which is not added to the state.
            weights: The layers' weights theta, for ``inner``.
            ddof: 0 for the population's standard deviation, 1 for the unbiased one.

        Raises:
            RuntimeError: ``ddof`` is not below the number of units.
        """
        pending = [] if last is None else [last]
        if self._state is None:
            return moments.rows_summary([*self._rows, *pending], weights=weights, ddof=ddof)
        grads = () if last is None else last
        return moments.summary(
            *self._state, count=self.count, grads=grads, weights=weights, ddof=ddof
        )

    def _fold(self) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        present = [[g for g in row if g is not None] for row in self._rows]
        if self._owned and all(
            len(row) == len(self._like) and all(g.dtype == self._dtype for g in row)
            for row in present
        ):
            moments.fold_rows_(*present)
            state = (present[0], present[1], present[2])
        else:
            state = (self._new_list(), self._new_list(), self._new_list())
            for count, row in enumerate(self._rows):
                moments.update_(*state, row, count=count)
        self._rows = []
        return state

    def _new_list(self) -> list[Tensor]:
        return [torch.empty_like(t, dtype=self._dtype) for t in self._like]
