"""Narrowing: all choices of a hierarchy are split at once and one of the parts is kept.

HEP-NAS (arXiv 2412.10723, AAAI 2025) takes the edges that enter one node for a hierarchy, cuts each
in two, and keeps the best of all combinations by validation accuracy. With a table in the place of
that accuracy this says how often the best architecture can survive at all.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

import numpy as np

from sigeo.capture import Batches
from sigeo.errors import InputError
from sigeo.fewshot.known import Known
from sigeo.fewshot.metrics import Metric, Subject
from sigeo.fewshot.metrics.base import compared
from sigeo.fewshot.partition import Partitioner, grouped
from sigeo.fewshot.plan import Cut, Node, joint
from sigeo.kinds import named_arguments
from sigeo.spaces import Product, Supernet

A = TypeVar("A")


@dataclass(frozen=True)
class Stage(Generic[A]):
    """One level of a narrowing.

    Attributes:
        node: The region before it, with the combinations as leaves.
        kept: The number of the leaf that is kept.
        region: That leaf's.
        best_rank: Place in the whole table of the best architecture that is left, 1 for the best.
        regret: What the table's best has more than it.
    """

    node: Node[A]
    kept: int
    region: Product[A]
    best_rank: int
    regret: float


@named_arguments("hierarchy_cuts")
def hierarchy_cuts(
    region: Product[A],
    places: Sequence[int],
    metric: Metric,
    partitioner: Partitioner,
    *,
    seed: int | str = 0,
    supernet: Supernet[A] | None = None,
    batches: Batches | None = None,
) -> list[Cut]:
    """Cut each choice of a hierarchy in two, all measured in one region with one supernet.

    Args:
        region: The region.
        places: Of the choices; those with one option left are not cut.
        metric: Compares options.
        partitioner: Groups them.
        seed: Of paths and draws.
        supernet: The weights, where the metric needs them.
        batches: What it measures on.
    """
    cuts = []
    for place in places:
        options = region.allowed[place]
        if len(options) < 2:
            continue
        relation = compared(metric, Subject(region, place, seed, supernet, batches))
        found = grouped(partitioner, relation, 2, random.Random(f"{seed}/{place}/partition"))
        cuts.append(Cut(place, tuple(tuple(options[i] for i in group) for group in found)))
    return cuts


@named_arguments("narrow_by_table")
def narrow_by_table(
    known: Known,
    hierarchies: Sequence[Sequence[int]],
    metric: Metric,
    partitioner: Partitioner,
    *,
    keep: Literal["mean", "max"] = "mean",
    seed: int | str = 0,
    supernet: Supernet[Any] | None = None,
    batches: Batches | None = None,
) -> list[Stage[Any]]:
    """Narrow a space hierarchy by hierarchy, keeping what a table says is best.

    Args:
        known: The table.
        hierarchies: Places of choices, level by level; `sigeo.spaces.nasbench201.INCOMING`.
        metric: Compares options.
        partitioner: Groups them.
        keep: What a part is judged by: "mean" or "max" of its known architectures.
        seed: Of paths and draws.
        supernet: The weights, where the metric needs them; they stay as they are.
        batches: What it measures on.

    Returns:
        A stage a level. The best architecture survives if the last one's ``best_rank`` is 1.

    Raises:
        InputError: An unknown way to judge, or a table that knows none of the parts.
    """
    if keep not in ("mean", "max"):
        raise InputError(f"narrowing: keep must be mean or max, got {keep!r}")
    region: Product[Any] = Product.whole(known.space)
    stages: list[Stage[Any]] = []
    for level, places in enumerate(hierarchies):
        cuts = hierarchy_cuts(
            region,
            places,
            metric,
            partitioner,
            seed=f"{seed}/{level}",
            supernet=supernet,
            batches=batches,
        )
        node = joint(region, cuts)
        parts = [leaf.region for leaf in node.leaves()]
        values = [_judged(known, part, keep) for part in parts]
        kept = max(range(len(parts)), key=lambda leaf: (values[leaf], -leaf))
        if not np.isfinite(values[kept]):
            raise InputError(f"narrowing: the table knows no architecture of level {level}")
        region = parts[kept]  # type: ignore[assignment]
        best = float(known.values[known.inside(region)].max())
        rank = 1 + int((known.values > best).sum())
        stages.append(Stage(node, kept, region, rank, float(known.values.max()) - best))
    return stages


def _judged(known: Known, part: Any, keep: str) -> float:
    values = known.values[known.inside(part)]
    if not len(values):
        return -np.inf
    return float(values.mean() if keep == "mean" else values.max())
