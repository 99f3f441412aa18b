"""Systems of one supernet for the whole space, which differ in the paths that they train."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch

from sigeo.data import Augmentation
from sigeo.errors import InputError
from sigeo.fewshot.kind_functions import kind_function
from sigeo.fewshot.recipe import Ground, Paths, Recipe
from sigeo.fewshot.recipes.registry import recipe
from sigeo.fewshot.study import Study
from sigeo.spaces import Kind, SearchSpace
from sigeo.supernet import (
    Balanced,
    CrossPath,
    Disjoint,
    Fair,
    Greedy,
    Sampler,
    Uniform,
    ValidationLoss,
)

Groups = Sequence[Sequence[int]]


@recipe("one-shot", "Guo et al., ECCV 2020 (SPOS), section 3.2")
def one_shot(
    space: SearchSpace[Any],
    *,
    over: Literal["architectures", "operations"] = "architectures",
    paths: int = 1,
    width: float = 1.0,
    affine: bool = True,
) -> Recipe:
    """One random path a step.

    Args:
        space: The space.
        over: What is equally likely, see `sigeo.supernet.Uniform`.
        paths: Of a step.
        width: Share of the channels.
        affine: Whether batch norm has scale and shift (advised against on NAS-Bench-201 by
            arXiv 2110.01154).
    """

    def sampler(ground: Ground) -> Sampler[Any]:
        return Uniform(ground.space, seed=ground.seed, region=ground.region, paths=paths, over=over)

    return Recipe(paths=Paths(sampler, trained=paths), width=width, supernet=norm_options(affine))


@recipe("fair", "Chu et al., ICCV 2021 (FairNAS), section 3.3")
def fair(space: SearchSpace[Any], *, width: float = 1.0, affine: bool = True) -> Recipe:
    """Every option of every choice once a step, gradients summed.

    Args:
        space: The space.
        width: Share of the channels.
        affine: As of `one_shot`.
    """
    count = max(len(choice.options) for choice in space.choices)

    def sampler(ground: Ground) -> Sampler[Any]:
        return Fair(ground.space, seed=ground.seed, region=ground.region)  # type: ignore[arg-type]

    return Recipe(paths=Paths(sampler, trained=count), width=width, supernet=norm_options(affine))


@recipe("balanced", "arXiv 2412.14678 (EFS-NAS, AAAI 2025), supernet-balanced sampling")
def balanced(
    space: SearchSpace[Any],
    *,
    kind: str = "nonlinear_depth",
    groups: Groups = ((0, 1), (2,), (3,)),
    form: Literal["one", "each"] = "one",
    width: float = 1.0,
    affine: bool = True,
) -> Recipe:
    """One supernet, as many updates for each group of kinds.

    Args:
        space: The space.
        kind: A kind function of the space.
        groups: All kinds, in groups.
        form: One path of one group a step, as published for NAS-Bench-201, or one of each.
        width: Share of the channels.
        affine: Whether batch norm has scale and shift (published for NAS-Bench-201: not).

    Raises:
        InputError: No such kind function, or groups that do not hold each kind once.
    """
    paths = balanced_paths(space, kind, groups, form)
    return Recipe(paths=paths, width=width, supernet=norm_options(affine))


def norm_options(affine: bool) -> dict[str, Any]:
    """Options of a space's supernet whose batch norm has scale and shift, or has not."""
    # Unsaid where it has: that is the default, and not every space's supernet can go without.
    return {} if affine else {"affine": False}


def balanced_paths(
    space: SearchSpace[Any], kind: str, groups: Groups, form: Literal["one", "each"]
) -> Paths:
    """A path of each group of kinds a step, or of one of them, drawn.

    Raises:
        InputError: No such kind function, or groups that do not hold each kind once.
    """
    function = kind_function(space, kind).function
    parts = kind_groups(space, kind, groups)
    regions = [Kind(space, function, frozenset(group)) for group in parts]

    def sampler(ground: Ground) -> Sampler[Any]:
        return Balanced(ground.space, regions, seed=ground.seed, form=form)

    return Paths(sampler, trained=len(groups) if form == "each" else 1)


def kind_groups(space: SearchSpace[Any], kind: str, groups: Groups) -> tuple[tuple[int, ...], ...]:
    """Groups of kinds, checked.

    Raises:
        InputError: No such kind function, or groups that do not hold each kind once.
    """
    kind_function(space, kind).check(groups)
    return tuple(map(tuple, groups))


@recipe("greedy", "You et al., CVPR 2020 (GreedyNAS), sections 3.1 to 3.3")
def greedy(
    space: SearchSpace[Any],
    *,
    sampled: int = 10,
    kept: int = 5,
    pool: int = 1000,
    epsilon: float = 0.8,
    images: int = 1000,
    start: float = 1 / 15,
    full: float = 0.96,
    alpha: float | None = None,
) -> Recipe:
    """The better half of sampled paths, some of them from a pool of the best.

    Args:
        space: The space.
        sampled: Paths scored in a round.
        kept: Those that are trained, a step each.
        pool: Paths remembered.
        epsilon: Probability in the end that a path comes from the pool.
        images: Held-out images that paths are scored on, at most.
        start: Share of the steps before anything is scored.
        full: Share of the steps after which ``epsilon`` is reached; both shares are those of an
            open reimplementation, 10,000 and 144,360 of 150,000 steps.
        alpha: Ends the training when the pool changes no more than this (published: 0.08); None to
            spend the whole budget.

    Raises:
        InputError: A number out of its range.
    """
    if images < 1:
        raise InputError(f"images must be at least 1, got {images}")
    if not 1 <= kept <= sampled:
        raise InputError(f"kept must be from 1 to sampled = {sampled}, got {kept}")
    if not 0 <= start <= full <= 1:
        raise InputError(f"expected 0 <= start <= full <= 1, got {start} and {full}")
    further: dict[str, Any] = {"pool": pool, "epsilon": epsilon, "alpha": alpha}
    Greedy(space, lambda archs: torch.zeros(len(archs)), seed=0, start=0, full=0, **further)

    def sampler(ground: Ground) -> Sampler[Any]:
        used = 0
        batches = []
        for inputs, labels in ground.validation:
            some = min(len(inputs), images - used)
            if some > 0:
                batches.append((inputs[:some], labels[:some]))
                used += some
        return Greedy(
            ground.space,
            ValidationLoss(ground.supernet, batches),
            seed=ground.seed,
            start=round(start * ground.steps),
            full=round(full * ground.steps),
            region=ground.region,
            sampled=sampled,
            kept=kept,
            **further,
        )

    def scored(steps: int) -> int:
        # A round is scored as a whole, however few of its paths are still trained.
        return -(-(steps - round(start * steps)) // kept) * sampled

    return Recipe(paths=Paths(sampler, scored=scored, images=images))


@recipe("pi-nas", "Peng et al., ICCV 2021 (Pi-NAS), section 3.2, with labels")
def pi_nas(
    space: SearchSpace[Any],
    *,
    decay: float = 0.999,
    temperature: float = 1.0,
    flip: bool = True,
    padding: int | None = None,
) -> Recipe:
    """Two disjoint paths a step, each taught by the mean teacher of the other.

    Args:
        space: The space.
        decay: Of the mean teacher.
        temperature: Of the divergence from the teacher.
        flip: Whether the two views of an image are mirrored at random.
        padding: Pixels around an image that its views are cut from; None for an eighth of its
            size, the usual 4 of 32.

    Raises:
        InputError: A number out of its range.
    """

    def sampler(ground: Ground) -> Sampler[Any]:
        return Disjoint(ground.space, seed=ground.seed, region=ground.region)  # type: ignore[arg-type]

    def taught(size: int, seed: int) -> CrossPath:
        margin = max(1, size // 8) if padding is None else padding
        views = Augmentation(seed=seed, flip=flip, padding=margin)
        return CrossPath(views, decay=decay, temperature=temperature)

    def objective(study: Study, seed: int) -> CrossPath:
        return taught(study.data.size, seed)

    taught(32, 0)  # checks the numbers

    return Recipe(paths=Paths(sampler, trained=2), objective=objective)
