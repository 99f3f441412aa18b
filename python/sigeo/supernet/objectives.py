"""What the paths of a step are trained to do: objectives of supernet training.

An objective is a function of (supernet, paths, batch, step) that adds gradients to the shared
weights' and returns the loss. One that keeps something between steps, or runs more passes than one
a path, is an `Objective`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from sigeo.errors import InputError
from sigeo.spaces import Supernet
from sigeo.supernet.many import add_gradients
from sigeo.supernet.settings import Batch

LossHook = Callable[[Supernet[Any], Sequence[Any], Batch, int], Tensor]
"""(supernet, paths, batch, step) to the loss, detached; gradients are added to the weights'."""


class Objective:
    """A `LossHook` that the training loop keeps in its checkpoints."""

    name = "objective"

    def __call__(
        self, supernet: Supernet[Any], paths: Sequence[Any], batch: Batch, step: int
    ) -> Tensor:
        """Add the gradients of a step; the loss, detached and not synchronised."""
        raise NotImplementedError

    def start(self, supernet: Supernet[Any]) -> None:
        """Called once before the first step, or before `resume`."""

    def forwards(self, paths: int) -> int:
        """Passes of the batch that only go forward in a step of so many paths."""
        return 0

    def memory(self) -> dict[str, Tensor]:
        """All that the next steps depend on, not copied."""
        return {}

    def resume(self, memory: dict[str, Tensor]) -> None:
        """Go on where `memory` was taken."""

    def describe(self) -> dict[str, Any]:
        """Name and settings, as JSON can hold them."""
        return {"name": self.name}


class CrossEntropy(Objective):
    """Every path on the labels."""

    name = "cross_entropy"

    def __init__(self, *, label_smoothing: float = 0.0, average: bool = False):
        """Set it up.

        Args:
            label_smoothing: Share of the target that is spread over all classes.
            average: Whether the paths' gradients are averaged rather than summed.

        Raises:
            InputError: The share is not from 0 to 1.
        """
        self.loss = smoothed_cross_entropy(label_smoothing)
        self.label_smoothing, self.average = label_smoothing, average

    def __call__(
        self, supernet: Supernet[Any], paths: Sequence[Any], batch: Batch, step: int
    ) -> Tensor:
        """Add the gradients of all paths; their mean loss."""
        inputs, labels = batch
        if len(paths) == 1:
            loss = self.loss(supernet(inputs, paths[0]), labels)
            loss.backward()
            return loss.detach()
        losses = add_gradients(
            supernet, paths, inputs, labels, loss_fn=self.loss, average=self.average
        )
        return losses.mean()

    def describe(self) -> dict[str, Any]:
        """Name and settings."""
        settings = {"label_smoothing": self.label_smoothing, "average": self.average}
        return {"name": self.name, **settings}


def smoothed_cross_entropy(label_smoothing: float) -> Callable[[Tensor, Tensor], Tensor]:
    """Cross-entropy (logits [B, classes], labels [B]) to the mean, with smoothed targets.

    Raises:
        InputError: The share is not from 0 to 1.
    """
    if not 0 <= label_smoothing <= 1:
        raise InputError(f"label_smoothing: must be from 0 to 1, got {label_smoothing}")
    return nn.CrossEntropyLoss(label_smoothing=label_smoothing)
