"""Per-sample gradients of a module that uses a parameter in a way no kernel knows.

The module is run once more for every unit, on the unit's own inputs, and differentiated with the
unit's own share of the outputs' gradients. Slow, and right as long as the module is deterministic
and treats samples apart: what it then gives must be what it gave for the batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from sigeo.capture.samples.axis import Axis, Lost, where
from sigeo.capture.samples.precision import ROUNDINGS, Autocast, Recorded, largest, tolerance
from sigeo.capture.samples.uses import Plan, Record
from sigeo.capture.state import RandomState, device_of, run_with
from sigeo.errors import lacks_memory

_RUNS = 5  # in which another thread may draw random numbers, one after another


class CannotRunAgain(Exception):
    """A module's second run would not be what the first was; the text says why."""


@dataclass
class Fallback:
    """One call of a module.

    Attributes:
        module: The module.
        inputs: Flat (args, kwargs), tensors detached.
        places: Where the samples of each are; None where it is the same for all.
        spec: How they were nested.
        output_places: Where the samples of each differentiable output are, by its place among the
            outputs.
        output_gradients: Their gradients, once the backward pass has come by.
        recorded: What they were when the module had just run.
        allowed: How far rounding may move what a second run gives; see `tolerance`.
        autocast: As it was then.
        names: Parameters by the module's own names.
        plan: What is measured.
        begun: Told when the backward pass comes by.
        buffers: As the call found them, where they may have changed in it.
        frozen: Batch norms that take running statistics.
        versions: Of the inputs at the call: autograd's count of changes in place.
        holds: Whether one run for a unit serves all parameters, those that are not asked for yet
            being held; else there is one for each, in less memory.
        held: Gradients of parameters by name and unit.
    """

    module: nn.Module
    inputs: list[Any]
    places: list[Axis | None]
    spec: Any
    output_places: dict[int, Axis]
    output_gradients: dict[int, Tensor]
    recorded: dict[int, Recorded]
    allowed: float
    autocast: Autocast
    names: tuple[str, ...]
    plan: Plan
    begun: Callable[[], None]
    buffers: dict[str, Tensor] = field(default_factory=dict)
    frozen: list[nn.Module] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)
    holds: bool = False
    held: dict[tuple[str, int], Tensor] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        module: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        output: Any,
        parameters: Mapping[str, Record],
        plan: Plan,
        begun: Callable[[], None],
    ) -> Fallback | str:
        """The fallback of a call that has just been made, or why there is none."""
        flat, spec = tree_flatten((args, kwargs))
        places: list[Axis | None] = []
        for leaf in flat:
            place = where(leaf) if isinstance(leaf, Tensor) else None
            if isinstance(place, Lost):
                return place.reason
            places.append(place)
        outputs = {
            index: leaf
            for index, leaf in enumerate(tree_leaves(output))
            if isinstance(leaf, Tensor) and leaf.requires_grad
        }
        output_places = {}
        for index, tensor in outputs.items():
            place = where(tensor)
            if not isinstance(place, Axis):
                return place.reason if place else "its module's output is the same for all samples"
            output_places[index] = place
        kept = [leaf.detach() if isinstance(leaf, Tensor) else leaf for leaf in flat]
        names = tuple(parameters)
        autocast = Autocast(device_of(module))
        took_part = [*module.parameters(), *(leaf for leaf in kept if isinstance(leaf, Tensor))]
        allowed = tolerance([*took_part, *outputs.values()], autocast)
        with torch._C.DisableTorchFunction():
            recorded = {index: Recorded(tensor, allowed) for index, tensor in outputs.items()}
        made = cls(
            module, kept, places, spec, output_places, {}, recorded, allowed, autocast, names,
            plan, begun,
        )  # fmt: skip
        made.versions = [leaf._version for leaf in kept if isinstance(leaf, Tensor)]
        for index, tensor in outputs.items():
            made._listen(index, tensor)
        return made

    def _listen(self, index: int, output: Tensor) -> None:
        """Note the gradient of an output as the module gets it, after hooks of the tensor."""
        node, place = output.grad_fn, output.output_nr
        if node is None:
            output.register_hook(lambda g: self._note(index, g))
        else:
            node.register_prehook(lambda gradients: self._note(index, gradients[place]))

    def _note(self, index: int, gradient: Tensor | None) -> None:
        if gradient is None:
            return
        self.begun()
        before = self.output_gradients.get(index)
        self.output_gradients[index] = gradient if before is None else before + gradient

    def unit_gradients(self, name: str, units: slice) -> Tensor:
        """The units' gradients of one parameter [units, *shape]."""
        rows = []
        with _attributes_kept(self.module):
            for unit in range(units.start, units.stop):
                row = self.held.pop((name, unit), None)
                if row is None:
                    found = self._of_unit(unit)
                    row = found.pop(name)
                    if self.holds:
                        self.held.update(((other, unit), g) for other, g in found.items())
                rows.append(row)
        return torch.stack(rows)

    def _of_unit(self, unit: int) -> dict[str, Tensor]:
        if self.versions != [x._version for x in self.inputs if isinstance(x, Tensor)]:
            raise CannotRunAgain(
                f"{self._named} runs again for each unit, and its input was modified in place "
                "meanwhile"
            )
        first = unit * self.plan.unit
        pick = range(first, first + self.plan.unit)
        parameters = dict(self.module.named_parameters())
        leaves = {n: parameters[n].detach().requires_grad_() for n in self.names}
        inputs = [
            value if place is None else _rows(value, place, pick)
            for value, place in zip(self.inputs, self.places, strict=True)
        ]
        output = self._run(inputs, leaves) if unit else self._run_without_draws(inputs, leaves)
        outputs = tree_leaves(output)
        self._compare(outputs, pick)
        pairs = [
            (outputs[index], _rows(g, self.output_places[index], pick))
            for index, g in self.output_gradients.items()
            if outputs[index].requires_grad  # else it is one of the inputs
        ]
        if not pairs:
            return {n: torch.zeros_like(p) for n, p in leaves.items()}
        gradients = torch.autograd.grad(
            [t for t, _ in pairs], list(leaves.values()), [g for _, g in pairs], allow_unused=True
        )
        return {
            n: torch.zeros_like(leaves[n]) if g is None else g
            for n, g in zip(leaves, gradients, strict=True)
        }

    def _run_without_draws(self, inputs: list[Any], leaves: Mapping[str, Tensor]) -> Any:
        """The output of a run that drew no random numbers.

        The generators are those of all threads: another one may draw, but hardly in every run.

        Raises:
            CannotRunAgain: There is no such run.
        """
        device = device_of(self.module)
        begin = before = RandomState(device)
        for _ in range(_RUNS):
            output = self._run(inputs, leaves)
            if not before.moved():
                return output
            before = RandomState(device)
        begin.restore()
        raise CannotRunAgain(
            f"{self._named} runs again for each unit, and would draw other random numbers"
        )

    def _run(self, inputs: list[Any], leaves: Mapping[str, Tensor]) -> Any:
        args, kwargs = tree_unflatten(inputs, self.spec)
        buffers = {**dict(self.module.named_buffers()), **self.buffers}
        own = {n: b.clone() for n, b in buffers.items()}  # the module's do not move again
        try:
            with torch.enable_grad(), _evaluated(self.frozen), self.autocast.again():
                return run_with(self.module, {**own, **leaves}, args, kwargs)
        except Exception as error:  # whatever a module may not like about one unit alone
            if lacks_memory(error):
                raise
            raise CannotRunAgain(
                f"{self._named} runs again for each unit, and fails on one alone "
                f"({_line_of(error)})"
            ) from error

    def _compare(self, outputs: list[Any], pick: range) -> None:
        """Compare what a unit gave alone with what the batch gave for it.

        Raises:
            CannotRunAgain: It is something else.
        """
        for index in self.output_gradients:  # no others take part
            recorded = self.recorded[index]
            batch = _rows(recorded.value, self.output_places[index], pick)
            if index >= len(outputs) or not recorded.agrees(outputs[index], batch, self.inputs):
                raise CannotRunAgain(
                    f"{self._named} runs again for each unit, and gives a unit alone another "
                    "output than in the batch: it goes by places in the batch, or by what earlier "
                    "calls left behind"
                )

    def rounding(self) -> float:
        """How much of a gradient may be rounding where its terms cancel out."""
        gradients = self.output_gradients.values()
        norm = math.sqrt(sum(float(g.double().square().sum()) for g in gradients))
        values = (*self.inputs, *(recorded.value for recorded in self.recorded.values()))
        return ROUNDINGS * self.allowed**2 * norm * largest(values)

    @property
    def _named(self) -> str:
        return f"its module ({type(self.module).__name__})"


def _line_of(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


@contextmanager
def _evaluated(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Modules in eval mode that were in train mode."""
    for module in modules:
        module.training = False
    try:
        yield
    finally:
        for module in modules:
            module.training = True


@contextmanager
def _attributes_kept(module: nn.Module) -> Iterator[None]:
    """What modules keep of a forward pass, attention maps say, stays that of the batch.

    Yields:
        Once, when it is noted.
    """
    before = [(vars(m), dict(vars(m))) for m in module.modules()]
    try:
        yield
    finally:
        for attributes, kept in before:
            for name in attributes.keys() - kept.keys():
                del attributes[name]
            attributes.update(kept)


def _rows(tensor: Tensor, axis: Axis, pick: range) -> Tensor:
    """Some samples of a tensor, as a smaller batch of the same kind."""
    shape = list(tensor.shape)
    split = tensor.reshape(
        *shape[: axis.dim], axis.outer, axis.samples, axis.inner, *shape[axis.dim + 1 :]
    )
    some = split.narrow(axis.dim + 1, pick.start, len(pick))
    return some.reshape(*shape[: axis.dim], -1, *shape[axis.dim + 1 :])
