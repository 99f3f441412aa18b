"""How much of a forward pass equal prefixes of many subnets save, by count."""

from __future__ import annotations

import random
import statistics
from collections import Counter
from typing import Any

from torch import nn
from torch.nn.modules.conv import _ConvNd

from bench import harness
from bench.harness import Times
from sigeo import spaces
from sigeo.spaces.elastic.reuse import prefixes
from sigeo.spaces.nasbench201.cell import CONV_3X3, CONVOLUTIONS, Cell
from sigeo.spaces.nasbench201.network import plan_of

ELASTIC = ("mlp", "mobilenet", "resnet", "transformer")


def shared_prefixes(count: int, cells: int = 15, groups: int = 20) -> float:
    """The share of the convolutions' multiply-adds that equal prefixes of ``count`` subnets save.

    In the forward pass of cells of equal cost: two subnets have the same value at a node where they
    apply the same operations upstream.
    """
    shares = []
    for group in range(groups):
        seen: set[Any] = set()
        paid = total = 0
        rng = random.Random(group)
        for _ in range(count):
            arch = Cell(tuple(rng.randrange(5) for _ in range(6)))
            entry: Any = "input"
            for _ in range(cells):
                nodes: dict[int, Any] = {0: entry}
                for node, inputs in plan_of(arch):
                    terms = []
                    for source, operation, edge in inputs:
                        value = (nodes.get(source), operation, edge)
                        terms.append(value)
                        if operation in CONVOLUTIONS:
                            cost = 9 if operation == CONV_3X3 else 1
                            total += cost
                            if hash(value) not in seen:
                                seen.add(hash(value))
                                paid += cost
                    nodes[node] = hash(tuple(terms))
                entry = hash(("next", nodes.get(3)))
        shares.append(1 - paid / total)
    return statistics.median(shares)


def shared_pieces(space: Any, count: int, groups: int = 5) -> float:
    """The share of all multiply-adds that the layers save which an elastic stack takes over.

    Two subnets have the same value behind a piece where they have equal shapes up to there.
    """
    shares = []
    for group in range(groups):
        rng = random.Random(group)
        archs = [space.sample(rng) for _ in range(count)]
        networks = [space.skeleton(arch) for arch in archs]
        seen: Counter[int] = Counter()
        saved = 0
        for network, numbers in zip(networks, prefixes(networks), strict=True):
            for (name, piece), number in zip(network.named_children(), numbers, strict=True):
                seen[number] += 1
                if seen[number] > 1:
                    saved += sum(
                        space.positions[f"{name}.{inner}".rstrip(".")] * layer.weight.numel()
                        for inner, layer in piece.named_modules()
                        if isinstance(layer, (_ConvNd, nn.Linear))
                    )
        shares.append(saved / sum(space.cost(arch).flops for arch in archs))
    return statistics.median(shares)


def rows() -> list[dict[str, Any]]:
    """Counted, not timed."""
    shape = spaces.InputShape(3, 32, 10)
    shares = [
        (f"K={count}, {what}", share)
        for count in (16, 64, 256)
        for what, share in [
            ("15 cells", shared_prefixes(count)),
            *((name, shared_pieces(spaces.get(name, shape), count)) for name in ELASTIC),
        ]
    ]
    return [
        harness.row(
            "equal prefixes",
            "counted",
            Times((0.0,)),
            shape=what,
            forward_multiply_adds_shared=share,
        )
        for what, share in shares
    ]
