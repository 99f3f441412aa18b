"""What search spaces share whose networks are parts of one largest network."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from sigeo.spaces.base import Choice, Cost, InputShape
from sigeo.spaces.choices import Architecture, ChoiceSpace
from sigeo.spaces.elastic.skeleton import without_memory
from sigeo.spaces.elastic.supernet import ElasticSupernet


class ElasticSpace(ChoiceSpace, ABC):
    """Architectures as parts of the largest one: fewer layers, channels, features, taps.

    A space says with `network` what modules an architecture has. Names of modules depend on their
    place alone, and the largest network has them all; so the shapes of an architecture's parameters
    say which part of the shared weights each of them is, see `parts.part`.
    """

    def __init__(self, shape: InputShape, choices: Sequence[Choice]):
        """Fix the choices.

        Args:
            shape: Of the images and classes.
            choices: Options from the smallest to the largest.
        """
        super().__init__(choices)
        self.shape = shape

    @abstractmethod
    def network(self, arch: Architecture, *, track: bool) -> nn.Sequential:
        """The network of an architecture, as a chain of named pieces of plain layers.

        Args:
            arch: The architecture.
            track: Whether batch norms have running statistics.
        """

    @abstractmethod
    def sizes(self) -> dict[str, Any]:
        """The arguments that the space was made with, as JSON can hold them."""

    def describe(self) -> dict[str, Any]:
        """Name and sizes."""
        return {
            "name": self.name,
            **self.sizes(),
            "classes": self.shape.classes,
            "in_channels": self.shape.channels,
            "image_size": self.shape.size,
        }

    @property
    def largest(self) -> Architecture:
        """The architecture that takes the last option everywhere."""
        return self.decode([len(choice.options) - 1 for choice in self.choices])

    @property
    def smallest(self) -> Architecture:
        """The architecture that takes the first option everywhere."""
        return self.decode([0] * len(self.choices))

    def skeleton(self, arch: Architecture, *, track: bool = False) -> nn.Sequential:
        """The modules of an architecture without memory, on the device "meta".

        Raises:
            InputError: It is no architecture of this space.
        """
        self.encode(arch)
        with without_memory():
            return self.network(arch, track=track)

    def build(self, arch: Architecture, *, seed: int = 0) -> nn.Module:
        """The network of an architecture, with its own weights and running statistics.

        The weights are the parts that it has of the seed's shared weights.
        """
        return self.supernet(seed=seed).extracted(arch, track=True)

    def supernet(self, *, seed: int = 0) -> ElasticSupernet:
        """Shared weights; every architecture starts as `build` with this seed starts it."""
        return ElasticSupernet(self, seed=seed)

    def cost(self, arch: Architecture) -> Cost:
        """Trainable scalars, and multiply-adds of convolutions and matrix products."""
        network = self.skeleton(arch)
        flops = self.attention_flops(arch)
        for name, layer in network.named_modules():
            if name in self.positions:
                flops += self.positions[name] * layer.weight.numel()
        return Cost(parameters=sum(p.numel() for p in network.parameters()), flops=flops)

    def attention_flops(self, arch: Architecture) -> int:
        """Multiply-adds of products of queries, keys and values."""
        return 0

    @cached_property
    def positions(self) -> dict[str, int]:
        """How often each convolution and linear layer is applied to one image, in any network."""
        found: dict[str, int] = {}
        network = self.skeleton(self.largest, track=True).eval()

        def hook(name: str) -> Any:
            def count(layer: nn.Module, inputs: Any, output: Tensor) -> None:
                width = output.shape[1 if isinstance(layer, _ConvNd) else -1]
                found[name] = output.numel() // width

            return count

        for name, layer in network.named_modules():
            if isinstance(layer, (_ConvNd, nn.Linear)):
                layer.register_forward_hook(hook(name))
        size = self.shape.size
        network(torch.empty(1, self.shape.channels, size, size, device="meta"))
        return found
