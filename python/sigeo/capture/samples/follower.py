"""Follows the samples through what one function call is made of."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from sigeo.capture.samples.axis import Axis, Lost, Where, where
from sigeo.capture.samples.axis_rules import follow
from sigeo.capture.samples.functions import leaves, tensors_in

# Operations that store a tensor as it is, which argument that is: no index, no mask.
_STORED = {"aten::copy_": 1, "aten::index_put_": 2, "aten::_index_put_impl_": 2}


class Follower(TorchDispatchMode):
    """Follows the axis through all the aten operations of one call."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """No: torch would import its compiler (70 MiB) just to keep it away from here."""
        return False  # and a capture runs nothing compiled

    def __init__(self, arguments: Any):
        """Start from what is noted on the tensors among the arguments."""
        super().__init__()  # type: ignore[no-untyped-call]
        self._known: dict[Any, Where] = {_key(t): where(t) for t in tensors_in(arguments)}
        self._writes: list[tuple[Tensor, Axis | Lost]] = []

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run one operation and note where the samples of its results are."""
        before = self.of(args[0]) if _writes_first(func) else None
        given = args
        if torch.Tag.inplace_view in func.tags:  # its rule asks for the shape before
            given = (torch.ops.aten.alias.default(args[0]), *args[1:])
        result = func(*args, **(kwargs or {}))
        found = follow(func, given, kwargs or {}, result, self.of)
        for leaf, axis in zip(leaves(result), found, strict=True):
            if isinstance(leaf, Tensor):
                self._known[_key(leaf)] = axis
        place = found[0] if _writes_first(func) else None
        if place is not None and moved(before, place) and self._stores_samples(func, args):
            self._writes.append((args[0], place))
        return result

    def _stores_samples(self, func: Any, args: tuple[Any, ...]) -> bool:
        """Whether samples are among what an operation writes to its first argument."""
        stored = _STORED.get(func._schema.name)
        if stored is None:
            return takes_samples(args[1:], self.of)
        return self.of(args[stored]) is not None  # tokens are samples as well

    def writes_to(self, tensor: Tensor) -> list[tuple[Tensor, Axis | Lost]]:
        """The parts of a tensor that samples were written to, and where they now are in them."""
        memory = _memory(tensor)
        return [(part, at) for part, at in self._writes if _memory(part) == memory]

    def note(self, tensor: Tensor, place: Where) -> None:
        """Note what another way of following found."""
        self._known[_key(tensor)] = place

    def of(self, tensor: Tensor) -> Where:
        """Where the samples of a tensor are that the call was given or has made."""
        return self._known.get(_key(tensor))

    def of_result(self, tensor: Tensor) -> Where:
        """The same of something that the call returned, which must have been seen."""
        return self._known.get(_key(tensor), Lost("it was made where nothing could be followed"))


@functools.cache
def _writes_first(func: Any) -> bool:
    """Whether an operation writes to its first argument, and returns it."""
    arguments, results = func._schema.arguments, func._schema.returns
    alias = arguments[0].alias_info if arguments and results else None
    return alias is not None and bool(alias.is_write)


def moved(before: Where, after: Where) -> bool:
    """Whether the samples in what was written to may be others than before."""
    return isinstance(after, Lost) or after != before


def takes_samples(values: Any, of: Callable[[Tensor], Where]) -> bool:
    """Whether samples are among what is written; indices and masks have no gradients."""
    return any(t.is_floating_point() and of(t) is not None for t in tensors_in(values))


def _key(tensor: Tensor) -> Any:
    if not _is_one_piece(tensor):  # a view of nothing
        return _memory(tensor)
    # Not the object: autograd hands out another one for a view than the operation made.
    shape, stride = tensor.shape, tensor.stride()
    if 1 in shape:  # the stride of a dimension of one entry means nothing
        stride = tuple(step if size > 1 else 0 for size, step in zip(shape, stride, strict=True))
    return _memory(tensor), tensor.storage_offset(), shape, stride


def _memory(tensor: Tensor) -> Any:
    """What tensors that show the same memory have in common; one of several pieces has its own."""
    return tensor.untyped_storage()._cdata if _is_one_piece(tensor) else id(tensor)


def _is_one_piece(tensor: Tensor) -> bool:
    """Whether strides say where its entries are, unlike those of sparse and nested tensors."""
    return tensor.layout is torch.strided and not tensor.is_nested
