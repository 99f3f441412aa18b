"""Convolutions and transposed convolutions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sigeo.capture.samples import calls
from sigeo.capture.samples.axis import Axis, is_constant, mark
from sigeo.capture.samples.recognised.registry import HANDLERS, Handler, plain, run

if TYPE_CHECKING:
    from sigeo.capture.samples.session import Session


def _convolve(function: Any, dims: int, transposed: bool) -> Handler:
    def handler(
        session: Session,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        *rest: Any,
        **named: Any,
    ) -> Any:
        defaults = {"output_padding": 0, "groups": 1, "dilation": 1}
        names = list(defaults) if transposed else ["dilation", "groups"]
        options = defaults | dict(zip(names, rest, strict=False)) | named
        uses = session.parameters.uses(weight=weight, bias=bias)
        if not uses and weight is not input and is_constant(weight, bias):
            axis = session.where(input)
            if isinstance(axis, Axis) and axis.dim == 0 and input.dim() == dims + 2:
                output: Tensor = function(input, weight, bias, stride, padding, *rest, **named)
                mark(output, axis)
                return output
        if not uses or input.dim() != dims + 2 or not plain(uses, weight=weight, bias=bias):
            return NotImplemented
        axis = session.where(input)
        if not isinstance(axis, Axis) or axis.dim != 0:
            given = (input, weight, bias, stride, padding, *rest)
            return session.foreign(function, given, named)
        dilation = _each(options["dilation"], dims)
        if isinstance(padding, str):
            input, padding = _padded(input, axis, padding, weight.shape[2:], dilation)
        call = calls.Convolution(
            axis,
            uses,
            function,
            _each(stride, dims),
            _each(padding, dims),
            dilation,
            options["groups"],
            transposed,
            _each(options["output_padding"], dims),
        )
        return run(session, call, input, weight, bias, axis)

    return handler


def _each(value: Any, dims: int) -> list[int]:
    return [value] * dims if isinstance(value, int) else list(value) * (dims // len(value))


def _padded(
    x: Tensor, axis: Axis, padding: str, kernel: Any, dilation: list[int]
) -> tuple[Tensor, list[int]]:
    """The input and the padding that "valid" or "same" stand for."""
    if padding == "valid":
        return x, [0] * len(dilation)
    total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    if any(t % 2 for t in total):  # one more behind, which a layer's padding cannot say
        sides = [side for t in reversed(total) for side in (0, t % 2)]
        x = F.pad(x, sides)
        mark(x, axis)
    return x, [t // 2 for t in total]


_FUNCTIONS = {
    (1, False): torch.conv1d,
    (2, False): torch.conv2d,
    (3, False): torch.conv3d,
    (1, True): torch.conv_transpose1d,
    (2, True): torch.conv_transpose2d,
    (3, True): torch.conv_transpose3d,
}
for (_dims, _transposed), _function in _FUNCTIONS.items():
    HANDLERS[_function] = _convolve(_function, _dims, _transposed)
