"""What elastic layers share: a choice, selections of their dimensions, and extraction."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from sigeo.errors import InputError, described
from sigeo.kinds import is_of, named_arguments
from sigeo_ext.gather import slices
from sigeo_ext.gather.slices import Selection

T = TypeVar("T", bound="Elastic")


class Elastic(nn.Module):
    """A layer that holds the weights of its largest form and runs a selection of them.

    `select` sets the choice with which the layer runs from then on, and ``layer(x, **choice)`` runs
    with another one. A choice has a selection for each of the layer's `dimensions`; one that is
    left out means everything. `sigeo_ext.gather.slices` says what selections are.

    Attributes:
        masked: Whether the layer runs at full width, with zeros where an output is not selected.
        accumulate: Whether gradients of large weights may be added to an existing ``.grad`` in
            place, without a tensor of the super-weight's size.
        maskable: Whether the kind of layer has a masked mode.
    """

    dimensions: tuple[str, ...] = ()
    masked: bool = False
    accumulate: bool = False
    maskable: bool = True
    _choice: Mapping[str, Any] = MappingProxyType({})

    def select(self: T, **choice: Any) -> T:
        """Run with this choice from now on, in the place of an earlier one.

        Args:
            **choice: A selection for each of some dimensions; the others are used whole.

        Raises:
            ValueError: A dimension that the layer does not have, or a selection that it has not.
        """
        self._require(self._checked(choice))
        self._choice = choice
        return self

    def extra_repr(self) -> str:
        """What torch's layer says of itself, and the choice."""
        said = super().extra_repr()
        chosen = ", ".join(f"{name}={value}" for name, value in self._choice.items())
        return ", ".join(part for part in (said, chosen) if part)

    @property
    def choice(self) -> dict[str, Any]:
        """The current choice."""
        return dict(self._choice)

    def extract(self, **choice: Any) -> nn.Module:
        """The plain module that a choice amounts to, with weights of its own.

        Args:
            **choice: Instead of the current choice.

        Raises:
            ValueError: The layer has hooks, which the plain module would lack; or a choice that it
                does not have.
        """
        refuse_hooks(self, "extract")
        given = self._current(choice)
        self._require(given)
        module = self._plain(given)
        _tie([(self, module)])
        return module.train(self.training)

    def _plain(self, choice: dict[str, Any]) -> nn.Module:
        raise NotImplementedError

    def _sizes(self) -> dict[str, int]:
        """How many places each dimension has."""
        raise NotImplementedError

    def _require(self, choice: Mapping[str, Any]) -> None:
        """Refuse selections that the layer would not run.

        Raises:
            ValueError: There is one.
        """
        try:
            for name, size in self._sizes().items():
                slices.check_selection(type(self).__name__, name, choice.get(name), size)
        except RuntimeError as error:
            raise ValueError(str(error)) from None

    def _current(self, choice: dict[str, Any]) -> dict[str, Any]:
        """The choice to run, with an entry for each dimension."""
        given = self._checked(choice) if choice else self._choice
        return {name: given.get(name) for name in self.dimensions}

    def _checked(self, choice: dict[str, Any]) -> dict[str, Any]:
        for name in choice:
            if name not in self.dimensions:
                known = ", ".join(self.dimensions)
                raise ValueError(f"{type(self).__name__}: a choice must be of {known}, got {name}")
        return choice


@named_arguments("configure")
def configure(
    model: nn.Module, *, masked: bool | None = None, accumulate: bool | None = None
) -> None:
    """Set the mode of all elastic layers of a model.

    Args:
        model: Any module.
        masked: As of `Elastic`; None leaves it.
        accumulate: As of `Elastic`; None leaves it.

    Raises:
        InputError: A mode is no bool.
        ValueError: Masked mode for a kind of layer that has none.
    """
    for name, mode in (("masked", masked), ("accumulate", accumulate)):
        if not is_of(mode, bool | None):
            raise InputError(
                f"configure: {name} must be True, False or None, got {described(mode)}"
            )
    layers = [module for module in model.modules() if isinstance(module, Elastic)]
    for module in layers:
        if masked and not module.maskable:
            raise ValueError(f"masked: {type(module).__name__} has no masked mode")
    for module in layers:
        module.masked = module.masked if masked is None else masked
        module.accumulate = module.accumulate if accumulate is None else accumulate


@named_arguments("extract")
def extract(model: nn.Module) -> nn.Module:
    """A copy of a model in which each elastic layer is the plain module of its current choice.

    Parameters that several modules share stay shared.

    Args:
        model: Any module; its own code must not depend on the layers' being elastic.

    Raises:
        ValueError: A layer has hooks, or choices take different parts of a shared parameter.
    """
    if isinstance(model, Elastic):
        return model.extract()
    layers = list(_outermost(model))
    plain = [layer.extract() for layer in layers]
    copies: dict[int, Any] = {id(layer): made for layer, made in zip(layers, plain, strict=True)}
    shared = _tie(zip(layers, plain, strict=True))
    for parameter in _outside(model):
        if id(parameter) in shared and shared[id(parameter)].shape != parameter.shape:
            raise ValueError("extract: a layer takes a part of a parameter that others use whole")
    return copy.deepcopy(model, copies | shared)


def refuse_hooks(layer: nn.Module, doing: str) -> None:
    """Hooks belong to one module; weight norm, spectral norm and pruning work by them.

    Raises:
        ValueError: The layer has some.
    """
    if any(hooks for name, hooks in vars(layer).items() if "_hooks" in name):
        raise ValueError(
            f"{doing}: {type(layer).__name__} has hooks (weight_norm, spectral_norm and pruning "
            "are some), which the new layer would lack; remove them first"
        )


def _tie(pairs: Iterable[tuple[Elastic, nn.Module]]) -> dict[int, nn.Parameter]:
    """Let plain modules share the parameters that the elastic layers they are of share.

    Returns:
        What the plain modules have of a parameter, by its ``id``.

    Raises:
        ValueError: They have different parts of one.
    """
    kept: dict[int, nn.Parameter] = {}
    for layer, module in pairs:
        made = dict(module.named_parameters(remove_duplicate=False))
        for name, parameter in layer.named_parameters(remove_duplicate=False):
            if name not in made:  # of a member that does not run
                continue
            first, other = kept.setdefault(id(parameter), made[name]), made[name]
            if first is other:
                continue
            if first.shape != other.shape or not (other.is_meta or torch.equal(first, other)):
                raise ValueError(
                    f"extract: {name} of {type(layer).__name__} is a parameter of other layers, "
                    "too, which take another part of it"
                )
            owner, _, last = name.rpartition(".")
            setattr(module.get_submodule(owner), last, first)
    return kept


def _outermost(model: nn.Module) -> Iterator[Elastic]:
    for child in model.children():
        if isinstance(child, Elastic):
            yield child
        else:
            yield from _outermost(child)


def _outside(model: nn.Module) -> list[nn.Parameter]:
    """The parameters of modules that are not elastic."""
    found = list(model.parameters(recurse=False))
    for child in model.children():
        if not isinstance(child, Elastic):
            found += _outside(child)
    return found


def count(selection: Selection, size: int) -> int:
    """How many of ``size`` places are selected."""
    if selection is None:
        return size
    if isinstance(selection, Tensor):
        return len(selection)
    if isinstance(selection, slice):
        return len(range(size)[selection])
    return selection


def take(tensor: Tensor, selection: Selection, dim: int = 0) -> Tensor:
    """The selected part of a tensor along a dimension."""
    if selection is None:
        return tensor
    if isinstance(selection, Tensor):
        return tensor.index_select(dim, selection)
    window = selection if isinstance(selection, slice) else slice(selection)
    return tensor[(slice(None),) * dim + (window,)]


@torch.no_grad()
def fill(module: nn.Module, tensors: Mapping[str, Tensor | None]) -> nn.Module:
    """Copy values into a module's parameters and buffers, and whether they need gradients."""
    for name, value in tensors.items():
        if value is not None:
            target = getattr(module, name)
            target.copy_(value)
            if isinstance(target, nn.Parameter):
                target.requires_grad_(value.requires_grad)
    return module


def times(selection: Selection, width: int) -> Selection:
    """The places of a selection of units of ``width`` places each.

    Raises:
        ValueError: A slice with another step than 1, or from the end.
    """
    if isinstance(selection, Tensor):
        inside = torch.arange(width, device=selection.device)
        return (selection[:, None] * width + inside).flatten()
    if isinstance(selection, slice):
        begin, end, step = selection.start or 0, selection.stop, selection.step
        if step not in (None, 1) or begin < 0 or (end is not None and end < 0):
            raise ValueError(f"a slice must be of step 1 from 0 on, got {selection}")
        return slice(begin * width, None if end is None else end * width)
    return None if selection is None else selection * width
