"""Shared weights of which every architecture uses a part."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sigeo.elastic import Elastic, choice_of, convert
from sigeo.errors import InputError
from sigeo.spaces.choices import Architecture
from sigeo.spaces.elastic.groups import Groups, by_piece
from sigeo.spaces.elastic.parts import (
    draws,
    materialise,
    part,
    pieces,
    places,
    shared_part,
    shared_whole,
)
from sigeo.spaces.elastic.stack import Stack
from sigeo.spaces.initial import draw_weights

if TYPE_CHECKING:
    from sigeo.spaces.elastic.space import ElasticSpace

_PATHS = 64
"""Architectures whose modules a supernet keeps for the next time."""


class ElasticSupernet(nn.Module):
    """The largest network of a space, of elastic layers.

    Batch norm has no running statistics: it always uses the batch's, as the paths that share a
    channel have statistics of their own.

    Attributes:
        space: Whose networks.
        groups: Pieces of which there are several copies, each for some widths; a copy's parameters
            are named by the piece, its number and the parameter's name in the piece.
    """

    def __init__(self, space: ElasticSpace, *, seed: int = 0):
        """Make the weights.

        Args:
            space: Whose largest network they are of.
            seed: The initial weights follow from it and from each module's place.

        Raises:
            InputError: The largest network is no chain of pieces, or it has parameters or buffers
                that no elastic layer has.
        """
        super().__init__()
        self.space = space
        largest = _elastic(space)
        materialise(largest, torch.device("cpu"), torch.float32)
        for name, module in largest.named_modules():
            draw_weights(module, name, seed)
        for name, piece in pieces(largest).items():
            self.add_module(name, piece)
        self.groups: tuple[Groups, ...] = ()
        self._paths: dict[Architecture, nn.Module] = {}
        self._noise: Callable[[nn.Module], None] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """What a copy has: no paths, as it may get other layers in the place of some."""
        return {**super().__getstate__(), "_paths": {}}  # type: ignore[no-untyped-call]

    @property
    def noisy(self) -> bool:
        """Whether a pass in train mode draws random numbers, whatever mode is on."""
        return self._noise is not None or draws(self)

    def forward(self, x: Tensor, arch: Architecture) -> Tensor:
        """A batch [B, ...] through one architecture; gradients go to the shared weights."""
        y: Tensor = self.path(arch)(x)
        return y

    def path(self, arch: Architecture) -> nn.Module:
        """The network of an architecture on the shared weights themselves.

        Its layers are the elastic layers with a choice for each call, so any number of paths can be
        used at the same time. Its parameters are the whole super-weights: what a proxy of the
        architecture must see is `subnet`.
        """
        if arch not in self._paths:
            if len(self._paths) >= _PATHS:
                self._paths.clear()
            self._paths[arch] = self._assembled(arch)
        return self._paths[arch].train(self.training)

    def keeps(self, arch: Architecture) -> bool:
        """Whether the path of an architecture is still there from an earlier call."""
        return arch in self._paths

    def _assembled(self, arch: Architecture) -> nn.Module:
        network = self.space.skeleton(arch)
        layers, weights = dict(self.named_modules()), dict(self.named_parameters())
        for name, layer in list(network.named_modules()):
            for key, value in layer.named_parameters(name, recurse=False):
                shared_whole(weights, self.shared_name(arch, key), value.shape)
            shared = layers.get(self.shared_name(arch, name))
            if isinstance(shared, Elastic):
                try:
                    choice = choice_of(layer, shared)
                except ValueError as error:
                    raise InputError(
                        f"space: {name} of {arch} is no part of the largest network's ({error})"
                    ) from None
                network.set_submodule(name, _Chosen(shared, choice, layer))
        if self._noise is not None and arch == self.space.largest:
            self._noise(network)
        return network

    def regularise(self, noise: Callable[[nn.Module], None] | None) -> None:
        """Add noise to the largest architecture, as it runs on the shared weights in train mode.

        What is taken out (`subnet`, `stack`) has none.

        Args:
            noise: Changes the network, in place, by modules that draw random numbers; None to take
                the noise away.
        """
        self._noise = noise
        self._paths.clear()

    def shared_name(self, arch: Architecture, name: str) -> str:
        """The name among the shared weights of what an architecture's network has by a name."""
        piece, dot, rest = name.partition(".")
        for groups in self.groups:
            if piece in groups.pieces:
                return f"{piece}.{groups.of(arch.codes[groups.choice])}{dot}{rest}"
        return name

    @torch.no_grad()
    def divided(self, groups: Sequence[Groups]) -> ElasticSupernet:
        """Shared weights with other, finer groups.

        Every copy starts as the leading part of the copy that has served its widths, norms
        included, so every architecture computes what it did. Hooks stay behind.

        Args:
            groups: For all pieces that are to have copies, those that have some now included.

        Raises:
            InputError: They do not fit the space, have a piece twice or one that not every copy's
                network has, or are not finer.
        """
        found = by_piece(groups, self.space.choices, list(self._modules), self.groups)
        made = copy.copy(self)
        nn.Module.__init__(made)  # a copy has the parameters, buffers and hooks of what it is of
        made._paths, made.groups = {}, tuple(groups)
        for name, piece in pieces(self).items():
            if name in found:
                copies = (self._copy(name, found[name], top) for top in found[name].tops)
                made.add_module(name, nn.ModuleList(copies))
            else:
                made.add_module(name, copy.deepcopy(piece))
        return made.train(self.training)

    def _copy(self, piece: str, groups: Groups, top: int) -> nn.Module:
        """A piece as large as an option asks for, with the weights that served it.

        Raises:
            InputError: The option's network has no such piece.
        """
        codes = list(self.space.largest.codes)
        codes[groups.choice] = top
        arch = self.space.decode(codes)
        plain = pieces(self.space.skeleton(arch))
        if piece not in plain:
            choice = self.space.choices[groups.choice]
            raise InputError(
                f"groups: expected pieces that every copy's network has, got {piece!r}, which "
                f"{choice.name} {choice.options[top]} leaves out"
            )
        made = convert(plain[piece])
        self._fill(made, arch, f"{piece}.", torch.preserve_format)
        return made

    def _fill(
        self, module: nn.Module, arch: Architecture, prefix: str, format: torch.memory_format
    ) -> None:
        """Give an architecture's network, or its part of a prefix, copies of the shared weights."""
        shared = dict(self.named_parameters())
        for place in list(places(module)):
            name = self.shared_name(arch, prefix + place.name)
            value = shared_part(shared, name, place.value.shape)
            value = value.clone(memory_format=format)
            parameter = nn.Parameter(value, requires_grad=shared[name].requires_grad)
            place.module.register_parameter(place.attribute, parameter)

    def subnet(self, arch: Architecture, *, whole: bool = False) -> nn.Module:
        """A plain network with copies of an architecture's parts of the weights as they are now.

        Args:
            arch: The architecture.
            whole: Without effect: no network of an elastic space has parts that do nothing.
        """
        return self.extracted(arch, track=False)

    @torch.no_grad()
    def extracted(self, arch: Architecture, *, track: bool) -> nn.Module:
        """As `subnet`.

        Args:
            arch: The architecture.
            track: Whether its batch norms have running statistics.
        """
        network = self.space.skeleton(arch, track=track)
        if track:  # else there is nothing but parameters
            one = next(self.parameters())
            materialise(network, one.device, one.dtype)
        self._fill(network, arch, "", torch.contiguous_format)
        return network.train(self.training)

    def stack(self, archs: Sequence[Architecture], *, own: bool = False) -> Stack:
        """Several architectures to run together; see `Supernet.stack`."""
        return Stack(self, archs, own=own)


def _elastic(space: ElasticSpace) -> nn.Module:
    """The largest network, of elastic layers, without memory.

    Raises:
        InputError: Not all of it can be elastic.
    """
    plain = space.skeleton(space.largest)
    if type(plain).forward is not nn.Sequential.forward:
        raise InputError(
            f"{space.name}: network must give an nn.Sequential of pieces, "
            f"got {type(plain).__name__}"
        )
    names: dict[nn.Parameter, str] = {}
    for name, value in plain.named_parameters(remove_duplicate=False):
        if names.setdefault(value, name) != name:
            raise InputError(
                f"{space.name}: {name} is the same parameter as {names[value]}; expected "
                "parameters of one name each"
            )
    try:
        network = convert(plain)
    except ValueError as error:
        raise InputError(f"{space.name}: {error}") from None
    for name, module in network.named_modules():
        own = [key for key, _ in module.named_parameters(recurse=False)]
        if own and not isinstance(module, Elastic):
            raise InputError(
                f"{space.name}: {name} has a {own[0]}, but {type(module).__name__} has no elastic "
                "kind; see sigeo.elastic"
            )
        for key, _ in module.named_buffers(recurse=False):
            raise InputError(
                f"{space.name}: {name} has the buffer {key}; the networks of a supernet have none, "
                "batch norms follow `track`"
            )
    return network


class _Chosen(nn.Module):
    """An elastic layer with a choice."""

    def __init__(self, layer: Elastic, choice: dict[str, Any], plain: nn.Module):
        super().__init__()
        self.layer, self.choice = layer, choice
        self._plain = (plain,)  # in a tuple, as its parameters are none of the network's

    def __getattr__(self, name: str) -> Any:
        """What a piece reads of its layer: of a weight, the part; of settings, the plain layer's.

        Raises:
            AttributeError: The layer has no such attribute.
        """
        if name in self._modules or "_plain" not in self.__dict__:
            return super().__getattr__(name)
        (plain,) = self._plain
        value = getattr(plain, name)
        if name not in plain._parameters or value is None:
            return value
        return part(getattr(self.layer, name), value.shape)

    def forward(self, *inputs: Tensor) -> Tensor:
        """What the layer makes of the inputs with this choice."""
        y: Tensor = self.layer(*inputs, **self.choice)
        return y
