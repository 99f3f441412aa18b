"""Follows the samples through what one function call is made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from sigeo.capture.samples.axis import Lost, Where, where
from sigeo.capture.samples.axis_rules import follow
from sigeo.capture.samples.functions import leaves, tensors_in


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

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run one operation and note where the samples of its results are."""
        result = func(*args, **(kwargs or {}))
        found = follow(func, args, kwargs or {}, result, self.of)
        for leaf, axis in zip(leaves(result), found, strict=True):
            if isinstance(leaf, Tensor):
                self._known[_key(leaf)] = axis
        return result

    def note(self, tensor: Tensor, place: Where) -> None:
        """Note what another way of following found."""
        self._known[_key(tensor)] = place

    def of(self, tensor: Tensor) -> Where:
        """Where the samples of a tensor are that the call was given or has made."""
        return self._known.get(_key(tensor))

    def of_result(self, tensor: Tensor) -> Where:
        """The same of something that the call returned, which must have been seen."""
        return self._known.get(_key(tensor), Lost("it was made where nothing could be followed"))


def _key(tensor: Tensor) -> Any:
    # Not the object: autograd hands out another one for a view than the operation made.
    shape, stride = tensor.shape, tensor.stride()
    if 1 in shape:  # the stride of a dimension of one entry means nothing
        stride = tuple(step if size > 1 else 0 for size, step in zip(shape, stride, strict=True))
    return tensor.untyped_storage()._cdata, tensor.storage_offset(), shape, stride
