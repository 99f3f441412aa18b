"""Narrowing with supernets: cut a hierarchy of choices at once, train the parts, keep the best.

HEP-NAS (arXiv 2412.10723, AAAI 2025, section 3): the edges that enter one node are a hierarchy; all
combinations of their groups become sub-supernets, which learn from their parent and from each other
and of which the one with the best validation accuracy is narrowed further.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from sigeo.fewshot.metrics import Subject
from sigeo.fewshot.narrowing import hierarchy_cuts
from sigeo.fewshot.plan import Node, Plan, joint
from sigeo.fewshot.plan_file import decided, save_plan
from sigeo.fewshot.recipe import Hierarchy
from sigeo.spaces import Product, Supernet
from sigeo.supernet import (
    Budget,
    CrossEntropy,
    Objective,
    Sampler,
    Uniform,
    evaluate,
    train_supernet,
    versions,
)
from sigeo.supernet.checkpoint import Weights
from sigeo.supernet.distillation import MutualDistillation, Teacher
from sigeo.supernet.samplers.base import draw_connected, generator

if TYPE_CHECKING:
    from sigeo.fewshot.develop import Development

Supernets = tuple[Supernet[Any], ...]
Joined = tuple[Plan[Any], Supernets, tuple[int, ...]]
Result = tuple[Plan[Any], Supernets, tuple[int, ...], tuple[Supernets, ...]]


def narrow(work: Development) -> Result:
    """The plan, a supernet a leaf, how far each leaf came, and see `Family.earlier`.

    A part that was not kept is a leaf that serves its architectures as it was trained by then.
    """
    how = work.recipe.hierarchy
    assert how is not None
    space = work.study.space
    region: Product[Any] = Product.whole(space)
    supernet = work.drawn()
    levels: list[tuple[Node[Any], int, list[Supernet[Any]]]] = []
    seen = first = 0  # images that the weights have seen, and the level that they began on
    for level, places in enumerate(how.levels):
        if work.recipe.before and work.recipe.before[level] > 0:
            images = work.unit * work.recipe.before[level]
            share = work.share(level, first)
            seen += work.train(supernet, region, images, f"level-{level}", *share, seen)
        node = _divided(work, how, region, places, supernet, level)
        parts = [leaf.region for leaf in node.leaves()]
        if how.restart:
            seen, first = 0, level
            children = [work.drawn() for _ in parts]
        else:
            children = [copy.deepcopy(supernet) for _ in parts]
        seen += _train_parts(work, how, supernet, parts, children, level, first, seen)  # type: ignore[arg-type]
        kept = _best(work, how, parts, children, level)  # type: ignore[arg-type]
        levels.append((node, kept, children))
        region, supernet = parts[kept], children[kept]  # type: ignore[assignment]
    weights: list[Weights] = []
    if work.recipe.after > 0:
        begin = work.share(len(how.levels) - 1, first)[1] if work.recipe.before else 0.0
        images = work.study.budget - work.spent
        work.train(supernet, region, images, "leaf", begin, 1.0, seen, kept=weights)
    plan, supernets, standing = _joined(levels)
    earlier = [
        tuple(version if one is supernet else one for one in supernets)
        for version in versions(supernet, weights)[:-1]
    ]
    return plan, supernets, standing, tuple(earlier)


def _joined(levels: Sequence[tuple[Node[Any], int, list[Supernet[Any]]]]) -> Joined:
    """The levels as one tree: each in the place of the part that was kept before it."""
    root: Node[Any] | None = None
    supernets: list[Supernet[Any]] = []
    standing: list[int] = []
    for level in range(len(levels) - 1, -1, -1):
        node, kept, children = levels[level]
        if root is None:
            root, supernets = node, list(children)
            standing = [level + (leaf == kept) for leaf in range(len(children))]
            continue
        root = _replaced(node, kept, root)
        supernets = [*children[:kept], *supernets, *children[kept + 1 :]]
        after = len(children) - kept - 1
        standing = [*([level] * kept), *standing, *([level] * after)]
    assert root is not None
    return Plan(root), tuple(supernets), tuple(standing)


def _replaced(node: Node[Any], leaf: int, by: Node[Any]) -> Node[Any]:
    """The tree with another node in the place of a leaf."""
    if node.cut is None:
        return by
    children = list(node.children)
    for place, child in enumerate(children):
        if leaf < child.leaf_count:
            children[place] = _replaced(child, leaf, by)
            break
        leaf -= child.leaf_count
    return Node(node.region, node.cut, tuple(children))


def _divided(
    work: Development,
    how: Hierarchy,
    region: Product[Any],
    places: Sequence[int],
    supernet: Supernet[Any],
    level: int,
) -> Node[Any]:
    """The parts of a level, read if they were decided before.

    Raises:
        InputError: The file is damaged or of something else.
        OtherSettings: It is of other settings.
    """
    for place in places:
        if len(region.allowed[place]) > 1:
            work.charge(how.metric.cost(Subject(region, place, 0, None, work.batches)))
    file, settings = work.file(f"cuts-{level}.json"), work.settings(f"cuts-{level}")
    known = None if file is None else decided(file, region, settings)
    if known is not None:
        return known
    cuts = hierarchy_cuts(
        region,
        places,
        how.metric,
        how.partitioner,
        seed=f"{work.seed}/{level}",
        supernet=supernet,
        batches=work.batches,
    )
    node = joint(region, cuts)
    if file is not None:
        save_plan(file, Plan(node), settings)
    work.clock.lap()
    return node


def _train_parts(
    work: Development,
    how: Hierarchy,
    parent: Supernet[Any],
    parts: Sequence[Product[Any]],
    children: Sequence[Supernet[Any]],
    level: int,
    first: int,
    seen: int,
) -> int:
    """Train the parts in turn, round after round, each with the others as they are by then.

    All see the same images, those after the ``seen`` ones, on a schedule from level ``first`` on;
    returns how many.
    """
    module: nn.Module = parent  # type: ignore[assignment]
    module.train()
    source = work.source_after(seen)
    siblings = [
        Teacher.of_region(
            supernet,
            work.study.space,
            region,
            seed=generator(source.seed, level, place + 1).getrandbits(32),
        )
        for place, (region, supernet) in enumerate(zip(parts, children, strict=True))
    ]
    objectives = [
        _objective(how, parent, [*siblings[:child], *siblings[child + 1 :]])
        for child in range(len(parts))
    ]
    forwards = objectives[0].forwards(1)
    steps = work.steps_of(work.unit * how.children, f"a part of level {level}", forwards)
    config = work.stretch(steps, *work.share(level, first))
    costs, taken = [Budget() for _ in parts], [0] * len(parts)
    before = work.spent

    def report_of(child: int) -> Callable[[int, int], None]:
        def report(step: int, _: int) -> None:
            taken[child] = step
            work.report(before + sum(work.processed(steps, forwards) for steps in taken))

        return report

    with tempfile.TemporaryDirectory() as elsewhere:
        folder = Path(elsewhere) if work.folder is None else work.folder
        for turn in range(1, how.rounds + 1):
            for child, (region, supernet) in enumerate(zip(parts, children, strict=True)):
                name = f"level-{level}-part-{child}"
                sampler = Uniform(work.study.space, seed=source.seed, region=region)
                costs[child] = train_supernet(
                    supernet,
                    config,
                    source,
                    Paused(sampler, until=-(-steps * turn // how.rounds)),
                    objectives[child],
                    settings={**work.settings(name), "seen": seen},
                    checkpoint=folder / f"{name}.safetensors",
                    progress=report_of(child),
                )
    for cost in costs:
        work.charge(cost)
    return config.images_of(steps)


def _objective(how: Hierarchy, parent: Supernet[Any], siblings: Sequence[Teacher]) -> Objective:
    """What a part is trained to do; a sibling does not hold its path, so it runs its own."""
    above = Teacher(parent) if how.teachers in ("both", "parent") else None
    beside = siblings if how.teachers in ("both", "siblings") else []
    if above is None and not beside:
        return CrossEntropy()
    return MutualDistillation(above, beside)


def _best(
    work: Development,
    how: Hierarchy,
    parts: Sequence[Product[Any]],
    children: Sequence[Supernet[Any]],
    level: int,
) -> int:
    """The part with the best mean accuracy of some of its paths on the images held out."""
    accuracies = []
    for part, (region, supernet) in enumerate(zip(parts, children, strict=True)):
        rng = generator(work.seed, level, part + 1)
        archs = [draw_connected(work.study.space, region, rng) for _ in range(how.judged)]
        found = evaluate(supernet, archs, work.validation)
        work.charge(Budget(0, found.images))
        accuracies.append(float(found.accuracy.mean()))
    return max(range(len(parts)), key=lambda part: (accuracies[part], -part))


class Paused:
    """A sampler whose training ends for now after some steps, to go on later from its checkpoint.

    Attributes:
        evaluated: As of the sampler.
    """

    def __init__(self, sampler: Sampler[Any], *, until: int):
        """Wrap a sampler.

        Args:
            sampler: Gives the paths.
            until: Steps after which the training pauses.
        """
        self._sampler, self._until, self._taken = sampler, until, 0

    @property
    def evaluated(self) -> int:
        """As of the sampler."""
        return self._sampler.evaluated

    @property
    def done(self) -> bool:
        """Whether the pause has come, or the sampler is done."""
        return self._taken >= self._until or self._sampler.done

    def paths(self, step: int) -> Sequence[Any]:
        """The sampler's."""
        self._taken = step + 1
        return self._sampler.paths(step)

    def state(self) -> dict[str, Any]:
        """The sampler's, and the steps taken."""
        return {"taken": self._taken, "sampler": self._sampler.state()}

    def resume(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken."""
        self._taken = state["taken"]
        self._sampler.resume(state["sampler"])

    def describe(self) -> dict[str, Any]:
        """The sampler's: a pause changes nothing."""
        return self._sampler.describe()
