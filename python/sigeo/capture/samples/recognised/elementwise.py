"""Parameters that are multiplied with, added to or joined with what the samples have."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from sigeo.capture.samples import scaled
from sigeo.capture.samples.axis import Axis, mark
from sigeo.capture.samples.parameters import note_copy
from sigeo.capture.samples.recognised.registry import HANDLERS, Handler, handles, run
from sigeo.capture.samples.uses import View

if TYPE_CHECKING:
    from sigeo.capture.samples.session import Session


@handles(torch.mul, Tensor.mul, Tensor.__mul__, Tensor.__rmul__)
def _times(session: Session, input: Any, other: Any) -> Any:
    a, b = _before_expansion(session, input, other)
    x, parameter = (a, b) if session.parameters.is_parameter(b) else (b, a)
    if not session.parameters.is_parameter(parameter) or not isinstance(x, Tensor):
        return NotImplemented
    return _elementwise(session, torch.mul, x, weight=parameter)


def _before_expansion(session: Session, a: Any, b: Any) -> tuple[Any, Any]:
    """A pair of which one may be a parameter that was expanded to the other's shape."""
    if not (isinstance(a, Tensor) and isinstance(b, Tensor) and a.shape == b.shape):
        return a, b
    before = session.parameters.before_expansion(b)
    if before is not None:
        return a, before
    before = session.parameters.before_expansion(a)
    return (a if before is None else before), b


def _adds(function: Any, sign: float) -> Handler:
    def handler(session: Session, input: Any, other: Any, **named: Any) -> Any:
        a, b = _before_expansion(session, input, other)
        x, parameter = (a, b) if session.parameters.is_parameter(b) else (b, a)
        if named or not session.parameters.is_parameter(parameter) or not isinstance(x, Tensor):
            return NotImplemented
        if sign < 0 and parameter is a:
            return NotImplemented
        return _elementwise(session, function, x, sign=sign, bias=parameter)

    return handler


for _add in (torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__):
    HANDLERS[_add] = _adds(torch.add, 1.0)
for _sub in (torch.sub, Tensor.sub, Tensor.__sub__):
    HANDLERS[_sub] = _adds(torch.sub, -1.0)


@handles(torch.cat)
def _cat(session: Session, tensors: Any, dim: int = 0, **named: Any) -> Any:
    """A parameter that is expanded to all samples, a class token say, becomes theirs first."""
    spread = [session.parameters.before_expansion(t) for t in tensors]
    places = [session.where(t) for t, p in zip(tensors, spread, strict=True) if p is None]
    axis = next((place for place in places if isinstance(place, Axis)), None)
    along = axis is not None and any(
        p is not None and dim % t.dim() == axis.dim for t, p in zip(tensors, spread, strict=True)
    )
    if named or axis is None or along or all(p is None for p in spread):
        return NotImplemented
    joined = []
    for tensor, parameter in zip(tensors, spread, strict=True):
        whole = tensor
        if parameter is not None:
            zeros = torch.zeros_like(tensor)
            mark(zeros, axis)
            whole = _elementwise(session, torch.add, zeros, bias=parameter)
            if whole is NotImplemented:
                return NotImplemented
        joined.append(whole)
    return session.foreign(torch.cat, (joined, dim), {})


@handles(Tensor.repeat)
def _repeat(session: Session, input: Tensor, *sizes: Any, **named: Any) -> Any:
    """A parameter that is repeated where it has one entry, a class token say, is expanded."""
    found = session.parameters.resolve(input)
    counts = sizes[0] if len(sizes) == 1 and not isinstance(sizes[0], int) else sizes
    plain = isinstance(counts, (tuple, list)) and all(isinstance(n, int) for n in counts)
    if named or found is None or not plain or len(counts) < input.dim():
        return NotImplemented
    record, view = found
    shape = [1] * (len(counts) - input.dim()) + list(input.shape)
    if any(n != 1 and count != 1 for n, count in zip(shape, counts, strict=True)):
        return NotImplemented
    output = input.repeat(*sizes)
    strides = input.stride() if view is None else view.stride
    own = [1] * (len(counts) - input.dim()) + list(strides)
    steps = [0 if count > 1 else step for step, count in zip(own, counts, strict=True)]
    mark(output, None)
    offset = 0 if view is None else view.offset
    note_copy(output, record.parameter, View(tuple(output.shape), tuple(steps), offset))
    session.graph.copied(output)
    return output


def _elementwise(
    session: Session, function: Any, x: Tensor, sign: float = 1.0, **parameter: Tensor
) -> Any:
    (p,) = parameter.values()
    axis = session.where(x)
    spread = isinstance(axis, Axis) and (
        axis.dim < x.dim() - p.dim() or p.shape[axis.dim - x.dim() + p.dim()] == 1
    )
    # NumPy's: torch's imports a computer algebra system (35 MiB) for it.
    grown = np.broadcast_shapes(x.shape, p.shape) != x.shape
    if not spread or grown or not x.is_floating_point():
        return NotImplemented
    assert isinstance(axis, Axis)
    call = scaled.Elementwise(axis, session.parameters.uses(**parameter), sign)
    return run(session, call, x, parameter.get("weight"), parameter.get("bias"), axis)
