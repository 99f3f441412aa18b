"""What it costs to divide a space, in processed images, beside the training."""

from __future__ import annotations

from typing import Any

from sigeo.capture import Batches
from sigeo.fewshot.branching import visits
from sigeo.fewshot.metrics import Metric, Subject
from sigeo.fewshot.plan import Plan
from sigeo.fewshot.recipe import Recipe
from sigeo.fewshot.splitting import Splitting
from sigeo.fewshot.study import FORWARD_SHARE, Study
from sigeo.spaces import Product
from sigeo.supernet import Budget


def processed(cost: Budget) -> float:
    """Processed images; those that only go forward are a third."""
    return cost.trained + FORWARD_SHARE * cost.evaluated


def at_most(recipe: Recipe, study: Study, batches: Batches | None) -> float:
    """Processed images that comparing options and parts takes, at most.

    Args:
        recipe: The system.
        study: Its ground.
        batches: What the metric measures on.
    """
    space = study.space
    region: Product[Any] = Product.whole(space)

    def cost(metric: Metric, place: int) -> float:
        return processed(metric.cost(Subject(region, place, 0, None, batches)))

    total = 0.0
    how = recipe.splitting
    if how is not None and how.metric is not None and how.compares:
        # The dearest ones, as it is not known which choices are left on a level.
        metric = how.metric
        costs = sorted((cost(metric, p) for p in range(len(space.choices))), reverse=True)
        for level, nodes in enumerate(recipe.nodes(space)[:-1]):
            left = len(costs) - (0 if how.again else level)
            total += nodes * sum(costs[: left if how.choice.compares else 1])
    if recipe.hierarchy is not None:
        judged = FORWARD_SHARE * recipe.hierarchy.judged * study.held_out
        for places in recipe.hierarchy.levels:
            total += sum(cost(recipe.hierarchy.metric, place) for place in places)
            total += 2 ** len(places) * judged
    return total


def of_plan(how: Splitting, plan: Plan[Any], batches: Batches | None) -> Budget:
    """What the metric took for the cuts of a plan.

    Args:
        how: The rules that made the plan.
        plan: Whose cuts were measured, all of them.
        batches: What the metric measured on.
    """
    total = Budget()
    if how.metric is None or not how.compares:
        return total
    for visit in visits(how.branching, plan.root):
        node = visit.node
        if visit.factor == 1:
            continue
        assert node.cut is not None
        region: Any = node.region
        compared = how.choice.compares
        looked_at = how.left(region, visit.factors, visit.used) if compared else [int(node.cut.by)]
        for place in looked_at:
            total += how.metric.cost(Subject(region, place, 0, None, batches))
    return total
