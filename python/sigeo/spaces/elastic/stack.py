"""Many subnets of an elastic supernet in one pass: one after another, on views of its weights.

A row of a weight is the part that one subnet uses, a leaf of its own that lies where the shared
weight does. So the gradients have the parts' sizes, and nothing of a super-weight's size is made.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from sigeo.errors import InputError
from sigeo.spaces.elastic.parts import draws, part, pieces, places, shared_part
from sigeo.spaces.elastic.reuse import Reuse
from sigeo.spaces.streams import Streams

if TYPE_CHECKING:
    from sigeo.spaces.choices import Architecture
    from sigeo.spaces.elastic.supernet import ElasticSupernet

_RUNS = 5  # in which another thread may draw random numbers, one after another


class Stack:
    """K subnets as one function of a batch; see `sigeo.spaces.Stack`."""

    apart = True

    def __init__(
        self,
        supernet: ElasticSupernet,
        archs: Sequence[Architecture],
        *,
        own: bool,
        share: bool = True,
    ):
        """Take the parts of the weights that the subnets use.

        Args:
            supernet: The shared weights.
            archs: The subnets.
            own: Whether each subnet gets weights of its own to move, copied; else all read the
                supernet's.
            share: Whether equal prefixes are computed once, forward.
        """
        shared = dict(supernet.named_parameters())
        self._shared = {name: weight.detach() for name, weight in shared.items()}
        self._networks = [supernet.space.skeleton(arch).train() for arch in archs]
        rows: dict[str, list[nn.Parameter]] = {}
        members: dict[str, list[int]] = {}
        layers = set()
        for subnet, (arch, network) in enumerate(zip(archs, self._networks, strict=True)):
            for place in list(places(network)):
                name = supernet.shared_name(arch, place.name)
                view = shared_part(self._shared, name, place.value.shape)
                row = nn.Parameter(
                    view.clone() if own else view, requires_grad=shared[name].requires_grad
                )
                place.module.register_parameter(place.attribute, row)
                rows.setdefault(name, []).append(row)
                members.setdefault(name, []).append(subnet)
                layers |= {name} if place.is_layer else set()
        used = [name for name in self._shared if name in rows]
        self.weights = {name: tuple(rows[name]) for name in used}
        self.members = {name: tuple(members[name]) for name in used}
        self.layers = frozenset(layers)
        self._device = device = next(iter(self._shared.values())).device
        noisy = any(map(draws, self._networks))
        self.random = Streams(device, len(archs)) if noisy else None
        # Masks of dropout are each subnet's own, and so are weights that are to move.
        alike = share and not own and self.random is None
        self._reuse = Reuse(self._networks, self._pieces(supernet, archs)) if alike else None

    def _pieces(self, supernet: ElasticSupernet, archs: Sequence[Architecture]) -> list[list[str]]:
        """The shared piece behind each piece of each network."""
        pairs = zip(archs, self._networks, strict=True)
        return [[supernet.shared_name(a, name) for name in pieces(n)] for a, n in pairs]

    def __call__(self, x: Tensor) -> Tensor:
        """A batch [B, ...] to each subnet's outputs [K, B, ...].

        Where there is dropout, every subnet draws as it would alone, from the state that torch's
        generator had when the stack was made, and goes on from there with the next batch.
        """
        return torch.stack(list(self._outputs(x, together=True)))

    def each(self, x: Tensor) -> Iterator[Tensor]:
        """The outputs [B, ...] of one subnet after another, each done with before the next.

        Returns:
            One of each subnet, which is run when it is asked for.
        """
        return self._outputs(x, together=False)

    def _outputs(self, x: Tensor, *, together: bool) -> Iterator[Tensor]:
        if self._reuse is not None:
            self._reuse.begin(together=together)
        for subnet, network in enumerate(self._networks):
            if self._reuse is not None:
                self._reuse.next_subnet()
            if self.random is None:
                y = self._undrawn(network, x)
            else:
                with self.random.of(subnet):
                    y = network(x)
            yield y

    def _undrawn(self, network: nn.Module, x: Tensor) -> Tensor:
        """The outputs of a network that is not known to draw random numbers.

        Raises:
            InputError: It does.
        """
        generator = Streams(self._device, 1)
        y: Tensor = network(x)
        if generator.moved(0) and self._draws(network, x):
            raise InputError(
                "space: a network draws random numbers by a module that is none of torch's "
                "dropouts; derive the module from nn.Dropout, or run architectures one by one"
            )
        return y

    def _draws(self, network: nn.Module, x: Tensor) -> bool:
        """Whether a network draws random numbers: another thread may, but hardly in every run."""
        with torch.no_grad(), nullcontext() if self._reuse is None else self._reuse.paused():
            for _ in range(_RUNS):
                generator = Streams(self._device, 1)
                network(x)
                if not generator.moved(0):
                    return False
        return True

    def gradient(self, name: str) -> Tensor | None:
        """The gradient of a shared weight from all rows; None if there is none."""
        found = [row.grad for row in self.weights[name] if row.grad is not None]
        if not found:
            return None
        total = torch.zeros_like(self._shared[name])
        for gradient in found:
            part(total, gradient.shape).add_(gradient)
        return total
