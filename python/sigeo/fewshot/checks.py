"""Whether a recipe can be carried out, as far as that is known before anything is trained."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

from sigeo.errors import InputError
from sigeo.fewshot.metrics import Subject
from sigeo.fewshot.metrics.base import check as check_metric
from sigeo.fewshot.recipe import Ground
from sigeo.fewshot.splitting import Splitting
from sigeo.spaces import Product

if TYPE_CHECKING:
    from sigeo.fewshot.develop import Development


def check_budget(work: Development) -> None:
    """Check the budget.

    Raises:
        InputError: It does not pay for the recipe, or for as many passes as weights are kept of.
    """
    recipe, study = work.recipe, work.study
    if study.budget < work.least:
        compared = (
            f", of which comparing options takes {work.overhead:,.0f}" if work.overhead else ""
        )
        raise InputError(
            f"{recipe.name}: needs a budget of at least {work.least:,} processed images"
            f"{compared}, got {study.budget:,}"
        )
    if study.keep > 1:
        _check_passes(work)


def check_space(work: Development) -> None:
    """Check what does not depend on the budget: options of the recipe, and the space.

    Raises:
        InputError: One of them does not fit.
    """
    recipe, study, space = work.recipe, work.study, work.study.space
    supernet = study.supernet(0, width=recipe.width)
    region: Product[Any] = Product.whole(space)
    recipe.paths.sampler(Ground(space, region, 0, supernet, work.validation, 1))
    recipe.objective(study, 0).start(supernet)
    how, metric = recipe.splitting, None
    if how is not None:
        _check_choices(work, how)
        metric = how.metric if how.compares else None
    elif recipe.hierarchy is not None:
        metric = recipe.hierarchy.metric
    if metric is not None and region.open():
        subject = Subject(region, region.open()[0], 0, supernet, work.batches)
        check_metric(metric, subject)


def _check_passes(work: Development) -> None:
    """Whether the trainings at the end have as many passes as weights are kept of.

    Raises:
        InputError: They have not.
    """
    recipe, study = work.recipe, work.study
    if recipe.after == 0:
        raise InputError(
            f"{recipe.name}: has no training at the end, so keep must be 1, got {study.keep}"
        )
    steps = work.steps_of(work.unit * recipe.after, "the last training")
    passes = study.training(steps).passes
    if passes < study.keep:
        raise InputError(
            f"{recipe.name}: keep must be at most {passes}, the passes over the images of a "
            f"training at the end, got {study.keep}"
        )


def _check_choices(work: Development, how: Splitting) -> None:
    """Whether there is a choice to split on every level.

    Raises:
        InputError: There is none.
    """
    levels = len(how.branching.levels)
    left = list(range(len(work.study.space.choices)))
    for level in range(levels):
        if not left:
            raise InputError(f"{work.recipe.name}: {levels} levels need as many choices")
        place = how.choice.places(left, level, random.Random(0))[0]
        if not how.again:
            left.remove(place)
