"""One supernet that grows: joint trainings one after another, each of finer shared weights.

The one-shot to few-shot training scheme (arXiv 2206.05896). The supernet routes architectures
inside, by its `sigeo.spaces.Groups`, so that it serves the whole space and the plan has one leaf.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from sigeo.fewshot.plan import Plan, whole_space
from sigeo.fewshot.selection import Selection
from sigeo.spaces import Supernet
from sigeo.supernet import TrainingState, load_weights, versions
from sigeo.supernet.checkpoint import Weights

if TYPE_CHECKING:
    from sigeo.fewshot.develop import Development


def grow(
    work: Development,
) -> tuple[
    Plan[Any],
    tuple[Supernet[Any], ...],
    tuple[dict[str, Any], ...],
    tuple[tuple[Supernet[Any], ...], ...],
]:
    """Carry a gradual recipe out.

    Returns:
        The plan of the whole space, the supernet at the end or as it was selected, of each training
        its steps and what it had in the place of the study's settings, with tau at the ends of its
        passes where the supernet was selected by it, and the supernet at the ends of earlier
        passes.
    """
    how = work.recipe.gradual
    assert how is not None
    plan = whole_space(work.study.space)
    supernet = work.drawn()
    lengths, seen = (*work.recipe.before, work.recipe.after), 0
    trainings = []
    kept: list[Weights] = []
    for number, length in enumerate(lengths):
        supernet = how.grow(supernet, number)
        last = number == len(lengths) - 1
        if length == 0:
            continue
        images = work.study.budget - work.spent if last else work.unit * length
        phase = _phase(number)
        steps = work.steps_of(images, phase)
        own = how.settings(number, steps)
        own["lr"] *= work.study.lr
        trainings.append({"steps": steps, **own})
        seen += work.train(
            supernet,
            plan.root.region,
            images,
            phase,
            0.0,
            1.0,
            seen,
            kept=kept if last else None,
            **own,
        )
        if work.selection is not None:
            trainings[-1]["kendall"] = [[one.step, one.tau] for one in work.selection.of(phase)]
    if work.selection is not None:
        supernet = _selected(work, work.selection)
    how.finish(supernet)
    earlier = tuple((one,) for one in versions(supernet, kept)[:-1])
    return plan, (supernet,), tuple(trainings), earlier


def selection(work: Development) -> Selection | None:
    """What selects the checkpoint that is served; None where it is the last."""
    how = work.recipe.gradual
    if how is None or how.known is None:
        return None
    count = work.recipe.calibration
    return Selection(
        how.known,
        work.validation,
        work.study.calibration(work.seed, count) if count else (),
        file=work.file("selected.safetensors"),
        settings=work.settings("selected"),
    )


def _phase(number: int) -> str:
    """The name of a training."""
    return f"stage-{number}"


def _selected(work: Development, selection: Selection) -> Supernet[Any]:
    """The supernet of the training whose checkpoint was the best, with its weights."""
    how = work.recipe.gradual
    assert how is not None
    supernet = work.drawn()
    for number in range(how.levels + 1):
        supernet = how.grow(supernet, number)
        if _phase(number) == selection.best.phase:
            break
    state = TrainingState(selection.best.step, selection.weights, {})
    load_weights(supernet, state, Path(selection.file or "selected"))  # type: ignore[arg-type]
    return supernet
