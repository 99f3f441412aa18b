"""Elastic self-attention: heads and width."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from sigeo.elastic.base import Elastic, times
from sigeo.elastic.linear import ElasticLinear


class Attention(nn.Module):
    """Multi-head self-attention whose heads have a width of their own.

    ``softmax(q k^T / sqrt(head_width)) v`` a head, the heads side by side into ``out``. Unlike in
    `nn.MultiheadAttention` the width of the input need not be heads times head width, which
    elastic search spaces choose apart.

    Args:
        query: [width] to [heads * head width]; so ``key`` and ``value``.
        key: See ``query``.
        value: See ``query``.
        out: [heads * head width] to [width].
        head_width: Of each head.
    """

    def __init__(
        self,
        query: nn.Module,
        key: nn.Module,
        value: nn.Module,
        out: nn.Module,
        head_width: int,
    ) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = query, key, value, out
        self.head_width = head_width

    def forward(self, x: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """[B, T, width] to the same.

        Args:
            x: The tokens.
            mask: As `F.scaled_dot_product_attention` takes it.
        """
        parts = (self.query(x), self.key(x), self.value(x))
        y: Tensor = self.out(attend(*parts, self.head_width, mask))
        return y


def attend(q: Tensor, k: Tensor, v: Tensor, head_width: int, mask: Tensor | None) -> Tensor:
    """Heads side by side, [B, T, heads * head width], in and out."""
    q, k, v = (
        t.unflatten(-1, (t.shape[-1] // head_width, head_width)).transpose(-3, -2)
        for t in (q, k, v)
    )
    heads = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return heads.transpose(-3, -2).flatten(-2)


class ElasticAttention(Elastic):
    """Self-attention of which selected heads and a selected width run.

    Choice: ``heads`` and ``width``, the selection of input and output features. `extract` gives an
    `Attention` of four `nn.Linear`. There is no masked mode: a masked layer is the full layer,
    followed by a mask.

    Args:
        width: Of the largest input.
        heads: Most heads.
        head_width: Of each head; ``width // heads`` if not given.
        bias: Whether the four linear layers have one.
        **factory: ``device`` and ``dtype``.
    """

    dimensions = ("heads", "width")
    maskable = False

    def __init__(
        self,
        width: int,
        heads: int,
        head_width: int | None = None,
        *,
        bias: bool = True,
        **factory: Any,
    ) -> None:
        super().__init__()
        self.width, self.heads = width, heads
        self.head_width = width // heads if head_width is None else head_width
        inner = heads * self.head_width
        self.query = ElasticLinear(width, inner, bias=bias, **factory)
        self.key = ElasticLinear(width, inner, bias=bias, **factory)
        self.value = ElasticLinear(width, inner, bias=bias, **factory)
        self.out = ElasticLinear(inner, width, bias=bias, **factory)

    def _sizes(self) -> dict[str, int]:
        return {"heads": self.heads, "width": self.width}

    def forward(self, x: Tensor, *, mask: Tensor | None = None, **choice: Any) -> Tensor:
        """[B, T, selected width] to the same.

        Args:
            x: The tokens.
            mask: As `F.scaled_dot_product_attention` takes it.
            **choice: Instead of the current choice.
        """
        given = self._current(choice)
        inner, width = times(given["heads"], self.head_width), given["width"]
        q, k, v = (
            layer(x, outputs=inner, inputs=width) for layer in (self.query, self.key, self.value)
        )
        y: Tensor = self.out(attend(q, k, v, self.head_width, mask), outputs=width, inputs=inner)
        return y

    def _plain(self, choice: dict[str, Any]) -> nn.Module:
        inner, width = times(choice["heads"], self.head_width), choice["width"]
        query, key, value = (
            layer.extract(outputs=inner, inputs=width)
            for layer in (self.query, self.key, self.value)
        )
        out = self.out.extract(outputs=width, inputs=inner)
        return Attention(query, key, value, out, self.head_width)
