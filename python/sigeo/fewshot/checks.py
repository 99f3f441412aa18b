"""Whether a recipe can be carried out, as far as that is known before anything is trained."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

from sigeo.errors import InputError
from sigeo.fewshot.recipe import Ground
from sigeo.fewshot.splitting import Splitting
from sigeo.spaces import Product

if TYPE_CHECKING:
    from sigeo.fewshot.develop import Development


def check(work: Development) -> None:
    """Check the budget, the options of paths and objective, and the choices that are split.

    Raises:
        InputError: The study's budget does not pay for the recipe, or an option does not fit.
    """
    recipe, study, space = work.recipe, work.study, work.study.space
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
    supernet = study.supernet(0, width=recipe.width)
    region: Product[Any] = Product.whole(space)
    recipe.paths.sampler(Ground(space, region, 0, supernet, work.validation, 1))
    recipe.objective(study, 0).start(supernet)
    if recipe.splitting is not None:
        _check_choices(work, recipe.splitting)


def _check_passes(work: Development) -> None:
    """Whether the trainings at the end have as many passes as weights are kept of.

    Raises:
        InputError: They have not.
    """
    recipe, study = work.recipe, work.study
    passes = 0
    if recipe.after > 0:
        steps = work.steps_of(work.unit * recipe.after, "the last training")
        passes = study.training(steps).passes
    if passes < study.keep:
        raise InputError(
            f"{recipe.name}: keep must be at most {max(1, passes)}, the passes over the images of "
            f"a training at the end, got {study.keep}"
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
