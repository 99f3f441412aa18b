"""Systems of one supernet that grows from training to training."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from sigeo.errors import InputError
from sigeo.fewshot.known import Known
from sigeo.fewshot.recipe import Gradual, Ground, Paths, Recipe
from sigeo.fewshot.recipes.registry import recipe
from sigeo.kinds import is_of
from sigeo.spaces import ResNet, SearchSpace
from sigeo.supernet import InPlaceDistillation, Sampler, Sandwich
from sigeo.tables import FEWEST, read_table


@recipe("gradual", "arXiv 2206.05896 (CVPR 2022 challenge, track 1), one-shot to few-shot training")
def gradual(
    space: SearchSpace[Any],
    *,
    groups: int | None = None,
    before: float = 100,
    after: float = 20,
    rates: Sequence[float] = (1.0, 0.01, 0.02, 0.01),
    rise: float = 0.05,
    count: int = 2,
    dropout: float = 0.2,
    drop_path: float = 0.2,
    label_smoothing: float = 0.1,
    calibration: int = 64,
    known: str | None = None,
    metric: str | None = None,
) -> Recipe:
    """BigNAS, then stage by stage copies of the blocks for one width more, weights inherited.

    Training number g, from 1 on, has g copies of the blocks of every stage, or one a width where a
    stage has fewer: each of the largest widths of the stage's stream has one for itself and the
    last serves the others. Step sizes of a stage's copies are in inverse proportion to the widths
    that they serve: relative to the copy of most widths with g = 2, to those of one width from
    g = 3 on (published: 2, 5, 6 and 6 times for the new copy with g = 2, 1/2 to 1/5 for the old one
    up to g = 6, all alike with g = 7).

    Args:
        space: A `ResNet`.
        groups: The last g; None for the most widths of a stage.
        before: Length of the first training.
        after: Of each later one.
        rates: Step size of each training, as a share of the study's; the last one of all later.
        rise: Share of the first training over which its step size rises.
        count: Random paths of a step, beside the largest and the smallest.
        dropout: In front of the classifier, of the largest path alone.
        drop_path: Of the blocks of the last two stages, of the largest path alone.
        label_smoothing: Of the largest path's labels.
        calibration: Training batches that batch norm is recalibrated on for evaluation.
        known: A benchmark table of networks trained alone (published: 30). After every pass of
            every training Kendall's tau is taken between their values and their accuracies in the
            supernet on the images held out, and the checkpoint with the highest is served, the
            last of equal ones; None to serve the last of all.
        metric: Its column; None for ``test_accuracy``.

    Raises:
        InputError: Another space, more groups than widths, a number out of its range, or a table
            that does not fit.
    """
    if not isinstance(space, ResNet):
        raise InputError(f"divides the stages of the space resnet by width, got {space.name}")
    most = max(len(space.choices[one.choice].options) for one in space.width_groups(1))
    last = most if groups is None else groups
    if not is_of(last, int) or not 1 <= last <= most:
        raise InputError(
            f"groups must be from 1 to {most}, the most widths of a stage, got {groups}"
        )
    if not rates or min(rates) <= 0:
        raise InputError(f"rates must be one number or more above 0, got {list(rates)}")
    for name, share in (("rise", rise), ("dropout", dropout), ("drop_path", drop_path)):
        if not 0 <= share < 1:
            raise InputError(f"{name} must be from 0 to below 1, got {share}")
    for name, number in (("count", count), ("calibration", calibration)):
        if number < 0:
            raise InputError(f"{name} must be at least 0, got {number}")
    InPlaceDistillation(label_smoothing=label_smoothing)  # checks it
    if known is None and metric is not None:
        raise InputError("metric has no effect without known")
    judges = None if known is None else _judges(space, known, metric or "test_accuracy")

    def grow(supernet: Any, number: int) -> Any:
        if number == 0:
            space.zero_branches(supernet)
        made = supernet.divided(space.width_groups(number + 1))
        if dropout > 0 or drop_path > 0:
            made.regularise(partial(space.regularised, dropout=dropout, drop_path=drop_path))
        return made

    def finish(supernet: Any) -> None:
        supernet.regularise(None)

    def settings(number: int, steps: int) -> dict[str, Any]:
        return {
            "lr": rates[min(number, len(rates) - 1)],
            "schedule": "cosine",
            "floor": 0.0,
            "momentum": 0.9,
            "weight_decay": 1e-5,
            "decay_norms": False,
            "clip": 1.0,
            "clip_by": "value",
            "rise": round(rise * steps) if number == 0 else 0,
            "scales": scales(space, number + 1),
        }

    def sampler(ground: Ground) -> Sampler[Any]:
        return Sandwich(ground.space, seed=ground.seed, count=count)

    return Recipe(
        after=before if last == 1 else after,
        before=() if last == 1 else (before, *[after] * (last - 2)),
        gradual=Gradual(last - 1, grow, finish, settings, judges),
        paths=Paths(sampler, trained=count + 2),
        objective=lambda study, seed: InPlaceDistillation(label_smoothing=label_smoothing),
        calibration=calibration,
        options={} if judges is None else {"known": judges.fingerprint()},  # the file may change
    )


def _judges(space: Any, path: str, metric: str) -> Known:
    """The networks of a table that checkpoints are selected by.

    Raises:
        InputError: There is no such table or column, or too few networks to rank.
    """
    found = Known(space, read_table(path).lookup(metric))
    if len(found.values) < FEWEST or np.ptp(found.values) == 0:
        raise InputError(
            f"known: {path} must have {FEWEST} networks or more, not all of the same {metric}, "
            f"got {len(found.values)}"
        )
    return found


def scales(space: ResNet, groups: int) -> tuple[tuple[str, float], ...]:
    """Factors of the step sizes of the copies, see `gradual`; pairs of a prefix and a factor.

    Args:
        space: The space.
        groups: Copies of a stage.
    """
    found = []
    for one in space.width_groups(groups):
        served = [one.tops[0] + 1, *(b - a for a, b in zip(one.tops, one.tops[1:], strict=False))]
        base = max(served) if groups == 2 else 1
        for piece in one.pieces:
            factors = [base / widths for widths in served] if groups > 1 else []
            found += [(f"{piece}.{copy}.", factor) for copy, factor in enumerate(factors)]
    return tuple((prefix, factor) for prefix, factor in found if factor != 1)
