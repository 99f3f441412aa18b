"""Which torch functions are recognised, and how their calls are run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sigeo.capture.samples.axis import Where, is_constant, mark
from sigeo.capture.samples.calls import Call, Layer

if TYPE_CHECKING:
    from sigeo.capture.samples.session import Session
    from sigeo.capture.samples.uses import Use


Handler = Callable[..., Any]
HANDLERS: dict[Any, Handler] = {}
"""Torch function to handler: it gets the session and the function's arguments, and returns the
output, or NotImplemented where no parameter that is measured takes part."""


def handles(*functions: Any) -> Callable[[Handler], Handler]:
    """Make a function the handler of torch functions."""

    def enter(handler: Handler) -> Handler:
        for function in functions:
            HANDLERS[function] = handler
        return handler

    return enter


def plain(uses: Mapping[str, Use], **arguments: Tensor | None) -> bool:
    """Whether all arguments that are no parameters are the same for all samples, and stay so.

    A computed one has gradients, and one made of the batch mixes its samples: neither is a call's.
    """
    return all(name in uses or is_constant(tensor) for name, tensor in arguments.items())


_apply = super(torch.autograd.Function, Layer).apply


def run(
    session: Session, call: Call, x: Tensor, weight: Tensor | None, bias: Tensor | None, out: Where
) -> Tensor:
    """Run a call whose uses are known, and note where its output's samples are."""
    session.register(call.uses.values())
    # `Function.apply` looks for the wrappers of functorch in each call: 10 microseconds.
    apply = Layer.apply if torch._C._are_functorch_transforms_active() else _apply
    y: Tensor = apply(call, x, weight, bias)  # type: ignore[no-untyped-call]
    mark(y, out)
    return y
