"""Systems that divide a space among several supernets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from sigeo.errors import InputError
from sigeo.fewshot import metrics
from sigeo.fewshot.branching import Branching
from sigeo.fewshot.choice import AnyChoice, BestGroups, InTurn
from sigeo.fewshot.partition import Exact, Exhaustive, Random
from sigeo.fewshot.recipe import Hierarchy, Recipe
from sigeo.fewshot.recipes.registry import recipe
from sigeo.fewshot.splitting import Splitting
from sigeo.spaces import SearchSpace
from sigeo.spaces.nasbench201 import INCOMING

Lengths = Sequence[float]


@recipe("few-shot", "Zhao et al., ICML 2021, section 3")
def few_shot(
    space: SearchSpace[Any],
    *,
    choice: int = 0,
    before: float = 600,
    after: float = 300,
    transfer: bool = True,
) -> Recipe:
    """One sub-supernet an option of one edge, from the weights of a trained supernet.

    Args:
        space: The space.
        choice: The place of the edge.
        before: Length of the supernet's training.
        after: Of each sub-supernet's.
        transfer: Whether sub-supernets start from the supernet's weights.
    """
    splitting = Splitting(
        None,
        Branching.exhaustive(),
        Exhaustive(),
        InTurn((choice,)),
        inherit="always" if transfer else "never",
    )
    return Recipe("", "", after, (before,), splitting)


@recipe("gm-nas", "Hu et al., ICLR 2022, section 3")
def gm_nas(
    space: SearchSpace[Any],
    *,
    repeats: int = 100,
    criterion: str = "between_mean",
    before: Lengths = (20, 20),
    after: float = 50,
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
    return Recipe("", "", after, tuple(before), splitting, metric_batches=(batch, repeats))


@recipe("efs-nas", "arXiv 2412.14678 (AAAI 2025)")
def efs_nas(
    space: SearchSpace[Any],
    *,
    kind: str = "nonlinear_depth",
    groups: Sequence[Sequence[int]] = ((0, 1), (2,), (3,)),
    width: float | None = None,
) -> Recipe:
    """One narrow supernet a group of numbers of nonlinear functions, as many updates for each.

    Args:
        space: The space.
        kind: A kind function of the space.
        groups: Of kinds.
        width: Share of the channels; None for one divided by the number of groups.
    """
    share = 1 / len(groups) if width is None else width
    return Recipe("", "", kinds=(kind, tuple(tuple(group) for group in groups)), width=share)


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
    before: float = 0,
    after: float = 50,
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
        before: Length of the training of each supernet before a cut; 0 for none.
        after: Of the leaves.
    """
    branching = Branching.of_leaves(leaves, factors)
    levels = len(branching.levels)
    splitting = Splitting(
        metrics.get(metric),
        branching,
        Exact(smallest),
        InTurn(tuple(order[:levels])),
        inherit="always" if before else "never",
    )
    lengths = (before,) * levels if before else ()
    return Recipe("", "", after, lengths, splitting, metric_batches=(batch, batches))


@recipe("nas-lid", "He et al., AAAI 2023, sections 3 and 4")
def nas_lid(
    space: SearchSpace[Any],
    *,
    repeats: int = 50,
    k: int = 20,
    compare: str = "correlation",
    criterion: str = "separation",
    before: Lengths = (20, 20, 20, 20),
    after: float = 10,
    batch: int = 128,
) -> Recipe:
    """Edges cut in two where the options' features differ in their dimension.

    Args:
        space: The space.
        repeats: Batches and paths that features are compared on.
        k: Neighbours of the estimate.
        compare: "correlation" of profiles, or "cosine" as published.
        criterion: Of the choice of an edge; ``most_alike`` is the published code's.
        before: Length of training before each cut.
        after: Of the leaves.
        batch: Images of a batch that features are compared on.
    """
    splitting = Splitting(
        metrics.LID(repeats, k, compare),  # type: ignore[arg-type]
        Branching((2,) * len(before)),
        Exact(2),
        BestGroups(criterion),
    )
    return Recipe("", "", after, tuple(before), splitting, metric_batches=(batch, repeats))


@recipe("random-split", "baseline: the schedule of gm-nas, edges and groups drawn")
def random_split(
    space: SearchSpace[Any],
    *,
    before: Lengths = (20, 20),
    after: float = 50,
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
    return Recipe("", "", after, tuple(before), splitting)


@recipe("hep-nas", "arXiv 2412.10723 (AAAI 2025), section 3")
def hep_nas(
    space: SearchSpace[Any],
    *,
    repeats: int = 100,
    before: Lengths = (10, 10, 10),
    children: float = 10,
    after: float = 10,
    teachers: Literal["both", "parent", "siblings", "none"] = "both",
    rounds: int = 10,
    judged: int = 16,
    smallest: int = 2,
    batch: int = 64,
) -> Recipe:
    """All edges into a node cut at once, parts that learn from each other, the best one kept.

    Args:
        space: NAS-Bench-201.
        repeats: Batches and paths that gradients are compared on.
        before: Length of training before the cut of each node's edges.
        children: Of each part, before one is kept.
        after: Of the last part that is kept.
        teachers: Who a part learns from beside the labels.
        rounds: Turns in which the parts train.
        judged: Paths whose mean validation accuracy a part is judged by.
        smallest: Options of a group at least.
        batch: Images of a batch that gradients are compared on.

    Raises:
        InputError: Another space, whose hierarchies are not known.
    """
    if space.name != "nasbench201":
        raise InputError(f"recipe hep-nas: knows the hierarchies of nasbench201, got {space.name}")
    hierarchy = Hierarchy(
        INCOMING,
        metrics.GradientMatching(repeats),
        Exact(smallest),
        children,
        teachers,
        rounds,
        judged,
    )
    return Recipe(
        "", "", after, tuple(before), hierarchy=hierarchy, metric_batches=(batch, repeats)
    )
