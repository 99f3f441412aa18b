"""Modules that take over for parameters which are used in no recognised way."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from sigeo.capture.samples.axis import Axis, Lost, mark, where
from sigeo.capture.samples.fallback import Fallback
from sigeo.capture.samples.functions import is_served, tensors_in
from sigeo.capture.samples.mode import in_backward
from sigeo.capture.samples.uses import Record, Use

if TYPE_CHECKING:
    from sigeo.capture.samples.session import Session


@dataclass
class Frame:
    """A module whose forward pass is running.

    Attributes:
        module: The module.
        args: It was called with.
        kwargs: It was called with.
        serial: Of the last use before it.
        fallback: Names of the parameters that it takes over for.
        buffers: What the pass may change and depend on, as spectral norm's; as it was before.
    """

    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    serial: int
    fallback: set[str] = field(default_factory=set)
    buffers: dict[str, Tensor] = field(default_factory=dict)


def compiled(modules: Sequence[tuple[str, nn.Module]]) -> list[nn.Module]:
    """Those that `torch.jit` compiled: what they call cannot be seen."""
    return [module for _, module in modules if isinstance(module, torch.jit.ScriptModule)]


def note_compiled(session: Session, module: nn.Module, inputs: Any, output: Any) -> None:
    """Note that a compiled module ran: its parameters, and samples it was given, are lost.

    Raises:
        InputError: It has a parameter that is measured, and the capture is strict.
    """
    tensors = tensors_in(output)
    if any(t.requires_grad for t in tensors):
        records = session.parameters.within(module).values()
        reason = (
            "its module was compiled by torch.jit.script or torch.jit.trace, whose calls cannot be "
            "seen; put the module that it was made from in its place"
        )
        session.cannot([record.name for record in records], reason)
    if any(where(t) is not None for t in tensors_in(inputs)):
        for tensor in tensors:
            mark(tensor, Lost("made by a module that torch.jit compiled"))


def owners(modules: Sequence[tuple[str, nn.Module]]) -> list[nn.Module]:
    """The modules that may have to take over for a parameter: it is in them or below them."""
    modules = [(n, m) for n, m in modules if not isinstance(m, torch.jit.ScriptModule)]
    names = {""}
    for name, module in modules:
        if module._parameters:
            while name not in names:
                names.add(name)
                name = name.rpartition(".")[0]
    return [module for name, module in modules if name in names and not is_served(module)]


def hand_over(session: Session, record: Record, function: str) -> None:
    """Choose the running module that takes over for a parameter which ``function`` used.

    Raises:
        InputError: There is none, and the capture is strict.
    """
    if in_backward():
        if record.name not in session.handed_over:
            reason = "checkpoint(..., use_reentrant=True) or the like hides its first forward pass"
            session.cannot([record.name], reason)
        return
    session.handed_over.add(record.name)
    if not _chosen(session, record):
        session.cannot([record.name], f"{function} uses it outside of its module's forward pass")


def _chosen(session: Session, record: Record) -> bool:
    """Hand a parameter over to the innermost running module that may take over, if there is one."""
    able = [
        frame
        for frame in reversed(session.frames)
        if any(p is record.parameter for p in frame.module.parameters())
        and any(isinstance(where(t), Axis) for t in tensors_in(frame.args, frame.kwargs))
    ]
    if not able:
        return False
    in_units = (frame for frame in able if _runs_in_units(frame, session.plan.samples))
    next(in_units, able[0]).fallback.add(record.name)
    session.watch(record)
    return True


def _runs_in_units(frame: Frame, samples: int) -> bool:
    """Whether a module's inputs can be cut into units.

    What is the same for all samples may still have been spread over them before, as an initial
    state of zeros is. A size that happens to be the batch's costs time, as a module further out
    is run then.
    """
    constants = [t for t in tensors_in(frame.args, frame.kwargs) if where(t) is None]
    return all(size % samples for t in constants for size in t.shape)


def take_over(session: Session, frame: Frame, output: Any) -> Any:
    """Let a module that has just run measure the parameters that were handed over to it.

    Returns:
        Its output, apart from what it is made of; None where it cannot take over.

    Raises:
        InputError: It cannot, and the capture is strict.
    """
    local = {
        name: record
        for name, record in session.parameters.within(frame.module).items()
        if record.name in frame.fallback
    }
    if any(t.requires_grad and where(t) is None for t in tensors_in(output)):
        # It also hands out what is the same for all samples, as a bias of positions that the next
        # layers take too: a module further out holds what is made of that.
        local = {name: record for name, record in local.items() if not _chosen(session, record)}
        if not local:
            return None
    output = _apart(output, tensors_in(frame.args, frame.kwargs))
    for record in local.values():
        for use in record.uses:
            use.replaced = use.serial > frame.serial
        record.uses = [use for use in record.uses if not use.replaced]
    for look_up in session.look_ups:
        if look_up.use.replaced and not session.plan.grads:
            look_up.use.record.partial = True
    coupled: list[nn.Module] = [
        m
        for m in frame.module.modules()
        if isinstance(m, nn.modules.batchnorm._BatchNorm) and (m.training or m.running_mean is None)
    ]
    if coupled and session.batch_norm == "contribution":
        reason = "its module runs again for each unit, and has batch norm on the whole batch"
        session.cannot([record.name for record in local.values()], reason)
        return None
    fallback = Fallback.of(
        frame.module, frame.args, frame.kwargs, output, local, session.plan, session.backward_begun
    )
    if isinstance(fallback, str):
        session.cannot([record.name for record in local.values()], fallback)
        return None
    held = sum(record.parameter.nbytes for record in local.values()) * session.plan.units
    if len(local) > 1 and session.held + held <= session.max_bytes // 2:
        fallback.holds = True
        session.held += held
    session.fallbacks.append(fallback)
    session.graph.account_for(
        tensors_in(output),
        tensors_in(frame.args, frame.kwargs),
        [record.parameter for record in local.values()],
    )
    fallback.buffers = frame.buffers
    fallback.frozen = coupled if session.batch_norm == "frozen" else []
    for name, record in local.items():
        session.serial += 1
        shape = tuple(record.parameter.shape)
        use = Use(record, None, shape, session.plan, session.serial, again=fallback)
        use.rows = lambda units, name=name: fallback.unit_gradients(name, units)
        record.uses.append(use)
    return output


def _apart(output: Any, inputs: Iterable[Tensor]) -> Any:
    """A module's outputs so that none is made of another, nor a view of what nobody else has.

    The gradient of each is then what comes from outside of the module, also if it is written to in
    place, which would make another function of a view.
    """
    with torch._C.DisableTorchFunction():
        several = sum(t.requires_grad for t in tensors_in(output)) > 1
        given = {id(_whole(tensor)) for tensor in inputs}

        def own(tensor: Tensor) -> Tensor:
            if not tensor.requires_grad or not (several or tensor._is_view()):
                return tensor
            if id(_whole(tensor)) not in given:
                other = tensor.clone()
            elif several:
                other = tensor.view_as(tensor)
            else:
                return tensor
            mark(other, where(tensor))
            return other

        return tree_map_only(Tensor, own, output)


def _whole(tensor: Tensor) -> Tensor:
    """What a tensor is a view of, if it is one."""
    return tensor if tensor._base is None else tensor._base
