"""The plain routes that the benchmarks measure against, written as the published code works.

Gradients of every batch are kept as NumPy arrays and stacked at the end; every edge of a cell runs;
images are NCHW. Written here from the description, for comparison only.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from sigeo.spaces.nasbench201 import EDGES
from sigeo.spaces.nasbench201.cell import CONVOLUTIONS, POOL, SKIP
from sigeo.spaces.nasbench201.network import CellBlock, Network

Batches = Iterable[tuple[Tensor, Tensor]]
Rows = dict[str, list[NDArray[np.float32]]]


class PlainCell(nn.Module):
    """A cell with every edge run, ``none`` as a multiplication by zero."""

    def __init__(self, block: CellBlock):
        super().__init__()
        self.cell, self.edges = block.cell, block.edges

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to the same shape."""
        nodes = [x]
        for target in (1, 2, 3):
            terms = []
            for edge, ((source, to), operation) in enumerate(
                zip(EDGES, self.cell.operations, strict=True)
            ):
                if to != target:
                    continue
                value = nodes[source]
                if operation in CONVOLUTIONS:
                    terms.append(self.edges[str(edge)](F.relu(value)))
                elif operation == POOL:
                    terms.append(F.avg_pool2d(value, 3, 1, 1, count_include_pad=False))
                else:
                    terms.append(value if operation == SKIP else value.mul(0.0))
            nodes.append(sum(terms))
        return nodes[3]


def plain_network(network: Network) -> Network:
    """The same weights, run as published."""
    blocks = [PlainCell(b) if isinstance(b, CellBlock) else b for b in network.blocks]
    return Network(network.stem, blocks, network.head).train()


def layers(model: nn.Module) -> dict[str, nn.Parameter]:
    """Weights of convolutions and linear layers."""
    return {n: m.weight for n, m in model.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))}


def collect(model: nn.Module, rows: Rows) -> None:
    """Keep the gradient of every layer; a dead one, where published code stops, as zeros."""
    for name, weight in layers(model).items():
        grad = torch.zeros_like(weight) if weight.grad is None else weight.grad
        rows.setdefault(name, []).append(grad.detach().cpu().reshape(-1).numpy().copy())


def zico_of(rows: Rows) -> float:
    """The ZiCo score of stored rows."""
    score = 0.0
    for stored in rows.values():
        gradients = np.array(stored)
        std = np.std(gradients, axis=0)
        kept = np.nonzero(std)[0]
        total = np.sum(np.mean(np.abs(gradients), axis=0)[kept] / std[kept])
        score += float(np.log(total)) if total != 0 else 0.0
    return score


def sigeo_of(rows: Rows, weights: dict[str, NDArray[np.float32]]) -> float:
    """SiGeo's ZiCo and Fisher-Rao terms of stored rows, weights 1 and 1."""
    score, inner = 0.0, 0.0
    for name, stored in rows.items():
        gradients = np.array(stored)
        std = np.std(gradients, axis=0)
        kept = np.nonzero(std)[0]
        total = np.sum(np.mean(np.abs(gradients), axis=0)[kept] / std[kept])
        if total != 0:
            score += float(np.log(total))
            inner += abs(float(np.sum(np.sum(gradients, axis=0) * weights[name])))
    return score + 2 * float(np.log(inner + 1e-5))


def passes(model: nn.Module, batches: Batches, *, lr: float, rows: Rows | None = None) -> None:
    """Forward and backward passes, with steps of ``lr`` if not 0; gradients kept if asked."""
    optimizer = torch.optim.SGD(model.parameters(), lr=lr) if lr else None
    for images, labels in batches:
        model.zero_grad(set_to_none=True)
        F.cross_entropy(model(images), labels).backward()
        if optimizer is not None:
            optimizer.step()
        if rows is not None:
            collect(model, rows)
    model.zero_grad(set_to_none=True)


def sigeo(model: nn.Module, batches: Batches) -> float:
    """SiGeo of a model, which is changed."""
    rows: Rows = {}
    passes(model, batches, lr=1.0, rows=rows)
    return sigeo_of(rows, {n: w.detach().reshape(-1).numpy() for n, w in layers(model).items()})
