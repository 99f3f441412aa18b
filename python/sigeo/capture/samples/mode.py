"""How a capture sees torch's functions as they are called."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from sigeo.capture.samples.functions import LOOKED_AT
from sigeo.errors import InputError

if TYPE_CHECKING:
    from sigeo.capture.samples.session import Session


class Mode(TorchFunctionMode):
    """Hands every call of the forward pass to a session."""

    def __init__(self, session: Session):
        """Not active before it is entered."""
        super().__init__()
        self._session = session

    def __torch_function__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is Tensor.backward:
            _backward(self, *args, **(kwargs or {}))
            return self._session.note_backward(args[0])
        # A backward pass runs with gradients only where it repeats a forward pass.
        backward = in_backward() and not torch.is_grad_enabled()
        name = func.__name__
        if backward or self._session.finished or name in LOOKED_AT:
            return func(*args, **(kwargs or {}))
        if name == "__get__":  # of a property; most are no tensors
            value = func(*args)
            if not isinstance(value, Tensor):
                return value
        return self._session.call(func, args, kwargs or {})


def eager() -> AbstractContextManager[Any]:
    """Compiled parts of the model run as they were written, so that their calls are seen."""
    if "torch._dynamo" not in sys.modules:  # nothing can be compiled
        return nullcontext()
    stance: AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return stance


def check_alone() -> None:
    """Check that no capture is open in this thread, but such as have measured their pass.

    Two would take each other's calls and mark the same tensors.

    Raises:
        InputError: There is one.
    """
    modes = torch.overrides._get_current_function_mode_stack()
    if any(isinstance(mode, Mode) and not mode._session.finished for mode in modes):
        raise InputError(
            "capture: expected one at a time, got one in the body of another; end the other first, "
            "or capture one module that holds both models"
        )


def _backward(
    mode: Mode,
    tensor: Tensor,
    gradient: Tensor | None = None,
    retain_graph: bool | None = None,
    create_graph: bool = False,
    inputs: Any = None,
) -> None:
    """``tensor.backward(...)``, which itself would ask the mode once more."""
    keep = create_graph if retain_graph is None else retain_graph
    gradient = torch.ones_like(tensor) if gradient is None else gradient
    with mode:  # a checkpointed forward pass is repeated inside, and seen as the first was
        torch.autograd.graph._engine_run_backward(
            (tensor,),
            (gradient,),
            keep,
            create_graph,
            (inputs,) if isinstance(inputs, Tensor) else tuple(inputs or ()),
            allow_unreachable=True,
            accumulate_grad=True,
        )


LINEAR = F.linear  # another function may have its name while attention is seen through
_lock = threading.Lock()
_linear_of_thread: dict[int, Callable[..., Tensor]] = {}


@contextmanager
def linear_is(function: Callable[..., Tensor]) -> Iterator[None]:
    """Let ``F.linear``, as composite functions look it up, be another one in this thread.

    Yields:
        Once, when it is.
    """
    thread = threading.get_ident()
    with _lock:
        before = _linear_of_thread.get(thread)
        _linear_of_thread[thread] = function
        F.linear = _linear
    try:
        yield
    finally:
        with _lock:
            if before is not None:
                _linear_of_thread[thread] = before
            else:
                del _linear_of_thread[thread]
            if not _linear_of_thread:
                F.linear = LINEAR


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    function = _linear_of_thread.get(threading.get_ident(), LINEAR)
    return function(input, weight, bias)


def in_backward() -> bool:
    """Whether autograd runs: what is called then repeats a forward pass."""
    return torch._C._current_graph_task_id() != -1
