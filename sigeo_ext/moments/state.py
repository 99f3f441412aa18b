"""A running state over units whose number need not be known."""

from __future__ import annotations

import collections
from typing import Literal, get_args

import torch
from torch import Tensor

from sigeo_ext import _check, moments
from sigeo_ext._kinds import named_arguments
from sigeo_ext._lists import OptionalTensorList, TensorList

_ROWS = 3
Keep = Literal["copy", "borrow", "own"]


class Moments:
    """Statistics of gradients that come one unit after another, in three times their memory.

    The first three units are kept as they come, which costs nothing; a fourth turns them into
    (A1, mean, M2), where they lie if they were handed over, and is added to it. `summary` can take
    the last unit along, so the usual four batches are read once and nothing is ever written.
    """

    @named_arguments("Moments")
    def __init__(self, like: TensorList, *, dtype: torch.dtype = torch.float32) -> None:
        """Start with no unit.

        Args:
            like: One tensor a layer with the shape, memory order and device of its gradients.
            dtype: Of the state that the fourth unit makes, float32 or float64.

        Raises:
            ValueError: Another ``dtype``.
            TypeError: One tensor in the place of a list.
        """
        if isinstance(like, Tensor):
            raise TypeError("Moments: like must be a list of tensors, got a tensor")
        if dtype not in (torch.float32, torch.float64):
            raise ValueError(f"Moments: dtype must be float32 or float64, got {dtype}")
        self.count = 0
        self._like = [t.detach() for t in like]
        self._dtype = dtype
        self._rows: list[list[Tensor | None]] = []
        self._owned = True
        self._state: tuple[list[Tensor], list[Tensor], list[Tensor]] | None = None

    @named_arguments("Moments")
    def add(self, grads: OptionalTensorList, *, keep: Keep = "copy") -> None:
        """Add a unit.

        Args:
            grads: One gradient a layer, None for zeros.
            keep: What becomes of the tensors. "copy": they stay the caller's, who may change them
                at once, even in place. "borrow": kept without a copy; neither side changes them.
                "own": handed over; kept without a copy, and overwritten later.

        Raises:
            ValueError: Not one gradient a layer, one of another shape or device, a sparse one, or
                another ``keep``.
        """
        self._check("grads", grads)
        if keep not in get_args(Keep):
            raise ValueError(f"Moments: keep must be one of {get_args(Keep)}, got {keep!r}")
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

    @named_arguments("Moments")
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
            ValueError: ``last`` as in `add`.
        """
        if last is not None:
            self._check("last", last)
        pending = [] if last is None else [last]
        if self._state is None:
            return moments.rows_summary([*self._rows, *pending], weights=weights, ddof=ddof)
        grads = () if last is None else last
        return moments.summary(
            *self._state, count=self.count, grads=grads, weights=weights, ddof=ddof
        )

    def _check(self, name: str, grads: OptionalTensorList) -> None:
        layers = len(self._like)
        if len(grads) != layers:
            raise ValueError(
                f"Moments: {name} must hold one tensor a layer, {layers}, got {len(grads)}"
            )
        for index, (grad, like) in enumerate(zip(grads, self._like, strict=True)):
            if grad is not None and (grad.shape != like.shape or grad.device != like.device):
                if not isinstance(grad, Tensor):  # an array has both, too
                    place, got = f"{name}[{index}]", type(grad).__name__
                    raise TypeError(f"Moments: {place} must be a tensor or None, got {got}")
                raise ValueError(
                    f"Moments: {name}[{index}] must be {list(like.shape)} on {like.device}, "
                    f"got {list(grad.shape)} on {grad.device}"
                )
            if grad is not None and grad.layout is not torch.strided:
                raise ValueError(
                    f"Moments: {name}[{index}] must be a dense tensor, got a {grad.layout} one"
                )

    def _fold(self) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """The state of the three units, in their own memory layer by layer where that can be."""
        mine = self._own_layers()
        rows = [[row[layer] for layer in mine] for row in self._rows]
        moments.fold_rows_(rows[0], rows[1], rows[2])  # type: ignore[arg-type]
        state: tuple[list[Tensor], list[Tensor], list[Tensor]] = ([], [], [])
        folded = dict(zip(mine, zip(*rows, strict=True), strict=True))
        for layer, like in enumerate(self._like):
            values = folded.get(layer) or self._added(layer, like)
            for row in self._rows:
                row[layer] = None  # freed before the next layer takes memory
            for values_of, value in zip(state, values, strict=True):
                values_of.append(value)
        self._rows = []
        return state

    def _added(self, layer: int, like: Tensor) -> tuple[Tensor, ...]:
        """The state of one layer in new memory."""
        values = tuple(torch.empty_like(like, dtype=self._dtype) for _ in range(3))
        for count, row in enumerate(self._rows):
            moments.update_(values[:1], values[1:2], values[2:], [row[layer]], count=count)
        return values

    def _own_layers(self) -> list[int]:
        """The layers whose three gradients are ours to overwrite, and fit for it."""
        if not self._owned:
            return []
        uses = collections.Counter(g.data_ptr() for row in self._rows for g in row if g is not None)

        def fits(gradients: list[Tensor | None]) -> bool:
            present = [g for g in gradients if g is not None]
            return len(present) == _ROWS and all(
                g.dtype == self._dtype
                and _check.is_dense(g)
                and _check.memory_order(g) == _check.memory_order(present[0])
                # One tensor may be the gradient of two layers.
                and (uses[g.data_ptr()] == 1 or g.numel() == 0)
                for g in present
            )

        layers = range(len(self._like))
        return [layer for layer in layers if fits([row[layer] for row in self._rows])]
