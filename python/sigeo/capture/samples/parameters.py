"""The parameters of a model, found again among the arguments of calls."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from sigeo.capture.layers import Selection, check_made, select
from sigeo.capture.samples.uses import Plan, Record, Use, View
from sigeo.errors import InputError


class Parameters:
    """The trainable parameters of a model during one pass.

    Attributes:
        records: By name.
    """

    def __init__(self, model: nn.Module, params: Selection, plan: Plan):
        """Those that ``params`` selects are measured.

        Raises:
            InputError: A lazy layer has not been run, or nothing that is trained is selected.
        """
        named = list(model.named_parameters())
        check_made(named)
        measured = None if params == "all" else select(model, params)
        self.records = {
            name: Record(name, p, measured is None or name in measured)
            for name, p in named
            if p.requires_grad
        }
        if params == "layers" and not any(r.measured for r in self.records.values()):
            raise InputError(
                'params: "layers" expects a convolution or linear weight that is trained, and '
                "requires_grad is False for all of them"
            )
        self._by_id = {id(r.parameter): r for r in self.records.values()}
        self._plan = plan

    def replaced(self, modules: Iterable[tuple[str, nn.Module]]) -> list[str]:
        """The parameters in whose place a module now has another tensor that gets gradients."""
        others = (
            f"{prefix}.{name}" if prefix else name
            for prefix, module in modules
            for name, tensor in module._parameters.items()
            if id(tensor) not in self._by_id and tensor is not None and tensor.requires_grad
        )
        return [name for name in others if name in self.records]

    def within(self, module: nn.Module) -> dict[str, Record]:
        """Those of a module, by its own names."""
        named = ((name, self._by_id.get(id(p))) for name, p in module.named_parameters())
        return {name: record for name, record in named if record is not None}

    def resolve(self, tensor: Any) -> tuple[Record, View | None] | None:
        """The parameter that something is, or is a view of, and the part that the view shows."""
        if not isinstance(tensor, Tensor):
            return None
        record = self._by_id.get(id(tensor))
        if record is not None:
            return record, None
        base = tensor._base
        record = None if base is None else self._by_id.get(id(base))
        if record is None or not tensor.requires_grad:
            return None
        assert base is not None
        offset = int(tensor.storage_offset()) - int(base.storage_offset())
        # The stride of a dimension of one entry means nothing, 0 among others.
        strides = [s if n > 1 else 1 for n, s in zip(tensor.shape, tensor.stride(), strict=True)]
        return record, View(tuple(tensor.shape), tuple(strides), offset)

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
        for dim, stride in enumerate(found[1].stride):
            if stride == 0:
                first = first.narrow(dim, 0, 1)
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
