"""Systems that divide a space among several supernets."""

from __future__ import annotations

import random
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

from sigeo.errors import InputError
from sigeo.fewshot import metrics
from sigeo.fewshot import partition as partitions
from sigeo.fewshot.branching import Branching
from sigeo.fewshot.choice import AnyChoice, BestGroups, InTurn
from sigeo.fewshot.copies import CumulativeCopies, cumulative_parts
from sigeo.fewshot.partition import Exact, Exhaustive, Random
from sigeo.fewshot.recipe import Hierarchy, Recipe
from sigeo.fewshot.recipes.one_shot import balanced_paths, kind_groups, norm_options
from sigeo.fewshot.recipes.registry import recipe
from sigeo.fewshot.splitting import Splitting
from sigeo.spaces import Region, SearchSpace, Supernet
from sigeo.spaces.nasbench201 import INCOMING, nonlinear_depth
from sigeo.supernet import RoutedSupernet

Lengths = Sequence[float]
_OF_NAS_LID = ("exact", "mixture", "spectral", "stoer_wagner")


@recipe("few-shot", "Zhao et al., ICML 2021, section 3")
def few_shot(
    space: SearchSpace[Any],
    *,
    choice: int = 0,
    before: float = 600.0,
    after: float = 300.0,
    transfer: bool = True,
    affine: bool = True,
) -> Recipe:
    """One sub-supernet an option of one edge, from the weights of a trained supernet.

    Args:
        space: The space.
        choice: The place of the edge.
        before: Length of the supernet's training.
        after: Of each sub-supernet's.
        transfer: Whether sub-supernets start from the supernet's weights.
        affine: Whether batch norm has scale and shift (published for NAS-Bench-201: not).
    """
    splitting = Splitting(
        None,
        Branching.exhaustive(),
        Exhaustive(),
        InTurn((choice,)),
        inherit="always" if transfer else "never",
    )
    return Recipe(after=after, before=(before,), splitting=splitting, supernet=norm_options(affine))


@recipe("gm-nas", "Hu et al., ICLR 2022, section 3")
def gm_nas(
    space: SearchSpace[Any],
    *,
    repeats: int = 100,
    criterion: str = "between_mean",
    before: Lengths = (20.0, 20.0),
    after: float = 50.0,
    restart: bool = False,
    smallest: int = 2,
    batch: int = 64,
) -> Recipe:
    """Edges cut in two where gradients of shared weights disagree.

    Args:
        space: The space.
        repeats: Batches and paths that gradients are compared on.
        criterion: Of the choice of an edge; ``between_sum`` and ``within_sum`` are the published
            codes'.
        before: Length of training before each cut (with random paths as published; 15 and 15 with
            architecture weights).
        after: Of the leaves (30 with architecture weights).
        restart: Whether the leaves start from weights as drawn, as with architecture weights.
        smallest: Options of a group at least.
        batch: Images of a batch that gradients are compared on.
    """
    splitting = Splitting(
        metrics.GradientMatching(repeats),
        Branching((2,) * len(before)),
        Exact(smallest),
        BestGroups(criterion),
        inherit="inner" if restart else "always",
    )
    return Recipe(
        after=after,
        before=tuple(before),
        splitting=splitting,
        metric_batches=(batch, repeats),
    )


@recipe("efs-nas", "arXiv 2412.14678 (AAAI 2025)")
def efs_nas(
    space: SearchSpace[Any],
    *,
    kind: str = "nonlinear_depth",
    groups: Sequence[Sequence[int]] = ((0, 1), (2,), (3,)),
    width: float | None = None,
    route: Literal["total", "cumulative"] = "total",
    shared: Sequence[str] = (),
    affine: bool = True,
) -> Recipe:
    """A narrow supernet for each number of nonlinear functions, as many updates for each.

    Args:
        space: The space.
        kind: A kind function of the space.
        groups: All kinds, in groups.
        width: Share of the channels; None for one divided by the number of groups.
        route: "total", a supernet a group; "cumulative", as the published code for NAS-Bench-201:
            copies of cells, selected by the running number of functions (`CumulativeCopies`).
        shared: Submodules that the supernets have in common with route "total", such as "stem" and
            "head"; a step then trains a path of each group.
        affine: Whether batch norm has scale and shift (published for NAS-Bench-201: not).

    Raises:
        InputError: Cumulative routes of another space or kind, or with ``shared``; no such kind
            function, or groups that do not hold each kind once.
    """
    parts = kind_groups(space, kind, groups)
    share = 1 / len(parts) if width is None else width
    norms = norm_options(affine)
    if not all(isinstance(name, str) for name in shared):
        raise InputError(f"shared must be names of submodules, got {list(shared)}")
    if route == "cumulative":
        if shared:
            raise InputError("cumulative routes say what is shared, got shared")
        return replace(_cumulative(space, kind, parts, share), supernet=norms)
    if not shared:
        return Recipe(kinds=(kind, parts), width=share, supernet=norms)

    def joint(supernet: Supernet[Any], regions: Sequence[Region[Any]]) -> Sequence[Supernet[Any]]:
        made: Any = RoutedSupernet.of(supernet, regions, share=shared).parts
        return list(made)

    paths = balanced_paths(space, kind, parts, "each")
    return Recipe(kinds=(kind, parts), width=share, supernet=norms, joint=joint, paths=paths)


def _cumulative(
    space: SearchSpace[Any], kind: str, groups: tuple[tuple[int, ...], ...], width: float
) -> Recipe:
    if space.name != "nasbench201" or kind != "nonlinear_depth":
        raise InputError(
            "cumulative routes are those of nonlinear_depth on nasbench201, "
            f"got {kind} on {space.name}"
        )
    cells = 3 * int(space.describe()["cells"])
    published = {2: (25,), 3: (15, 20), 4: (10, 20, 30)}  # of 15 cells, by the number of copies
    if len(groups) not in published:
        raise InputError(f"cumulative routes have thresholds for 2 to 4 groups, got {len(groups)}")
    thresholds = tuple(max(1, round(limit * cells / 15)) for limit in published[len(groups)])
    shared = 0 if len(groups) == 4 else round(cells / 3)
    copies = CumulativeCopies(nonlinear_depth, cells, thresholds, shared)
    kinds = tuple((depth,) for group in groups for depth in group)

    def joint(supernet: Supernet[Any], regions: Sequence[Region[Any]]) -> Sequence[Supernet[Any]]:
        one_of_each = [region.sample(random.Random(0)) for region in regions]
        parts: Any = cumulative_parts(supernet, one_of_each, copies)  # type: ignore[arg-type]
        return list(parts)

    paths = balanced_paths(space, kind, groups, "one")
    return Recipe(kinds=(kind, kinds), width=width, joint=joint, paths=paths)


@recipe("metric-driven", "Ly-Manson et al., AutoML 2024")
def metric_driven(
    space: SearchSpace[Any],
    *,
    metric: str = "gradient_matching_logits",
    leaves: int = 8,
    factors: Sequence[int] = (2,),
    order: Sequence[int] = (0, 1, 2),
    smallest: int = 1,
    batch: int = 16,
    batches: int = 4,
    draws: int | None = None,
    before: float = 0.0,
    after: float = 50.0,
) -> Recipe:
    """Given edges cut where a metric of weights as drawn says, sub-supernets from scratch.

    Args:
        space: The space.
        metric: Its name, or a proxy's.
        leaves: Sub-supernets.
        factors: Of the tree, see `Branching.of_leaves`.
        order: The edge of each level.
        smallest: Options of a group at least.
        batch: Images of a batch that the metric measures on.
        batches: How many (proxies of several batches need more than one).
        draws: Of the other edges' operations, over which the metric is averaged (published: one
            measurement, the other edges mixtures); None for the metric's own number, 8 of a proxy,
            1 of ``gradient_matching_logits``.
        before: Length of the training of each supernet before a cut; 0 for none.
        after: Of the leaves.

    Raises:
        InputError: More leaves than cuts of these edges by these factors make, no draw, or draws of
            a metric without networks.
    """
    if draws is not None and draws < 1:
        raise InputError(f"draws must be at least 1, got {draws}")
    if draws is not None and metric == "random":
        raise InputError("draws has no effect with the metric random, which compares no networks")
    branching = Branching.of_leaves(leaves, factors)
    most = _most_leaves(space, factors, order)
    if leaves > most:
        raise InputError(
            f"leaves must be at most {most} with factors {list(factors)} and the choices in order "
            f"{list(order)}, got {leaves}"
        )
    levels = len(branching.levels)
    splitting = Splitting(
        metrics.get(metric, **({} if draws is None else {"repeats": draws})),
        branching,
        Exact(smallest),
        InTurn(tuple(order[:levels])),
        inherit="always" if before else "never",
    )
    lengths = (before,) * levels if before else ()
    return Recipe(
        after=after,
        before=lengths,
        splitting=splitting,
        metric_batches=(batch, batches),
    )


def _most_leaves(space: SearchSpace[Any], factors: Sequence[int], order: Sequence[int]) -> int:
    """Leaves of the largest tree of `Branching.of_leaves` that the choices have the options for."""
    ascending = sorted(factors)
    nodes = 1
    for level, place in enumerate(order):
        factor = ascending[min(level, len(ascending) - 1)]
        if not 0 <= place < len(space.choices):
            return sys.maxsize  # the choice itself is refused, whatever the number
        options = len(space.choices[place].options)
        if options < factor:
            return nodes * options  # the last level's factors may be smaller
        nodes *= factor
    return nodes


@recipe("nas-lid", "He et al., AAAI 2023, sections 3 and 4")
def nas_lid(
    space: SearchSpace[Any],
    *,
    repeats: int = 50,
    k: int = 20,
    compare: str = "correlation",
    partition: str = "exact",
    criterion: str = "separation",
    before: Lengths = (20.0, 20.0, 20.0, 20.0),
    after: float = 10.0,
    batch: int = 128,
) -> Recipe:
    """Edges cut in two where the options' features differ in their dimension.

    Args:
        space: The space.
        repeats: Batches and paths that features are compared on.
        k: Neighbours of the estimate.
        compare: "correlation" of profiles, or "cosine" as published.
        partition: "exact", the cut with the most similarity within two sides, of 2 options at
            least; or another one of the published code: "mixture", "spectral" or "stoer_wagner".
        criterion: Of the choice of an edge; ``most_alike`` is the published code's with "exact",
            ``within_sum`` its description's and that of the code with "mixture" and "spectral".
        before: Length of training before each cut (published: until epoch 20, 40, 60 and 80, which
            are taken to count from the beginning).
        after: Of the leaves.
        batch: Images of a batch that features are compared on, more than ``k``.

    Raises:
        InputError: A number out of its range.
    """
    if batch <= k:
        raise InputError(f"batch must be more than k = {k} neighbours, got {batch}")
    if partition not in _OF_NAS_LID:
        raise InputError(f"partition must be one of {', '.join(_OF_NAS_LID)}, got {partition!r}")
    sized = {"smallest": 2} if partition == "exact" else {}
    splitting = Splitting(
        metrics.LID(repeats, k, compare),  # type: ignore[arg-type]
        Branching((2,) * len(before)),
        partitions.get(partition, **sized),
        BestGroups(criterion),
    )
    return Recipe(
        after=after,
        before=tuple(before),
        splitting=splitting,
        metric_batches=(batch, repeats),
    )


@recipe("random-split", "baseline: the schedule of gm-nas, edges and groups drawn")
def random_split(
    space: SearchSpace[Any],
    *,
    before: Lengths = (20.0, 20.0),
    after: float = 50.0,
    smallest: int = 2,
) -> Recipe:
    """Edges and groups drawn at random.

    Args:
        space: The space.
        before: Length of training before each cut.
        after: Of the leaves.
        smallest: Options of a group at least.
    """
    splitting = Splitting(None, Branching((2,) * len(before)), Random(smallest), AnyChoice())
    return Recipe(after=after, before=tuple(before), splitting=splitting)


@recipe("hep-nas", "arXiv 2412.10723 (AAAI 2025), section 3")
def hep_nas(
    space: SearchSpace[Any],
    *,
    repeats: int = 100,
    before: Lengths = (10.0, 10.0, 10.0),
    children: float = 10.0,
    after: float = 10.0,
    restart: bool = False,
    teachers: Literal["both", "parent", "siblings", "none"] = "both",
    rounds: int = 10,
    judged: int = 16,
    smallest: int = 2,
    batch: int = 64,
) -> Recipe:
    """All edges into a node cut at once, parts that learn from each other, the best one kept.

    The parts of a level train on the same stretch of the cosine of step sizes as their parent did
    before its cut, as published, so the step size of the part that is kept goes back to that
    stretch's beginning. Siblings teach by paths of their own, one drawn a step, as none of them
    holds the student's path.

    Args:
        space: NAS-Bench-201.
        repeats: Batches and paths that gradients are compared on.
        before: Length of training before the cut of each node's edges.
        children: Of each part, before one is kept (published: 10 or 15; the code's default is 5).
        after: Of the last part that is kept.
        restart: Whether parts start from weights as drawn, not from their parent's.
        teachers: Who a part learns from beside the labels.
        rounds: Turns in which the parts train.
        judged: Paths whose mean validation accuracy a part is judged by.
        smallest: Options of a group at least, 2 or more.
        batch: Images of a batch that gradients are compared on.

    Raises:
        InputError: Another space, whose hierarchies are not known, or groups of one option.
    """
    if smallest < 2:
        raise InputError(
            "smallest must be at least 2, or one part may have none alone on all edges into the "
            f"last node, got {smallest}"
        )
    if space.name != "nasbench201":
        raise InputError(f"knows the hierarchies of nasbench201 alone, got {space.name}")
    hierarchy = Hierarchy(
        INCOMING,
        metrics.GradientMatching(repeats),
        Exact(smallest),
        children,
        teachers,
        rounds,
        judged,
        restart,
    )
    return Recipe(
        after=after,
        before=tuple(before),
        hierarchy=hierarchy,
        metric_batches=(batch, repeats),
    )
