"""Whatever is measured, the model comes back as it was."""

from __future__ import annotations

import contextlib
import itertools
import random
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sigeo.errors import InputError, check_kind


class RandomState:
    """The state of the random number generators that a forward pass may draw from."""

    def __init__(self, device: torch.device):
        """Take the state of Python's, NumPy's, torch's and the device's generator."""
        self._device = device
        self._python = random.getstate()
        self._numpy = np.random.get_state()
        self._torch = torch.get_rng_state()
        self._cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None

    def moved(self) -> bool:
        """Whether something was drawn since."""
        now = RandomState(self._device)
        before: Any = self._numpy  # a name, the block, the place in it, and what is left over
        after: Any = now._numpy
        numpy = np.array_equal(before[1], after[1]) and before[2:] == after[2:]
        cuda = self._cuda is None or now._cuda is None or torch.equal(self._cuda, now._cuda)
        host = self._python == now._python and torch.equal(self._torch, now._torch)
        return not (host and numpy and cuda)

    def restore(self) -> None:
        """Put it back."""
        random.setstate(self._python)
        np.random.set_state(self._numpy)
        torch.set_rng_state(self._torch)
        if self._cuda is not None:
            torch.cuda.set_rng_state(self._cuda, self._device)


class _Kept:
    """A buffer and its values."""

    def __init__(self, buffer: Tensor):
        self._buffer, self._values = buffer, buffer.detach().clone()

    def restored(self) -> Tensor:
        """The buffer with its old values."""
        sizes = zip(self._buffer.shape, self._buffer.stride(), strict=True)
        if not any(stride == 0 and size > 1 for size, stride in sizes):  # expanded: nobody writes
            self._buffer.copy_(self._values)
        return self._buffer


class Snapshot:
    """A copy of a model's buffers, its generators' state and, if asked, its parameters.

    Parameters that forward passes write to are always among them.
    """

    def __init__(self, model: nn.Module, *, parameters: bool):
        """Take the copy; `restore` may be called any number of times."""
        self._buffers = [
            (module, name, None if buffer is None else _Kept(buffer))
            for module in model.modules()
            for name, buffer in module._buffers.items()
        ]
        kept = model.parameters() if parameters else _written(model)
        self._parameters = [(p, p.detach().clone()) for p in kept]
        self._random = RandomState(device_of(model))

    def restore(self) -> None:
        """Put everything back in place."""
        with torch.no_grad():
            for module, name, kept in self._buffers:
                module._buffers[name] = None if kept is None else kept.restored()
            for parameter, value in self._parameters:
                parameter.copy_(value)
        self._random.restore()


def _written(model: nn.Module) -> list[Tensor]:
    """Parameters that a forward pass writes to: tables that bound the norms of their rows."""
    tables = (m for m in model.modules() if isinstance(m, (nn.Embedding, nn.EmbeddingBag)))
    return [table.weight for table in tables if table.max_norm is not None]


def device_of(model: nn.Module) -> torch.device:
    """The device of the model's first parameter or buffer; the CPU if it has neither."""
    tensors = itertools.chain(model.parameters(), model.buffers())  # no further than the first
    first = next(tensors, None)
    return torch.device("cpu") if first is None else first.device


def check_present(device: torch.device) -> None:
    """Check that a CUDA device is there; of others torch says so itself.

    Raises:
        InputError: It is not.
    """
    if device.type != "cuda":
        return  # not asked in vain: CUDA starts then, and serves no process forked from this one
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if (device.index or 0) >= found:
        raise InputError(f"device: {device} asked for, torch finds {found} CUDA devices")


def run_with(
    model: nn.Module,
    tensors: Mapping[str, Tensor],
    args: tuple[Any, ...],
    kwargs: dict[str, Any] | None = None,
) -> Any:
    """The model's output with other tensors in the place of parameters and buffers.

    As `torch.func.functional_call`, which takes tied ones by one of their names, but leaves its own
    tensors behind in a module that the model has at two places (torch 2.13).

    Args:
        model: Any module.
        tensors: By the names of ``named_parameters`` and ``named_buffers``.
        args: Of the model.
        kwargs: Of the model.
    """
    named = itertools.chain(model.named_parameters(), model.named_buffers())
    chosen = {id(own): tensors[name] for name, own in named if name in tensors}
    everywhere = {
        f"{prefix}.{name}" if prefix else name: chosen[id(own)]
        for prefix, module in model.named_modules()
        for name, own in (*module._parameters.items(), *module._buffers.items())
        if id(own) in chosen
    }
    return torch.func.functional_call(model, everywhere, args, kwargs, tie_weights=False)


@contextlib.contextmanager
def undistributed(model: nn.Module) -> Iterator[None]:
    """Let calls of a `DistributedDataParallel` wrapper be calls of the module inside.

    Its backward passes then reduce nothing over the processes, and its buffers stay its own.

    Args:
        model: The wrapper, a module that contains one, or any other.

    Yields:
        Once, when it is so.
    """
    wrappers: list[Any] = [
        m for m in model.modules() if isinstance(m, nn.parallel.DistributedDataParallel)
    ]
    for wrapper in wrappers:
        wrapper.forward = wrapper.module.__call__
    try:
        yield
    finally:
        for wrapper in wrappers:
            del wrapper.forward


@contextlib.contextmanager
def preserved(model: nn.Module, *, parameters: bool) -> Iterator[Snapshot]:
    """Restore the model on exit, also after an exception.

    Modes, gradients (set aside meanwhile), buffers and random states always; parameters if asked,
    for the price of a copy, and autocast then keeps no casts of them meanwhile.

    Args:
        model: Any module.
        parameters: Whether the body changes parameters.

    Yields:
        The snapshot, to go back to in between.
    """
    check_kind(model, nn.Module, "preserved: model")
    modes = [(module, module.training) for module in model.modules()]
    gradients = [(p, p.grad) for p in model.parameters()]
    snapshot = Snapshot(model, parameters=parameters)
    for parameter, _ in gradients:
        parameter.grad = None
    casts_kept = torch.is_autocast_cache_enabled()
    if parameters:  # casts that were made before would stand for what the parameters are by then
        torch.clear_autocast_cache()
        torch.set_autocast_cache_enabled(False)
    try:
        yield snapshot
    finally:
        torch.set_autocast_cache_enabled(casts_kept)
        for parameter, gradient in gradients:
            parameter.grad = gradient
        for module, mode in modes:
            if module.training != mode:  # setting attributes of modules takes its time
                module.training = mode
        snapshot.restore()
