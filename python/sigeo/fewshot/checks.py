"""Whether a recipe can be carried out, as far as that is known before anything is trained."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

from sigeo.errors import InputError
from sigeo.fewshot.choice import is_connected
from sigeo.fewshot.metrics import Subject
from sigeo.fewshot.metrics.base import check as check_metric
from sigeo.fewshot.plan import split_by_kind
from sigeo.fewshot.recipe import Ground, Hierarchy, Recipe
from sigeo.spaces import Product, SearchSpace
from sigeo.supernet.samplers import Stateless

if TYPE_CHECKING:
    from sigeo.fewshot.develop import Development

_PARTS = 2000
"""Smallest parts of a level that are looked at: all 1,000 of three edges of NAS-Bench-201."""


def check_budget(work: Development) -> None:
    """Check the budget.

    Raises:
        InputError: It does not pay for the recipe, or for as many passes as weights are kept of.
    """
    recipe, study = work.recipe, work.study
    if study.budget < work.least:
        compared = ""
        if work.overhead:
            compared = f", of which comparing options takes {work.overhead:,.0f}{fewer(recipe)}"
        raise InputError(
            f"{recipe.name}: needs a budget of at least {work.least:,} processed images"
            f"{compared}, got {study.budget:,}"
        )
    if study.keep > 1:
        if work.selection is not None:
            raise InputError(
                f"{recipe.name}: known selects one checkpoint, so keep must be 1, got {study.keep}"
            )
        _check_passes(work)


def fewer(recipe: Recipe) -> str:
    """How a recipe that compares options by repeated passes can be made to take less."""
    for name in ("repeats", "draws"):
        number = recipe.options.get(name) or 1
        if number > 1:
            return f" (fewer {name} than {number} take less)"
    return ""


def check_choices(recipe: Recipe, space: SearchSpace[Any]) -> None:
    """Check the cuts of a recipe on the choices of a space; neither weights nor images matter.

    Raises:
        InputError: The choices are not cut so.
    """
    region: Product[Any] = Product.whole(space)
    if recipe.splitting is not None:
        try:
            recipe.splitting.check_cuts(region)
        except InputError as error:
            raise InputError(f"{recipe.name}: {error}") from None
    elif recipe.hierarchy is not None:
        cut = {place for level in recipe.hierarchy.levels for place in level}
        for options in {len(region.allowed[place]) for place in cut & set(region.open())}:
            recipe.hierarchy.partitioner.check(options, 2)
        try:
            _check_parts(recipe.hierarchy, region)
        except InputError as error:
            raise InputError(f"{recipe.name}: {error}") from None
    elif recipe.kinds is not None:
        split_by_kind(space, *recipe.kinds)


def _check_parts(how: Hierarchy, region: Product[Any]) -> None:
    """Check the smallest parts of each level, of a partitioner that says how small its groups are.

    Raises:
        InputError: One may hold no network whose output depends on its input, which is noticed else
            when the part is to be trained.
    """
    smallest = getattr(how.partitioner, "smallest", None)
    if smallest is None:
        return
    choices = region.space.choices
    for level, places in enumerate(how.levels):
        cut = [place for place in places if place in region.open()]
        groups = [
            itertools.combinations(options, min(smallest, len(options) // 2))
            for options in (region.allowed[place] for place in cut)
        ]
        for kept in itertools.islice(itertools.product(*groups), _PARTS):
            part = region
            for place, options in zip(cut, kept, strict=True):
                part = part.limited(place, options)
            if is_connected(part):
                continue
            left = ", ".join(
                f"{choice.name} {'/'.join(str(choice.options[o]) for o in options)}"
                for choice, options in zip((choices[p] for p in cut), kept, strict=True)
            )
            raise InputError(
                f"hierarchy: groups of {smallest} option(s) on level {level} may leave a part "
                f"in which no output depends on the input ({left}); a larger smallest of the "
                "partitioner keeps more options together"
            )


def check_space(work: Development) -> None:
    """Check what does not depend on the budget: options of the recipe, and the space.

    Raises:
        InputError: One of them does not fit.
    """
    recipe, study, space = work.recipe, work.study, work.study.space
    supernet = work.drawn()
    check_choices(recipe, space)
    region: Product[Any] = Product.whole(space)
    sampler = recipe.paths.sampler(Ground(space, region, 0, supernet, work.validation, 1))
    if isinstance(sampler, Stateless):  # others may pass images through paths to choose them
        drawn = len(sampler.paths(0))
        if drawn > recipe.paths.trained:
            raise InputError(
                f"{recipe.name}: paths: a step of the sampler has {drawn}, expected at most "
                f"trained, {recipe.paths.trained}, which is what the budget pays for"
            )
    recipe.objective(study, 0).start(supernet)
    if recipe.splitting is not None:
        try:
            recipe.splitting.check(region, supernet, work.batches)
        except InputError as error:
            raise InputError(f"{recipe.name}: {error}") from None
    elif recipe.hierarchy is not None:
        subject = Subject(region, region.open()[0], 0, supernet, work.batches)
        check_metric(recipe.hierarchy.metric, subject)
    elif recipe.kinds is not None and recipe.joint is not None:
        recipe.joint(supernet, split_by_kind(space, *recipe.kinds).leaves)


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
    passes = study.training(steps, keep=1).passes
    if passes < study.keep:
        budget = _budget_of_passes(work)
        raise InputError(
            f"{recipe.name}: keep must be at most {passes}, the passes over the images of a "
            f"training at the end, got {study.keep}; a budget of {budget:,} processed images, "
            f"{-(-budget // study.batch_size):,} steps of {study.batch_size}, would do"
        )


def _budget_of_passes(work: Development) -> int:
    """The smallest budget whose trainings at the end begin as many passes as weights are kept."""
    recipe, study = work.recipe, work.study
    a_pass = study.training(len(study.data.train), keep=1).steps_per_epoch
    images = work.processed((study.keep - 1) * a_pass + 1)
    return max(work.least, work.budget_of(images / recipe.after))
