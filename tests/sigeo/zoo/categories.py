"""Models of categories: embedding tables and bags."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.sigeo.zoo.parts import CLASSES, Function


def click_through() -> nn.Module:
    """DLRM-like: dense features, bags of categories, pairwise products."""

    def run(m, dense, bags, single):
        vectors = [m.bottom(dense), m.bag(bags), m.table(single)]
        stacked = torch.stack(vectors, 1)
        products = torch.bmm(stacked, stacked.transpose(1, 2)).flatten(1)
        return m.top(torch.cat([vectors[0], products], 1))

    return Function(
        run, bottom=nn.Sequential(nn.Linear(4, 8), nn.ReLU()), table=nn.Embedding(30, 8),
        bag=nn.EmbeddingBag(40, 8, mode="mean"),
        top=nn.Sequential(nn.Linear(8 + 9, 16), nn.Tanh(), nn.Linear(16, CLASSES)),
    )  # fmt: skip


def click_inputs(samples: int) -> tuple[Tensor, ...]:
    return (
        torch.randn(samples, 4, dtype=torch.float64),
        torch.randint(0, 40, (samples, 3)),
        torch.randint(0, 30, (samples,)),
    )


def many_tables() -> nn.Module:
    """Tables alike, one with padding, one of another width, one that is looked up in twice."""

    def run(m, fields):
        vectors = [table(fields[:, index]) for index, table in enumerate(m.tables)]
        vectors += [m.padded(fields[:, 4]), m.wide(fields[:, 5]), m.tables[0](fields[:, 6])]
        return m.top(torch.tanh(torch.cat(vectors, 1)))

    return Function(
        run, tables=nn.ModuleList(nn.Embedding(7 + n, 3) for n in range(4)),
        padded=nn.Embedding(6, 3, padding_idx=2), wide=nn.Embedding(6, 5),
        top=nn.Linear(6 * 3 + 5, CLASSES),
    )  # fmt: skip
