"""A one-shot or few-shot system as a declaration: what is trained for how long, and how divided."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from sigeo.errors import InputError, check_kind
from sigeo.fewshot.known import Known
from sigeo.fewshot.metrics import Metric
from sigeo.fewshot.partition import Partitioner
from sigeo.fewshot.splitting import Splitting
from sigeo.fewshot.study import Study
from sigeo.spaces import Region, SearchSpace, Supernet
from sigeo.supernet import CrossEntropy, Objective, Sampler, Uniform
from sigeo.supernet.settings import Batch


@dataclass(frozen=True)
class Ground:
    """What a sampler is made for.

    Attributes:
        space: Whose architectures.
        region: Those that are trained.
        seed: Of the draws; trainings that follow one another have different ones.
        supernet: The weights in training.
        validation: Held-out batches.
        steps: Of the training.
    """

    space: SearchSpace[Any]
    region: Region[Any]
    seed: int
    supernet: Supernet[Any]
    validation: Sequence[Batch]
    steps: int


@dataclass(frozen=True)
class Paths:
    """How a step of training chooses its paths, and what it costs.

    Attributes:
        sampler: Makes the sampler of a training.
        trained: Paths of a step.
        scored: (steps of a training) to the paths that are scored on held-out images to choose
            those of its steps, at most; may not fall with the steps.
        images: Held-out images that a path is scored on, at most.
    """

    sampler: Callable[[Ground], Sampler[Any]]
    trained: int = 1
    scored: Callable[[int], int] = lambda steps: 0
    images: int = 0

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            InputError: No path, or a number below 0.
        """
        if self.trained < 1:
            raise InputError(f"paths: a step must train at least 1, got {self.trained}")
        if self.images < 0:
            raise InputError(f"paths: images must be at least 0, got {self.images}")

    def evaluated(self, steps: int, held_out: int) -> int:
        """Images that choosing the paths of a training takes, forward only, at most.

        Args:
            steps: Of the training.
            held_out: Images that there are to score paths on.
        """
        return self.scored(steps) * min(self.images, held_out)


def uniform_paths(ground: Ground) -> Sampler[Any]:
    """One random path a step."""
    return Uniform(ground.space, seed=ground.seed, region=ground.region)


Joint = Callable[[Supernet[Any], Sequence[Region[Any]]], Sequence[Supernet[Any]]]


@dataclass(frozen=True)
class Hierarchy:
    """Narrowing: choices are cut level by level and one part is kept (HEP-NAS).

    Attributes:
        levels: Places of the choices that are cut together, level by level.
        metric: Compares the options of a choice.
        partitioner: Cuts them into two groups.
        children: Length of the training of each part before one is kept.
        teachers: Who a part learns from beside the labels: "both", "parent", "siblings" or "none".
        rounds: Turns in which the parts train, one after another.
        judged: Paths whose mean validation accuracy a part is judged by.
        restart: Whether parts start from weights as drawn, with images and schedule from their
            beginning, instead of from their parent's.
    """

    levels: tuple[tuple[int, ...], ...]
    metric: Metric
    partitioner: Partitioner
    children: float
    teachers: str = "both"
    rounds: int = 10
    judged: int = 16
    restart: bool = False

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            InputError: One is out of its range, no choice, no metric or partitioner, or nobody of
                that name to learn from.
        """
        check_kind(self.metric, Metric, "hierarchy: metric")
        check_kind(self.partitioner, Partitioner, "hierarchy: partitioner")
        if not self.levels or not all(self.levels):
            raise InputError(f"hierarchy: every level must have a choice, got {self.levels}")
        if not 0 < self.children < math.inf:
            raise InputError(f"hierarchy: children must be above 0, got {self.children}")
        known = ("both", "parent", "siblings", "none")
        if self.teachers not in known:
            raise InputError(
                f"hierarchy: teachers must be one of {', '.join(known)}, got {self.teachers!r}"
            )
        for name in ("rounds", "judged"):
            if getattr(self, name) < 1:
                raise InputError(f"hierarchy: {name} must be at least 1, got {getattr(self, name)}")

    def forwards(self, level: int) -> int:
        """Teachers of a part of a level, at most."""
        siblings: int = 2 ** len(self.levels[level]) - 1
        parent = self.teachers in ("both", "parent")
        return parent + (siblings if self.teachers in ("both", "siblings") else 0)


@dataclass(frozen=True)
class Gradual:
    """Joint trainings of the whole space, each of a finer supernet than the one before.

    Attributes:
        levels: Trainings but the last.
        grow: (supernet, number of the training) to the supernet that it trains: for 0 of the
            supernet as drawn, whose weights it may set in place; later of the one trained before,
            of which every architecture starts as it was.
        finish: What is done to the supernet after the last training, in place.
        settings: (number of the training, its steps) to the settings of `sigeo.supernet.Training`
            that are its own, the step size as a share of what the study says.
        known: Networks by which the checkpoint that is served is selected, of those at the ends of
            all trainings' passes; None to serve the last.
    """

    levels: int
    grow: Callable[[Supernet[Any], int], Supernet[Any]]
    finish: Callable[[Supernet[Any]], None]
    settings: Callable[[int, int], dict[str, Any]]
    known: Known | None = None


@dataclass(frozen=True)
class Recipe:
    """A system.

    Lengths of training are in a unit of their own; the budget says what a unit is in images.

    Attributes:
        name: As on the command line; `recipes.get` fills it in, and ``source``.
        source: Where it was published.
        after: Length of the training of each leaf.
        before: Length of the training of each supernet of a level, before it is divided.
        splitting: How supernets are divided; None for one that serves all, or where ``kinds`` or
            ``hierarchy`` says how.
        kinds: A kind function and its groups, one sub-supernet a group.
        joint: Of kinds: (supernet, regions) to sub-supernets that have weights in common, which one
            training with ``paths`` trains together; None to train each of them alone.
        hierarchy: Narrowing in the place of splitting.
        gradual: One supernet that grows, in the place of splitting; ``before`` and ``after`` are
            the lengths of its trainings.
        paths: Of a step.
        objective: Of the study and a seed: what a step's paths are trained to do.
        width: Share of the channels that the supernets have.
        supernet: Options of the space's supernet, beside its seed.
        metric_batches: Size and number of the batches that the metric measures on.
        calibration: Training batches on which batch norm is recalibrated for every subnet that is
            evaluated; 0 for the statistics of each batch that is evaluated.
        options: What it was made with, as JSON can hold it.
        notes: Where it leaves its source, for the reader.
    """

    name: str = ""
    source: str = ""
    after: float = 1.0
    before: tuple[float, ...] = ()
    splitting: Splitting | None = None
    kinds: tuple[str, tuple[tuple[int, ...], ...]] | None = None
    joint: Joint | None = None
    hierarchy: Hierarchy | None = None
    gradual: Gradual | None = None
    paths: Paths = field(default_factory=lambda: Paths(uniform_paths))
    objective: Callable[[Study, int], Objective] = lambda study, seed: CrossEntropy()
    width: float = 1.0
    supernet: dict[str, Any] = field(default_factory=dict)
    metric_batches: tuple[int, int] = (64, 4)
    calibration: int = 0
    options: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check that the parts go together.

        Raises:
            InputError: More than one way to divide, lengths that do not fit the levels, or a number
                out of its range.
        """
        where = f"{self.name}: " if self.name else ""
        ways = (self.splitting, self.kinds, self.hierarchy, self.gradual)
        if sum(way is not None for way in ways) > 1:
            raise InputError(f"{where}expected one way to divide the space, got more")
        levels = 0
        if self.splitting is not None:
            levels = len(self.splitting.branching.levels)
        elif self.hierarchy is not None:
            levels = len(self.hierarchy.levels)
        elif self.gradual is not None:
            levels = self.gradual.levels
        if len(self.before) not in (0, levels):
            raise InputError(
                f"{where}expected a length of training for each of {levels} levels or for "
                f"none, got {len(self.before)}"
            )
        lengths = (*self.before, self.after)
        if not all(0 <= length < math.inf for length in lengths) or not any(lengths):
            raise InputError(
                f"{where}lengths of training must be at least 0, and one above, got {lengths}"
            )
        how = self.splitting
        metric = None if how is None or not how.compares else how.metric
        if metric is not None and metric.initial_weights and any(self.before):
            raise InputError(
                f"{where}{metric.name} needs weights as drawn, so no training before a cut, "
                f"got lengths {self.before}"
            )
        if not 0 < self.width <= 1:
            raise InputError(f"{where}width must be above 0 and at most 1, got {self.width}")
        size, count = self.metric_batches
        if size < 2 or count < 1:
            raise InputError(
                f"{where}a metric needs at least 1 batch of at least 2 images, "
                f"got {count} of {size}"
            )

    def nodes(self, space: SearchSpace[Any]) -> tuple[int, ...]:
        """Supernets that are trained on each level, and leaves that are trained at the end."""
        if self.hierarchy is not None:
            return (1,) * (len(self.hierarchy.levels) + 1)
        if self.gradual is not None:
            return (1,) * (self.gradual.levels + 1)
        if self.kinds is not None:
            return (1 if self.joint is not None else len(self.kinds[1]),)
        counts = [1]
        for factor in self.splitting.branching.levels if self.splitting is not None else ():
            options = max(len(choice.options) for choice in space.choices)
            factors = (factor,) * counts[-1] if isinstance(factor, int) else factor
            counts.append(sum(f or options for f in factors))
        return tuple(counts)

    def units(self, space: SearchSpace[Any]) -> float:
        """Length of all trainings together."""
        *inner, leaves = self.nodes(space)
        before = self.before or (0.0,) * len(inner)
        total = sum(count * length for count, length in zip(inner, before, strict=True))
        if self.hierarchy is not None:
            parts = sum(2 ** len(level) for level in self.hierarchy.levels)
            total += parts * self.hierarchy.children
        return total + leaves * self.after
