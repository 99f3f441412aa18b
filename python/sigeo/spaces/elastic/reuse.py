"""Values that several subnets compute from equal weights and equal inputs, computed once.

Only forward: an output that another subnet has computed stands in for the call, and backward the
call does with the subnet's own input and weight what it would have done.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode


class Reuse:
    """The convolutions of one pass over several subnets."""

    def __init__(self, counts: Mapping[int, int]):
        """Nothing is known yet.

        Args:
            counts: How many subnets have the value of a number.
        """
        self._counts = counts
        self._known: dict[int, list[Tensor]] = {}

    @contextlib.contextmanager
    def piece(self, number: int) -> Iterator[None]:
        """Compute a piece of a network, or take over what was computed for its number.

        Args:
            number: Of the piece's value.

        Yields:
            Once, to run the piece.
        """
        if self._counts[number] == 1:
            yield
        elif number in self._known:
            with _Given(self._known[number]):
                yield
        else:
            kept = self._known[number] = []
            with _Kept(kept):
                yield


class _Kept(TorchFunctionMode):
    """Keeps the outputs of convolutions, in the order of the calls."""

    def __init__(self, kept: list[Tensor]):
        self._kept = kept

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        if func is F.conv2d:
            self._kept.append(output.detach())
        return output


class _Given(TorchFunctionMode):
    """Takes the outputs of convolutions from those that were kept."""

    def __init__(self, kept: Sequence[Tensor]):
        self._kept = iter(kept)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is not F.conv2d:
            return func(*args, **(kwargs or {}))
        x, weight, bias, stride, padding, dilation, groups = args
        geometry = (list(stride), list(padding), list(dilation), False, [0, 0], groups)
        with torch._C.DisableTorchFunction():
            return _apply(x, weight, bias, next(self._kept), geometry)


class _Convolution(torch.autograd.Function):
    """A convolution whose output is known."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, output: Tensor, geometry: Any
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.geometry, ctx.outputs = geometry, None if bias is None else [len(bias)]
        return output.detach()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        found = torch.ops.aten.convolution_backward(
            gradients[0], x, weight, ctx.outputs, *ctx.geometry, ctx.needs_input_grad[:3]
        )
        return (*found, None, None)


_apply: Callable[..., Tensor] = _Convolution.apply
