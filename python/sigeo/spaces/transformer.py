"""Elastic vision transformers: width, depth, heads and the size of each block's MLP.

The choices of AutoFormer (Chen et al., ICCV 2021), without its relative positions.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sigeo.elastic import Attention, Tokens
from sigeo.errors import InputError
from sigeo.space_sizes import checked
from sigeo.spaces.base import Choice, InputShape
from sigeo.spaces.choices import Architecture
from sigeo.spaces.elastic import ElasticSpace
from sigeo.spaces.elastic.skeleton import layer_of

Pool = Literal["class", "mean"]


class Embedding(nn.Module):
    """Images to tokens: a linear map of each patch, a class token if asked for, positions."""

    def __init__(
        self, channels: int, patch: int, patches: int, width: int, pool: Pool, dropout: float
    ):
        super().__init__()
        self.patches = layer_of(nn.Conv2d, channels, width, patch, patch)
        self.class_token = layer_of(Tokens, 1, width) if pool == "class" else None
        self.positions = layer_of(Tokens, patches + (pool == "class"), width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, images: Tensor) -> Tensor:
        """[B, channels, H, W] to [B, tokens, width]."""
        x = self.patches(images).flatten(2).transpose(1, 2)
        if self.class_token is not None:
            x = torch.cat([self.class_token().expand(len(x), -1, -1), x], 1)
        y: Tensor = self.dropout(x + self.positions())
        return y


class Block(nn.Module):
    """Attention and MLP, each behind a layer norm and beside a shortcut."""

    def __init__(self, width: int, heads: int, head_width: int, hidden: int, dropout: float):
        super().__init__()
        inner = heads * head_width
        self.norm1 = layer_of(nn.LayerNorm, width)
        query, key, value = (layer_of(nn.Linear, width, inner) for _ in range(3))
        self.attention = Attention(query, key, value, layer_of(nn.Linear, inner, width), head_width)
        self.norm2 = layer_of(nn.LayerNorm, width)
        self.fc1 = layer_of(nn.Linear, width, hidden)
        self.fc2 = layer_of(nn.Linear, hidden, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """[B, tokens, width] to the same."""
        x = x + self.dropout(self.attention(self.norm1(x)))
        hidden = self.dropout(F.gelu(self.fc1(self.norm2(x))))
        y: Tensor = x + self.dropout(self.fc2(hidden))
        return y


class Head(nn.Module):
    """Layer norm, the class token or the mean of all tokens, linear layer."""

    def __init__(self, width: int, classes: int, pool: Pool):
        super().__init__()
        self.pool = pool
        self.norm = layer_of(nn.LayerNorm, width)
        self.linear = layer_of(nn.Linear, width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """[B, tokens, width] to [B, classes]."""
        x = self.norm(x)
        y: Tensor = self.linear(x[:, 0] if self.pool == "class" else x.mean(1))
        return y


class Transformer(ElasticSpace):
    """Vision transformers of one width, with heads and an MLP ratio chosen for each block.

    Layer norms are over the features that are there. Heads keep their width.
    """

    name = "transformer"

    def __init__(
        self,
        shape: InputShape,
        *,
        patch: int = 2,
        widths: int | Sequence[int] = (16, 24, 32),
        depths: int | Sequence[int] = (1, 2, 3),
        heads: int | Sequence[int] = (2, 3, 4),
        ratios: float | Sequence[float] = (2, 3, 4),
        head_width: int = 8,
        pool: Pool = "class",
        dropout: float = 0.0,
    ):
        """Fix the sizes.

        Args:
            shape: Of the images and classes; pixels in multiples of ``patch``.
            patch: Height and width of a patch.
            widths: Of the tokens, to choose from, ascending.
            depths: Numbers of blocks to choose from, ascending.
            heads: To choose from for each block, ascending.
            ratios: Hidden features of a block's MLP as multiples of the width, ascending.
            head_width: Of each head.
            pool: "class" for a class token, "mean" for the mean over the tokens.
            dropout: Share of dropped values behind the embedding, in and behind the MLPs and behind
                the attention.

        Raises:
            InputError: A size out of its range, or images that patches do not fill.
        """
        kept = checked(
            Transformer.name,
            patch=patch,
            widths=widths,
            depths=depths,
            heads=heads,
            ratios=ratios,
            head_width=head_width,
            pool=pool,
            dropout=dropout,
        )
        self.patch: int = kept["patch"]
        self.head_width: int = kept["head_width"]
        self.widths: tuple[int, ...] = kept["widths"]
        self.depths: tuple[int, ...] = kept["depths"]
        self.heads: tuple[int, ...] = kept["heads"]
        self.ratios: tuple[float, ...] = kept["ratios"]
        self.pool: Pool = kept["pool"]
        self.dropout: float = kept["dropout"]
        if shape.size % patch:
            raise InputError(
                f"{self.name}: patch must divide the images' {shape.size} pixels, got {patch}"
            )
        super().__init__(shape, list(self._choices()))

    @classmethod
    def published(cls, shape: InputShape) -> Transformer:
        """The sizes of AutoFormer-tiny, for images of 224 pixels."""
        return cls(
            shape,
            patch=16,
            widths=(192, 216, 240),
            depths=(12, 13, 14),
            heads=(3, 4),
            ratios=(3.5, 4),
            head_width=64,
        )

    def _choices(self) -> Iterator[Choice]:
        yield Choice("width", tuple(map(str, self.widths)))
        yield Choice("depth", tuple(map(str, self.depths)))
        for block in range(1, self.depths[-1] + 1):
            yield Choice(f"heads{block}", tuple(map(str, self.heads)))
            yield Choice(f"ratio{block}", tuple(map(str, self.ratios)))

    def idle(self, arch: Architecture) -> frozenset[str]:
        """Heads and ratios of blocks beyond the depth."""
        depth = int(arch.options()["depth"])
        return frozenset(
            f"{name}{block}"
            for block in range(depth + 1, self.depths[-1] + 1)
            for name in ("heads", "ratio")
        )

    def network(self, arch: Architecture, *, track: bool) -> nn.Sequential:
        """Embedding, blocks and head."""
        chosen = arch.options()
        width, depth = int(chosen["width"]), int(chosen["depth"])
        patches = (self.shape.size // self.patch) ** 2
        pieces: OrderedDict[str, nn.Module] = OrderedDict(
            embedding=Embedding(
                self.shape.channels, self.patch, patches, width, self.pool, self.dropout
            )
        )
        for block in range(1, depth + 1):
            heads = int(chosen[f"heads{block}"])
            hidden = max(1, int(width * float(chosen[f"ratio{block}"])))
            pieces[f"block{block}"] = Block(width, heads, self.head_width, hidden, self.dropout)
        pieces["head"] = Head(width, self.shape.classes, self.pool)
        return nn.Sequential(pieces)

    def attention_flops(self, arch: Architecture) -> int:
        """Products of queries with keys, and of their weights with values."""
        chosen = arch.options()
        tokens = (self.shape.size // self.patch) ** 2 + (self.pool == "class")
        heads = sum(int(chosen[f"heads{b}"]) for b in range(1, int(chosen["depth"]) + 1))
        return 2 * tokens**2 * heads * self.head_width

    def sizes(self) -> dict[str, Any]:
        """The arguments."""
        return {
            "patch": self.patch,
            "widths": list(self.widths),
            "depths": list(self.depths),
            "heads": list(self.heads),
            "ratios": list(self.ratios),
            "head_width": self.head_width,
            "pool": self.pool,
            "dropout": self.dropout,
        }
