"""Learned tokens: class tokens and position embeddings."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sigeo.elastic.base import Elastic, count, fill, take


class Tokens(nn.Module):
    """Learned vectors that are added to a sequence or put before it.

    They start at zero.

    Args:
        number: Of tokens.
        width: Of each.
        **factory: ``device`` and ``dtype``.
    """

    def __init__(self, number: int, width: int, **factory: Any) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(number, width, **factory))

    def forward(self) -> Tensor:
        """The tokens [number, width]."""
        return self.weight


class ElasticTokens(Elastic, Tokens):
    """`Tokens` of which a selected width runs.

    Choice: ``width``. There is no masked mode.
    """

    dimensions = ("width",)
    maskable = False

    def _sizes(self) -> dict[str, int]:
        return {"width": self.weight.shape[1]}

    def forward(self, **choice: Any) -> Tensor:
        """The tokens [number, selected width].

        Raises:
            ValueError: A width that there is not.
        """
        given = self._current(choice)
        if choice:
            self._require(given)
        return take(self.weight, given["width"], 1)

    def _plain(self, choice: dict[str, Any]) -> nn.Module:
        number, width = self.weight.shape
        factory = {"device": self.weight.device, "dtype": self.weight.dtype}
        module = Tokens(number, count(choice["width"], width), **factory)
        return fill(module, {"weight": take(self.weight, choice["width"], 1)})
