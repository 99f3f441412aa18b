"""Models of tokens: attention, recurrent layers, embeddings."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from tests.sigeo.zoo.parts import CLASSES, Function


def vision_transformer() -> nn.Module:
    def run(m, x):
        patches = m.patch(x).flatten(2).transpose(1, 2)
        z = torch.cat([m.token.expand(len(x), -1, -1), patches], 1) + m.place
        return m.out(m.norm(m.layer(z))[:, 0])

    return Function(
        run, patch=nn.Conv2d(3, 16, 4, stride=4), token=nn.Parameter(torch.randn(1, 1, 16)),
        place=nn.Parameter(torch.randn(1, 5, 16)), norm=nn.LayerNorm(16),
        layer=nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, batch_first=True, norm_first=True),
        out=nn.Linear(16, CLASSES),
    )  # fmt: skip


def transformer(batch_first: bool = True) -> nn.Module:
    def run(m, t):
        z = m.embed(t) + m.place[: t.shape[1]]
        z = z if batch_first else z.transpose(0, 1)
        z = m.layer(z)
        return m.out((z if batch_first else z.transpose(0, 1)).mean(1))

    return Function(
        run, embed=nn.Embedding(20, 16), place=nn.Parameter(torch.randn(6, 16)),
        layer=nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, batch_first=batch_first),
        out=nn.Linear(16, CLASSES),
    )  # fmt: skip


def attention_with_weights() -> nn.Module:
    def run(m, t):
        z = m.embed(t)
        y, weights = m.attention(z, z, z, need_weights=True)
        return m.out(y.mean(1) + weights.mean((1, 2))[:, None])

    return Function(
        run, embed=nn.Embedding(20, 16), out=nn.Linear(16, CLASSES),
        attention=nn.MultiheadAttention(16, 2, batch_first=True),
    )  # fmt: skip


def tied_embedding() -> nn.Module:
    def run(m, t):
        return F.linear(torch.tanh(m.body(m.embed(t))).mean(1), m.embed.weight)

    return Function(run, embed=nn.Embedding(20, 8), body=nn.Linear(8, 8))


def recurrent(kind: type[nn.Module], **options: object) -> Callable[[], nn.Module]:
    def made() -> nn.Module:
        def run(m, t):
            return m.out(m.cell(m.embed(t))[0][:, -1])

        width = 18 if options.get("bidirectional") else 9
        return Function(
            run, embed=nn.Embedding(20, 8), cell=kind(8, 9, batch_first=True, **options),
            out=nn.Linear(width, CLASSES),
        )  # fmt: skip

    return made


def windows() -> nn.Module:
    """Swin-like: the image cut into windows that join the batch, and put together again."""

    def run(m, x):
        z = m.patch(x).permute(0, 2, 3, 1)  # [B, 4, 4, C]
        b = z.shape[0]
        z = torch.roll(z, (1, 1), (1, 2)).view(b, 2, 2, 2, 2, 12)
        z = z.permute(0, 1, 3, 2, 4, 5).reshape(b * 4, 4, 12)
        z = m.layer(z)
        z = z.view(b, 2, 2, 2, 2, 12).permute(0, 1, 3, 2, 4, 5).reshape(b, 16, 12)
        return m.out(z.mean(1))

    return Function(
        run, patch=nn.Conv2d(3, 12, 2, stride=2), out=nn.Linear(12, CLASSES),
        layer=nn.TransformerEncoderLayer(12, 3, 16, dropout=0.0, batch_first=True),
    )  # fmt: skip


def flattened(samples_first: bool) -> Callable[[], nn.Module]:
    """Tokens and samples flattened into one dimension, in either order."""

    def made() -> nn.Module:
        def run(m, t):
            z = m.embed(t)
            z = z if samples_first else z.transpose(0, 1)
            a, b, _ = z.shape
            z = m.body(z.reshape(a * b, 8)).view(a, b, 8)
            return m.out(z.mean(1 if samples_first else 0))

        return Function(
            run, embed=nn.Embedding(20, 8), body=nn.Linear(8, 8), out=nn.Linear(8, CLASSES)
        )

    return made
