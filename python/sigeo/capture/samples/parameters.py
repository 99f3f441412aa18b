"""The parameters of a model, found again among the arguments of calls."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor, nn

from sigeo.capture.layers import Selection, check_made, select
from sigeo.capture.samples.uses import Plan, Record, Use, View

_COPIED = "_sigeo_copied"


def note_copy(tensor: Tensor, parameter: Tensor, view: View) -> None:
    """Note that a tensor is a copy of a view of a parameter, as long as nobody writes to it."""
    setattr(tensor, _COPIED, (parameter, view))


def copy_of(tensor: Tensor) -> tuple[Tensor, View] | None:
    """What a tensor is a copy of, in its own shape or with other dimensions of one entry."""
    found: tuple[Tensor, View] | None = getattr(tensor, _COPIED, None)
    if found is not None:
        return found if tensor._version == 0 else None
    base = tensor._base
    found = None if base is None else getattr(base, _COPIED, None)
    if found is None or tensor._version or not tensor.is_contiguous():
        return None
    parameter, view = found
    steps = [(n, step) for n, step in zip(view.size, view.stride, strict=True) if n != 1]
    if [n for n in tensor.shape if n != 1] != [n for n, _ in steps]:
        return None
    rest = iter(steps)
    strides = tuple(1 if n == 1 else next(rest)[1] for n in tensor.shape)
    return parameter, View(tuple(tensor.shape), strides, view.offset)


class Parameters:
    """The trainable parameters of a model during one pass.

    Attributes:
        records: By name.
        complex: Names of those that are; nothing is known of their uses.
    """

    def __init__(
        self,
        model: nn.Module,
        named: Sequence[tuple[str, nn.Parameter]],
        params: Selection,
        plan: Plan,
    ):
        """Those that ``params`` selects are measured, of the model's named parameters.

        Raises:
            InputError: A lazy layer has not been run, or there is nothing to select.
        """
        check_made(named)
        measured = None if params == "all" else select(model, params)
        self.records = {
            name: Record(name, p, measured is None or name in measured)
            for name, p in named
            if p.requires_grad
        }
        self.complex = [name for name, r in self.records.items() if r.parameter.is_complex()]
        self._by_id = {
            id(r.parameter): r for name, r in self.records.items() if name not in self.complex
        }
        self._plan = plan

    def replaced(self, modules: Iterable[tuple[str, nn.Module]]) -> list[str]:
        """The parameters in whose place a module now has another tensor that gets gradients."""
        others = (
            f"{prefix}.{name}" if prefix else name
            for prefix, module in modules
            for name, tensor in module._parameters.items()
            if id(tensor) not in self._by_id and tensor is not None and tensor.requires_grad
        )
        return [name for name in others if name in self.records and name not in self.complex]

    def within(self, module: nn.Module) -> dict[str, Record]:
        """Those of a module, by its own names."""
        named = ((name, self._by_id.get(id(p))) for name, p in module.named_parameters())
        return {name: record for name, record in named if record is not None}

    def resolve(self, tensor: Any) -> tuple[Record, View | None] | None:
        """The parameter that something is, shows or is a copy of, and which part of it."""
        if not isinstance(tensor, Tensor):
            return None
        record = self._by_id.get(id(tensor))
        if record is not None:
            return record, None
        copied = copy_of(tensor)
        if copied is not None:
            record = self._by_id.get(id(copied[0]))
            return None if record is None else (record, copied[1])
        base = tensor._base
        record = None if base is None else self._by_id.get(id(base))
        if record is None or not tensor.requires_grad:
            return None
        assert base is not None
        offset = int(tensor.storage_offset()) - int(base.storage_offset())
        # The stride of a dimension of one entry means nothing, 0 among others.
        strides = [s if n > 1 else 1 for n, s in zip(tensor.shape, tensor.stride(), strict=True)]
        return record, View(tuple(tensor.shape), tuple(strides), offset)

    def only_shown(self, record: Record, tensor: Tensor) -> bool:
        """Whether a tensor is nothing but the parameter, or a part of it, in another shape."""
        if tensor is record.parameter or tensor._base is record.parameter:
            return True
        copied = copy_of(tensor)
        return copied is not None and copied[0] is record.parameter

    def is_parameter(self, tensor: Any) -> bool:
        """Whether a tensor is a measured parameter, or a view of one that shows no entry twice."""
        found = self.resolve(tensor)
        if found is None:
            return False
        return found[1] is None or found[1].fits(found[0].parameter)

    def before_expansion(self, tensor: Any) -> Tensor | None:
        """The view of a parameter that was expanded to this one, if it was: broadcasts to it."""
        found = self.resolve(tensor)
        if found is None or found[1] is None or 0 not in found[1].stride:
            return None
        first: Tensor = tensor
        view = found[1]
        for dim, stride in enumerate(view.stride):
            if stride == 0:
                first = first.narrow(dim, 0, 1)
        if copy_of(tensor) is not None:
            strides = [s or 1 for s in view.stride]
            note_copy(
                first, found[0].parameter, View(tuple(first.shape), tuple(strides), view.offset)
            )
        return first

    def uses(self, **arguments: Tensor | None) -> dict[str, Use]:
        """The measured parameters among the arguments; not noted before `Session.register`."""
        found: dict[str, Use] = {}
        for name, tensor in arguments.items():
            place = self.resolve(tensor)
            if tensor is None or place is None:
                continue
            record, view = place
            if view is None or view.fits(record.parameter):
                found[name] = Use(record, view, tuple(tensor.shape), self._plan)
        return found
