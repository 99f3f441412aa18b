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
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode

from sigeo.capture.process_setting import ProcessSetting
from sigeo.capture.samples.functions import LOOKED_AT, name_of, tensors_in
from sigeo.errors import InputError

if TYPE_CHECKING:
    from sigeo.capture.samples.session import Session


_NOTHING = nullcontext()
_open: list[Mode] = []  # of all threads: whether there is more than one is all that is asked


class Mode(TorchFunctionMode):
    """Hands every call of the forward pass to a session."""

    def __init__(self, session: Session):
        """Not active before it is entered."""
        super().__init__()
        self._session = session
        self._waits = False

    def __torch_function__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is Tensor.backward:
            others = open_sessions()
            with torch._C.DisableTorchFunction():
                for session in (self._session, *others):
                    session.note_loss(args[0])
            _backward(self, *args, **(kwargs or {}))
            with torch._C.DisableTorchFunction():
                for session in (self._session, *others):
                    session.note_backward(args[0])
            return None
        # A backward pass runs with gradients only where it repeats a forward pass.
        backward = in_backward() and not torch.is_grad_enabled()
        name = func.__name__
        if self._waits or backward or self._session.finished or name in LOOKED_AT:
            return func(*args, **(kwargs or {}))
        if _transformed(args, kwargs):
            return func(*args, **(kwargs or {}))
        below = _below() if len(_open) > 1 else []
        if below and not self._in_charge(below, args, kwargs):
            return func(*args, **(kwargs or {}))  # which asks those below
        with _waiting(below) if below else _NOTHING:
            if name == "__get__":  # of a property; most are no tensors
                value = func(*args)
                if not isinstance(value, Tensor) or name_of(func) == ".grad":
                    return value  # a gradient is no function of its parameter's value
            return self._session.call(func, args, kwargs or {})

    def __enter__(self) -> Mode:
        """See calls from here on."""
        _open.append(self)
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *raised: Any) -> None:
        """See no more."""
        super().__exit__(*raised)  # type: ignore[no-untyped-call]
        _open.remove(self)

    def _in_charge(self, below: list[Mode], *arguments: Any) -> bool:
        """Whether this capture follows a call: that of the model which makes it does, alone.

        All note samples on the same tensors, and each knows the layers of its own model only.
        """
        session, others = self._session, [mode._session for mode in below]
        with torch._C.DisableTorchFunction():
            if session.owns(*arguments):
                return True
            if any(other.owns(*arguments) for other in others):
                return False
        return session.runs or not any(other.runs for other in others)


@contextmanager
def _waiting(modes: list[Mode]) -> Iterator[None]:
    """Captures that see nothing meanwhile.

    Yields:
        Once, when they wait.
    """
    modes = [mode for mode in modes if not mode._waits]
    for mode in modes:
        mode._waits = True
    try:
        yield
    finally:
        for mode in modes:
            mode._waits = False


_EAGER = ProcessSetting(lambda: torch.compiler.set_stance("force_eager"))


def eager() -> AbstractContextManager[Any]:
    """Compiled parts of the model run as they were written, so that their calls are seen."""
    if "torch._dynamo" not in sys.modules:  # nothing can be compiled
        return nullcontext()
    return _EAGER


def _modes() -> list[Mode]:
    """Those of captures in this thread, without the one that is at work."""
    modes = torch.overrides._get_current_function_mode_stack()
    return [mode for mode in modes if isinstance(mode, Mode)]


def _below() -> list[Mode]:
    """Those of captures in this thread that the one at work is opened in, and that still look."""
    return [mode for mode in _modes() if not mode._session.finished]


def open_sessions() -> list[Session]:
    """Those of this thread that have yet to measure their pass."""
    sessions = (mode._session for mode in _modes())
    return [s for s in sessions if s.plan.measures and not s.finished]


def check_apart(session: Session) -> None:
    """Check that no other open capture has parameters of this one: it would miss their calls.

    Raises:
        InputError: One has.
    """
    taken = {id(r.parameter) for other in open_sessions() for r in other.records.values()}
    shared = [r.name for r in session.records.values() if id(r.parameter) in taken]
    if shared:
        raise InputError(
            f"capture: parameter {shared[0]} is captured already, by a capture that has yet to "
            "measure its pass; end that one first, or capture one module that holds all models"
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


_transform = torch._C._functorch.peek_interpreter_stack  # looked up once: each call asks


def _transformed(*arguments: Any) -> bool:
    """Whether `torch.func` or forward-mode AD is at work on a call: its tensors show no memory."""
    if _transform() is not None:
        return True
    if forward_ad._current_level < 0:
        return False
    # The level may be another thread's: that it is at work here only tangents say, which nested
    # and sparse tensors have none of.
    with torch._C.DisableTorchFunction():
        return any(
            torch._VF._unpack_dual(tensor, level=0).tangent is not None
            for tensor in tensors_in(*arguments)
            if tensor.layout is torch.strided and not tensor.is_nested
        )


def in_backward() -> bool:
    """Whether autograd runs: what is called then repeats a forward pass."""
    return torch._C._current_graph_task_id() != -1
