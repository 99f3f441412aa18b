"""The rectifiers of a network: what each of their calls in a forward pass is given."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

from sigeo.capture.batches import call
from sigeo.capture.samples.axis import (
    Axis,
    forget,
    mark,
    mark_inputs,
    noted,
    samples_first,
    where,
)
from sigeo.capture.samples.following import followed
from sigeo.capture.samples.functions import LOOKED_AT, tensors_in
from sigeo.capture.samples.mode import eager
from sigeo.capture.samples.takeover import compiled
from sigeo.capture.state import preserved, undistributed
from sigeo.errors import InputError
from sigeo.kinds import named_arguments

_RECTIFIERS = {
    F.relu, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_,
    F.relu6,
    F.leaky_relu, F.leaky_relu_,
    F.prelu, torch.prelu, Tensor.prelu,
    F.rrelu, F.rrelu_, torch.rrelu, torch.rrelu_,
}  # fmt: skip
"""Functions of pieces that are linear, with a kink at 0: those whose names end in ReLU."""


@named_arguments("rectifier_inputs")
def rectifier_inputs(model: nn.Module, inputs: Any, see: Callable[[Tensor], None]) -> bool:
    """Run a model in train mode, without gradients, and show what each call of a rectifier gets.

    The model runs in full: modules with an attribute ``abridged`` have it False meanwhile, which
    else leave out what has no effect or compute once what is there several times.

    Rectifiers are ReLU, ReLU6, LeakyReLU, PReLU and RReLU as modules and as functions, in place or
    not, however often each is called; also Hardtanh from 0, which ReLU6 is. Those inside a fused
    recurrent layer (``nn.RNN``) are not seen. The model comes back as it was, with its buffers and
    random states, and the inputs as well.

    Args:
        model: Any module.
        inputs: Of one batch, as `Batches` gives them; samples lie in dimension 0.
        see: Called with ``[samples, ...]``, before the rectifier is. Which dimension the samples
            lie in is followed from the inputs. Not called for what is the same for every sample,
            such as a rectified parameter.

    Returns:
        Whether all that was shown is finite.

    Raises:
        InputError: Inputs without one number of samples, a rectifier for which it is not known
            where its samples are, or a module that `torch.jit` compiled.
    """
    hidden = compiled(list(model.named_modules()))
    if hidden:
        raise InputError(
            f"model: the activations of a {type(hidden[0]).__name__} cannot be seen, as torch.jit "
            "compiled it; put the module that it was made from in its place"
        )
    batch = tree_map_only(Tensor, Tensor.clone, inputs)
    constants = [*model.parameters(), *model.buffers()]
    mark_inputs(tensors_in(batch))
    watch = _Watch(see)
    try:
        for tensor in constants:
            mark(tensor, None)
        with (
            preserved(model, parameters=False),
            torch.no_grad(),
            undistributed(model),
            eager(),
            _in_full(model),
            watch,
        ):
            model.train()
            call(model, batch)
    finally:
        forget(constants)
    return watch.finite


@contextmanager
def _in_full(model: nn.Module) -> Iterator[None]:
    """Modules that have the choice run all that they stand for.

    Yields:
        Once, when they do.
    """
    modules: list[Any] = [m for m in model.modules() if getattr(m, "abridged", False) is True]
    for module in modules:
        module.abridged = False
    try:
        yield
    finally:
        for module in modules:
            module.abridged = True


class _Watch(TorchFunctionMode):
    """Follows the samples through all calls and shows what the rectifiers among them get."""

    def __init__(self, see: Callable[[Tensor], None]):
        super().__init__()
        self._see = see
        self.finite = True

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        named, name = kwargs or {}, func.__name__
        if name in LOOKED_AT:
            return func(*args, **named)
        if name == "__get__":  # of a property; most are no tensors
            value = func(*args)
            if not isinstance(value, Tensor):
                return value
        given = tensors_in(*args, *named.values())
        if func in (F.batch_norm, torch.batch_norm):  # mixes samples, and keeps each in its place
            output = func(*args, **named)
            mark(output, where(named.get("input", given[0])))
            return output
        if func in _RECTIFIERS or (func is F.hardtanh and _from_zero(*args, **named)):
            self._show(named.get("input", given[0]), name)
        constant = all(noted(t) and where(t) is None for t in given)
        output = followed(func, args, named, given)
        if constant:  # without gradients nothing else tells them from what is not followed
            for tensor in tensors_in(output):
                mark(tensor, None)
        return output

    def _show(self, tensor: Tensor, name: str) -> None:
        place = where(tensor)
        if isinstance(place, Axis):
            self.finite = self.finite and bool(tensor.isfinite().all())
            self._see(samples_first(tensor, place))
        elif place is not None or not noted(tensor):
            reason = "what made it is not followed" if place is None else place.reason
            raise InputError(
                f"model: it is not known where the samples are in what a {name} of shape "
                f"{list(tensor.shape)} gets: {reason}"
            )


def _from_zero(
    input: Tensor, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False
) -> bool:
    """Whether a Hardtanh is a ReLU with an upper bound."""
    return min_val == 0
