"""Networks without memory: on the device "meta", of layers without values."""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from functools import lru_cache
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

L = TypeVar("L", bound=nn.Module)
P = ParamSpec("P")

_KEPT = 1024
"""Layers that are kept to be copied, of a few kilobytes each."""

_inside: ContextVar[bool] = ContextVar("inside", default=False)


@contextlib.contextmanager
def without_memory() -> Iterator[None]:
    """Modules that are made inside are on the device "meta", and nothing is drawn for them.

    Yields:
        Once, when it is so.
    """
    before = _inside.set(True)
    try:
        with torch.device("meta"), _Undrawn():
            yield
    finally:
        _inside.reset(before)


def layer_of(kind: Callable[P, L], *sizes: P.args, **settings: P.kwargs) -> L:
    """``kind(*sizes, **settings)``; inside `without_memory` a copy of the first one of its kind.

    Networks of a space have few different layers, and a copy takes a tenth of the time. In a
    `TorchDispatchMode`, whose tensors may be its own, as fake ones are, nothing is copied.

    Args:
        kind: A class of modules that consist of parameters and buffers.
        *sizes: What it is made with, hashable.
        **settings: Likewise.
    """
    if not _inside.get() or torch._C._len_torch_dispatch_stack():
        return kind(*sizes, **settings)
    first: L = _first(kind, torch.get_default_dtype(), *sizes, **settings)
    made: L = object.__new__(type(first))
    made.__dict__ = {name: _apart(value) for name, value in vars(first).items()}
    for name, value in first._parameters.items():
        made._parameters[name] = None if value is None else nn.Parameter(value)
    for name, buffer in first._buffers.items():
        made._buffers[name] = None if buffer is None else buffer.detach()
    return made


def _made(kind: Callable[..., L], dtype: torch.dtype, *sizes: Any, **settings: Any) -> L:
    """A layer to be copied; ``dtype``, the default one, is what its parameters have."""
    with torch.inference_mode(False):
        return kind(*sizes, **settings)


_first: Callable[..., Any] = lru_cache(_KEPT, typed=True)(_made)


def _apart(value: Any) -> Any:
    """A container as a module has it for itself, of hooks for example; else the value."""
    if type(value) not in (dict, list, OrderedDict, set):
        return value
    return value.copy() if value else type(value)()


class _Undrawn(TorchFunctionMode):
    """Layers get no initial values: on "meta" there are none, but it takes most of the time."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        given = kwargs or {}
        if func in _FILLING or getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else given["tensor"]
        return func(*args, **given)


_FILLING = (Tensor.uniform_, Tensor.normal_, Tensor.fill_, Tensor.zero_)
