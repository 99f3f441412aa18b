"""Which rows of a tensor belong to which sample, followed from the inputs and never guessed.

Of each tensor that a model makes from a batch, `Axis` says where the samples are. It is carried
through every operation by that operation's own rule: from shapes and arguments, not from a size
that happens to equal the batch's. Rules are those of aten, the small set of operations that
everything else is made of; what has no rule loses the axis, with its name as the reason.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from sigeo.errors import InputError

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

UNSEEN = Lost("it was made by something not followed, such as a custom or a scripted function")


def mark(tensor: Tensor, where: Where) -> None:
    """Note where the samples are."""
    setattr(tensor, _NAME, where)


def noted(tensor: Tensor) -> bool:
    """Whether something was noted, be it that the tensor is the same for every sample."""
    return hasattr(tensor, _NAME)


def mark_inputs(tensors: Sequence[Tensor], dim: int = 0) -> int:
    """Note where the samples are in what a model is given, and say how many there are.

    Raises:
        InputError: There is not one number of them, there are none, or a tensor is nested.
    """
    if any(t.is_nested for t in tensors):
        raise InputError("inputs: expected tensors whose samples have one shape, got a nested one")
    sizes = {t.shape[dim] for t in tensors if t.dim() > dim}
    if len(sizes) != 1:
        raise InputError(
            f"inputs: expected one number of samples in dimension {dim}, "
            f"got {sorted(sizes) or 'no tensor that has one'}"
        )
    (samples,) = sizes
    if samples == 0:
        raise InputError("inputs: expected at least one sample, got none")
    for tensor in tensors:
        mark(tensor, Axis(dim, samples) if tensor.dim() > dim else None)
    return int(samples)


def forget(tensors: Iterable[Tensor]) -> None:
    """Take back what was noted on tensors that outlive the pass, such as buffers."""
    for tensor in tensors:
        if noted(tensor):
            delattr(tensor, _NAME)


def where(tensor: Tensor) -> Where:
    """What was noted; a constant if nothing was and gradients flow to constants at most."""
    found: Where = getattr(tensor, _NAME, None)
    known = found is not None or noted(tensor)
    if known or not tensor.requires_grad or tensor.is_leaf or _of_constants(tensor.grad_fn):
        return found
    return UNSEEN


def is_constant(*tensors: Tensor | None) -> bool:
    """Whether tensors are the same for all samples and made of no parameter."""
    return all(t is None or (where(t) is None and not t.requires_grad) for t in tensors)


def written(tensor: Tensor, place: Axis | Lost) -> None:
    """Note that samples were written to a tensor, and where they are in it if others are there."""
    before = getattr(tensor, _NAME, None)
    if isinstance(place, Axis) and before not in (None, place):
        place = Lost("samples were written to places of others")
    mark(tensor, place)


def leaf_behind(node: Any) -> Tensor | None:
    """What a node of autograd's graph hands gradients to by nothing but functions of one tensor."""
    while node is not None and type(node).__name__ != "AccumulateGrad":
        node = node.next_functions[0][0] if len(node.next_functions) == 1 else None
    return None if node is None else node.variable


def _of_constants(node: Any) -> bool:
    """Whether a function was given leaves alone that are the same for every sample."""
    leaves = [leaf_behind(source) for source, _ in node.next_functions]
    return bool(leaves) and all(leaf is not None and where(leaf) is None for leaf in leaves)


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
