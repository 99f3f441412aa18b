"""Many subnets of an elastic supernet in one pass: one after another, on views of its weights.

A row of a weight is the part that one subnet uses, a leaf of its own that lies where the shared
weight does. So the gradients have the parts' sizes, and nothing of a super-weight's size is made.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sigeo.spaces.elastic.parts import part, places
from sigeo.spaces.elastic.reuse import Reuse
from sigeo.spaces.streams import Streams

if TYPE_CHECKING:
    from sigeo.spaces.choices import Architecture
    from sigeo.spaces.elastic.supernet import ElasticSupernet


class Stack:
    """K subnets as one function of a batch; see `sigeo.spaces.Stack`."""

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
        self._shared = dict(supernet.named_parameters())
        self._networks = [supernet.space.skeleton(arch).train() for arch in archs]
        rows: dict[str, list[nn.Parameter]] = {}
        members: dict[str, list[int]] = {}
        layers = set()
        for subnet, network in enumerate(self._networks):
            for place in list(places(network)):
                shared = self._shared[place.name]
                view = part(shared.detach(), place.value.shape)
                row = nn.Parameter(
                    view.clone() if own else view, requires_grad=shared.requires_grad
                )
                setattr(place.module, place.attribute, row)
                rows.setdefault(place.name, []).append(row)
                members.setdefault(place.name, []).append(subnet)
                layers |= {place.name} if place.is_layer else set()
        used = [name for name in self._shared if name in rows]
        self.weights = {name: tuple(rows[name]) for name in used}
        self.members = {name: tuple(members[name]) for name in used}
        self.layers = frozenset(layers)
        device = next(iter(self._shared.values())).device
        self.random = Streams(device, len(archs)) if supernet.noisy else None
        # Masks of dropout are each subnet's own, and so are weights that are to move.
        self._prefixes = (
            _prefixes(self._networks) if share and not own and not self.random else None
        )

    def __call__(self, x: Tensor) -> Tensor:
        """A batch [B, ...] to each subnet's outputs [K, B, ...].

        Where there is dropout, every subnet draws as it would alone, from the state that torch's
        generator had when the stack was made, and goes on from there with the next batch.
        """
        if self.random is not None:
            outputs = []
            for subnet, network in enumerate(self._networks):
                with self.random.of(subnet):
                    outputs.append(network(x))
            return torch.stack(outputs)
        if self._prefixes is None:
            return torch.stack([network(x) for network in self._networks])
        reuse = Reuse(Counter(number for numbers in self._prefixes for number in numbers))
        return torch.stack(
            [
                self._shared_pass(reuse, network, numbers, x)
                for network, numbers in zip(self._networks, self._prefixes, strict=True)
            ]
        )

    @staticmethod
    def _shared_pass(reuse: Reuse, network: nn.Module, numbers: Sequence[int], x: Tensor) -> Tensor:
        for piece, number in zip(network.children(), numbers, strict=True):
            with reuse.piece(number):
                x = piece(x)
        return x

    def gradient(self, name: str) -> Tensor | None:
        """The gradient of a shared weight from all rows; None if there is none."""
        found = [row.grad for row in self.weights[name] if row.grad is not None]
        if not found:
            return None
        total = torch.zeros_like(self._shared[name])
        for gradient in found:
            part(total, gradient.shape).add_(gradient)
        return total


def _prefixes(networks: Sequence[nn.Module]) -> list[list[int]]:
    """For each piece of each network the number of its value: equal for equal ways to it."""
    numbers: dict[Any, int] = {}

    def ways(network: nn.Module) -> Iterator[int]:
        before = -1
        for name, piece in network.named_children():
            shapes = tuple((place.name, tuple(place.value.shape)) for place in places(piece))
            before = numbers.setdefault((before, name, shapes), len(numbers))
            yield before

    return [list(ways(network)) for network in networks]
