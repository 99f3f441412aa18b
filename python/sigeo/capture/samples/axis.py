"""Which rows of a tensor belong to which sample, followed from the inputs and never guessed.

Of each tensor that a model makes from a batch, `Axis` says where the samples are. It is carried
through every operation by that operation's own rule: from shapes and arguments, not from a size
that happens to equal the batch's. Rules are those of aten, the small set of operations that
everything else is made of; what has no rule loses the axis, with its name as the reason.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

_NAME = "_sigeo_axis"


@dataclass(frozen=True)
class Axis:
    """The samples lie in one dimension, perhaps with other things.

    Index i of dimension ``dim`` belongs to sample ``i // inner % samples``; the dimension has
    ``outer * samples * inner`` entries.
    """

    dim: int
    samples: int
    outer: int = 1
    inner: int = 1

    @property
    def alone(self) -> bool:
        """Whether the dimension holds nothing but the samples."""
        return self.outer == 1 and self.inner == 1

    def at(self, dim: int) -> Axis:
        """The same in another dimension."""
        return self if dim == self.dim else Axis(dim, self.samples, self.outer, self.inner)


@dataclass(frozen=True)
class Lost:
    """The samples are mixed, or nobody knows where they are."""

    reason: str


Where = Axis | Lost | None
"""None: the same for every sample."""


def mark(tensor: Tensor, where: Where) -> None:
    """Note where the samples are."""
    setattr(tensor, _NAME, where)


def where(tensor: Tensor) -> Where:
    """What was noted; a constant if nothing was and no gradient flows."""
    found: Where = getattr(tensor, _NAME, None)
    if found is None and tensor.requires_grad and not tensor.is_leaf and not hasattr(tensor, _NAME):
        return Lost("it was made by something that is not followed, such as a custom function")
    return found


def samples_first(tensor: Tensor, axis: Axis) -> Tensor:
    """The tensor as [samples, other entries of that dimension, the other dimensions ...].

    For an axis that is alone in dimension 0 that is the tensor itself with a dimension of one.
    """
    if axis.dim == 0 and axis.alone:
        return tensor.unsqueeze(1)
    shape = list(tensor.shape)
    split = [axis.outer, axis.samples, axis.inner]
    parts = tensor.reshape(*shape[: axis.dim], *split, *shape[axis.dim + 1 :])
    parts = parts.movedim(axis.dim + 1, 0)  # [samples, ..., outer, inner, ...]
    return parts.movedim((axis.dim + 1, axis.dim + 2), (1, 2)).flatten(1, 2)
