"""Elastic multilayer perceptrons: depth and the width of each layer."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn

from sigeo.space_sizes import checked
from sigeo.spaces.base import Choice, InputShape
from sigeo.spaces.choices import Architecture
from sigeo.spaces.elastic import ElasticSpace
from sigeo.spaces.elastic.skeleton import layer_of


class MLP(ElasticSpace):
    """Hidden layers with ReLU on flattened images, then a linear layer."""

    name = "mlp"

    def __init__(
        self,
        shape: InputShape,
        *,
        widths: int | Sequence[int] = (16, 32, 48, 64),
        depths: int | Sequence[int] = (1, 2, 3, 4),
        dropout: float = 0.0,
    ):
        """Fix the sizes.

        Args:
            shape: Of the images and classes.
            widths: Of each hidden layer, to choose from, ascending.
            depths: Numbers of hidden layers to choose from, ascending.
            dropout: Share of dropped values behind each hidden layer.

        Raises:
            InputError: A size out of its range.
        """
        kept = checked(MLP.name, widths=widths, depths=depths, dropout=dropout)
        self.widths: tuple[int, ...] = kept["widths"]
        self.depths: tuple[int, ...] = kept["depths"]
        self.dropout: float = kept["dropout"]
        super().__init__(shape, list(self._choices()))

    def _choices(self) -> Iterator[Choice]:
        yield Choice("depth", tuple(map(str, self.depths)))
        for layer in range(1, self.depths[-1] + 1):
            yield Choice(f"width{layer}", tuple(map(str, self.widths)))

    def idle(self, arch: Architecture) -> frozenset[str]:
        """Widths of layers beyond the depth."""
        depth = int(arch.options()["depth"])
        return frozenset(f"width{layer}" for layer in range(depth + 1, self.depths[-1] + 1))

    def network(self, arch: Architecture, *, track: bool) -> nn.Sequential:
        """Hidden layers and head."""
        chosen = arch.options()
        pieces: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
        inputs = self.shape.channels * self.shape.size**2
        for layer in range(1, int(chosen["depth"]) + 1):
            outputs = int(chosen[f"width{layer}"])
            pieces[f"layer{layer}"] = nn.Sequential(
                layer_of(nn.Linear, inputs, outputs), nn.ReLU(), nn.Dropout(self.dropout)
            )
            inputs = outputs
        pieces["head"] = layer_of(nn.Linear, inputs, self.shape.classes)
        return nn.Sequential(pieces)

    def sizes(self) -> dict[str, Any]:
        """The arguments."""
        return {
            "widths": list(self.widths),
            "depths": list(self.depths),
            "dropout": self.dropout,
        }
