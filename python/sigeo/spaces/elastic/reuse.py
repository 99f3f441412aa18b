"""Layers that several subnets apply with equal weights to equal inputs, computed once.

Only forward: the output that the first of them has computed stands in for the call of the others,
and backward each call does with its own input and weight what it would have done. Of outputs that
wait for a later subnet, no more is kept than one subnet has; what is not kept is computed again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn

from sigeo.elastic.convolution import padding_of
from sigeo.spaces.elastic.parts import pieces as pieces_of
from sigeo.spaces.elastic.parts import places

Key = tuple[int, str]
"""The number of a piece, and the name of a layer in it."""
Call = tuple[Key, int]
"""A layer and which of its calls, from 1: a network may apply it more than once."""


class Reuse:
    """What is known of one pass over several subnets."""

    def __init__(self, networks: Sequence[nn.Module], pieces: Sequence[Sequence[str]]):
        """Replace the convolutions and linear layers that occur more than once, in place.

        Args:
            networks: Chains of pieces, with parameters of their own that have equal values wherever
                names of pieces and shapes are equal, and no buffers.
            pieces: The names of each network's pieces.
        """
        numbers = prefixes(networks, pieces)
        self._uses = Counter(number for ways in numbers for number in ways)
        self._known: dict[Call, tuple[Tensor, int]] = {}  # with the version when it was computed
        self.is_paused = False
        self.begin()
        for network, ways in zip(networks, numbers, strict=True):
            for (name, piece), number in zip(pieces_of(network).items(), ways, strict=True):
                if self._uses[number] > 1:
                    self._replace(network, name, piece, number)

    def _replace(self, network: nn.Module, name: str, piece: nn.Module, number: int) -> None:
        for inner, layer in list(piece.named_modules()):
            if type(layer) in (nn.Conv2d, nn.Linear):
                shared = _Shared(layer, self, (number, inner))
                network.set_submodule(f"{name}.{inner}" if inner else name, shared)

    def begin(self, *, together: bool = False) -> None:
        """Forget what an earlier pass has left.

        Args:
            together: Whether subnets that have run still need their outputs when later ones run.
        """
        self._together = together
        self._known.clear()
        self._left: dict[Call, int] = {}
        self._held = self._most = 0
        self.next_subnet()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Let layers compute all by themselves, and note nothing of it.

        Yields:
            Once, while they do.
        """
        self.is_paused = True
        try:
            yield
        finally:
            self.is_paused = False

    def next_subnet(self) -> None:
        """Called before each subnet runs."""
        self._calls: Counter[Key] = Counter()
        self._own = 0

    def call(self, key: Key) -> Call:
        """Count one more call of a layer by the subnet that runs."""
        self._calls[key] += 1
        call = (key, self._calls[key])
        self._left[call] = self._left.get(call, self._uses[key[0]]) - 1
        return call

    def keep(self, call: Call, output: Tensor) -> None:
        """Remember an output for the other subnets that need it, if there is room."""
        self._note(output)
        room = self._held + output.nbytes <= self._most
        if self._left[call] and room and not output.is_inference():  # which have no versions
            self._known[call] = output.detach(), output._version
            self._held += output.nbytes

    def take(self, call: Call) -> Tensor | None:
        """What another subnet has computed, if it is known; forgotten when no other needs it.

        Activations in place write to their inputs: to a copy where the other subnet still needs
        its own, else to what is known no more from then on.
        """
        if call not in self._known:
            return None
        output, version = self._known[call]
        unwritten = output._version == version
        if not (unwritten and self._left[call]):
            del self._known[call]
            self._held -= output.nbytes
        if not unwritten:
            return None
        self._note(output)
        return output.clone() if self._together else output

    def _note(self, output: Tensor) -> None:
        """Bytes of this subnet's outputs, and of the subnet with the most."""
        self._own += output.nbytes
        self._most = max(self._most, self._own)


def prefixes(
    networks: Sequence[nn.Module], pieces: Sequence[Sequence[str]] | None = None
) -> list[list[int]]:
    """For each piece of each network the number of its value: equal for equal ways to it.

    Args:
        networks: Chains of pieces.
        pieces: The names of each network's pieces; None for those that they have there.
    """
    if pieces is None:
        pieces = [list(pieces_of(network)) for network in networks]
    chains = [
        list(zip(names, pieces_of(network).values(), strict=True))
        for network, names in zip(networks, pieces, strict=True)
    ]
    numbers: list[list[int]] = [[] for _ in chains]
    groups, unused = [list(range(len(chains)))], count()
    while groups:
        group = groups.pop()  # networks that are equal up to a place
        alike: dict[Any, list[int]] = {}
        for network in group:
            place = len(numbers[network])
            if place < len(chains[network]):
                name, piece = chains[network][place]
                key = (name, _signature(piece)) if len(group) > 1 else None
                alike.setdefault(key, []).append(network)
        for members in alike.values():
            number = next(unused)
            for network in members:
                numbers[network].append(number)
        groups += alike.values()
    return numbers


def _signature(piece: nn.Module) -> tuple[Any, ...]:
    """What a piece makes of its input depends on, beside the values of its parameters.

    Kinds, shapes and all settings, as activations and strides show in no shape. Settings that do
    not say when they are equal, such as functions made anew for each network, differ.
    """
    shapes = tuple((place.name, tuple(place.value.shape)) for place in places(piece))
    settings = tuple(
        (name, type(module), _settled(_settings(module)))
        for name, module in piece.named_modules(remove_duplicate=False)
    )
    return shapes, settings


_VALUES = ("_parameters", "_buffers", "_modules", "training")
_OF_ALL = frozenset(vars(nn.Module()))


def _settings(module: nn.Module) -> dict[str, Any]:
    """What a module has beside values, without the places for hooks that every module has empty."""
    return {n: v for n, v in vars(module).items() if n not in _VALUES and (n not in _OF_ALL or v)}


def _settled(value: Any) -> Any:
    """A setting as a key."""
    if isinstance(value, dict):
        return tuple((_settled(key), _settled(part)) for key, part in value.items())
    if isinstance(value, (list, tuple)):
        return (type(value), *map(_settled, value))
    if isinstance(value, (set, frozenset)):
        return frozenset(map(_settled, value))
    try:
        hash(value)
    except TypeError:
        return object()  # equal to nothing else
    return type(value), value


class _Shared(nn.Module):
    """A layer that another subnet may have computed already."""

    def __init__(self, layer: nn.Conv2d | nn.Linear, reuse: Reuse, key: Key):
        super().__init__()
        self.layer, self._reuse, self._key = layer, reuse, key

    def __getattr__(self, name: str) -> Any:
        """What a piece reads of its layer, as the weight."""
        return (
            super().__getattr__(name) if name in ("layer", *_OF_ALL) else getattr(self.layer, name)
        )

    def forward(self, x: Tensor) -> Tensor:
        """What the layer makes of x."""
        layer = self.layer
        if self._reuse.is_paused:
            alone: Tensor = layer(x)
            return alone
        call = self._reuse.call(self._key)
        output = self._reuse.take(call)
        if output is None:
            y: Tensor = layer(x)
            self._reuse.keep(call, y)
            return y
        if isinstance(layer, nn.Linear):
            return _linear(x, layer.weight, layer.bias, output)
        padding = padding_of(layer, None)  # in numbers, also of "same"
        geometry = (layer.stride, padding, layer.dilation, False, (0, 0), layer.groups)
        return _convolution(x, layer.weight, layer.bias, output, geometry)


class _Convolution(torch.autograd.Function):
    """A convolution whose output is known."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, output: Tensor, geometry: Any
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.geometry, ctx.outputs = geometry, None if bias is None else [len(bias)]
        return output.detach()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        found = torch.ops.aten.convolution_backward(
            gradients[0], x, weight, ctx.outputs, *ctx.geometry, ctx.needs_input_grad[:3]
        )
        return (*found, None, None)


class _Linear(torch.autograd.Function):
    """A linear layer whose output is known; x is [..., inputs]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, output: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return output.detach()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        needs = ctx.needs_input_grad
        d, rows = gradients[0].flatten(0, -2), x.flatten(0, -2)
        of_x = (d @ weight).view(x.shape) if needs[0] else None
        of_weight = None
        if needs[1]:  # the product that torch takes for a weight of this memory order
            of_weight = d.t() @ rows if weight.is_contiguous() else (rows.t() @ d).t()
        return of_x, of_weight, d.sum(0) if needs[2] else None, None


_convolution: Callable[..., Tensor] = _Convolution.apply
_linear: Callable[..., Tensor] = _Linear.apply
