"""Linear layers, and matrix products with a parameter."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sigeo.capture.samples import calls
from sigeo.capture.samples.axis import Axis
from sigeo.capture.samples.mode import LINEAR
from sigeo.capture.samples.recognised.registry import handles, plain, run

if TYPE_CHECKING:
    from sigeo.capture.samples.session import Session


@handles(F.linear)
def _linear(session: Session, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Any:
    uses = session.parameters.uses(weight=weight, bias=bias)
    if not uses or weight.dim() != 2 or input.dim() < 2:
        return NotImplemented
    if not plain(uses, weight=weight, bias=bias):
        return NotImplemented
    axis = session.where(input)
    if not isinstance(axis, Axis) or axis.dim == input.dim() - 1:
        return session.foreign(LINEAR, (input, weight, bias), {})
    return run(session, calls.Linear(axis, uses), input, weight, bias, axis)


@handles(torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.mm, Tensor.mm)
def _matmul(session: Session, input: Tensor, other: Any = None, **named: Any) -> Any:
    """``x @ W`` with a parameter is a linear layer with the weight W^T."""
    if named or not session.parameters.is_parameter(other) or other.dim() != 2 or input.dim() < 2:
        return NotImplemented
    return _linear(session, input, other.t())


@handles(torch.addmm, Tensor.addmm)
def _addmm(session: Session, *given: Any, **named: Any) -> Any:
    """``b + x @ W`` with a parameter W is a linear layer with the weight W^T and the bias b."""
    if named or len(given) != 3 or not session.parameters.is_parameter(given[2]):
        return NotImplemented
    bias, input, weight = given
    if input.dim() != 2 or bias.shape != weight.shape[1:]:
        return NotImplemented
    return _linear(session, input, weight.t(), bias)
