"""Carrying a recipe out: trainings and cuts within one budget, killed at any moment and gone on."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sigeo.capture import Batches
from sigeo.errors import InputError
from sigeo.fewshot.clock import Clock
from sigeo.fewshot.family import Family
from sigeo.fewshot.gradual import grow
from sigeo.fewshot.hierarchy import narrow
from sigeo.fewshot.metrics import Metric, Subject
from sigeo.fewshot.plan import Node, Plan, split_by_kind, whole_space
from sigeo.fewshot.recipe import Ground, Recipe
from sigeo.fewshot.splitting import split
from sigeo.fewshot.study import FORWARD_SHARE, Study
from sigeo.spaces import Product, Region, Supernet
from sigeo.supernet import Budget, RoutedSupernet, Training, train_supernet

Progress = Callable[[int, int], None]
"""Called with (images processed, images in all)."""


@dataclass(frozen=True)
class Stretch(Training):
    """A training that is a part of a longer one's schedule.

    Attributes:
        begin: Share of the whole schedule that lies before it.
        end: Share at its end.
    """

    begin: float = 0.0
    end: float = 1.0

    def lr_at(self, step: int) -> float:
        """The step size of a step, on the way from ``begin`` to ``end``; it rises first."""
        if step < self.rise:
            return self.lr_of(self.begin) * (step + 1) / self.rise
        done = (step - self.rise) / max(1, self.steps - self.rise)
        return self.lr_of(self.begin + (self.end - self.begin) * done)


def develop(
    recipe: Recipe,
    study: Study,
    seed: int,
    *,
    folder: Path | None = None,
    progress: Progress | None = None,
) -> Family[Any]:
    """Train, divide and train on, as a recipe says.

    The trainings share what the budget leaves beside the most that dividing can take; those at the
    end get what is left then, so that all systems process the same number of images.

    Args:
        recipe: The system.
        study: Networks, images, budget.
        seed: Of weights, order of images, paths and draws.
        folder: Where trainings and cuts are kept as they go on; the same call goes on from there.
        progress: Called after each step.

    Raises:
        InputError: The budget does not pay for what dividing takes and a step of each training, or
            a file in the folder is damaged or of something else.
    """
    return Development(recipe, study, seed, folder, progress).run()


def check(recipe: Recipe, study: Study) -> None:
    """Check that a study's budget pays for a recipe, before anything is trained.

    Raises:
        InputError: It does not.
    """
    Development(recipe, study, 0, None, None)


class Development:
    """One recipe at work on one seed."""

    def __init__(
        self,
        recipe: Recipe,
        study: Study,
        seed: int,
        folder: Path | None,
        progress: Progress | None,
    ):
        self.recipe, self.study, self.seed, self.folder = recipe, study, seed, folder
        self.progress = progress
        self.source = study.source(seed)
        self.validation = study.validation()
        self.cost = Budget()
        self.clock = Clock(self.file("seconds.json"))
        self.batches: Batches | None = None
        if recipe.splitting is not None or recipe.hierarchy is not None:
            self.batches = study.metric_batches(seed, *recipe.metric_batches)
        overhead = self._overhead()
        if overhead >= study.budget:
            raise InputError(
                f"{recipe.name}: comparing options takes {overhead:.0f} images, "
                f"got a budget of {study.budget}"
            )
        self.unit = (study.budget - overhead) / recipe.units(study.space)
        for length in (*recipe.before, recipe.after):
            if length > 0:
                self.steps_of(self.unit * length, "a training")

    def run(self) -> Family[Any]:
        """The whole of it."""
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
        if self.recipe.hierarchy is not None:
            plan, supernets, standing = narrow(self)
        elif self.recipe.gradual is not None:
            plan, supernets, standing = *grow(self), ()
        else:
            plan, supernets = self._divided()
            self._train_leaves(plan, supernets)
            standing = ()
        return Family(plan, supernets, standing, self.cost, self.clock.seconds)

    @property
    def spent(self) -> float:
        """Processed images so far."""
        return self.cost.trained + FORWARD_SHARE * self.cost.evaluated

    def settings(self, phase: str) -> dict[str, Any]:
        """All that a phase depends on, as JSON can hold it."""
        settings = {
            "study": self.study.describe(),
            "recipe": self.recipe.name,
            "options": self.recipe.options,
            "seed": self.seed,
            "phase": phase,
        }
        as_read: dict[str, Any] = json.loads(json.dumps(settings))
        return as_read

    def file(self, name: str) -> Path | None:
        """A file of the folder, if there is one."""
        return None if self.folder is None else self.folder / name

    def train(
        self,
        supernet: Supernet[Any],
        region: Region[Any],
        images: float,
        phase: str,
        begin: float,
        end: float,
        **own: Any,
    ) -> None:
        """Train on a part of the budget and of the schedule.

        Args:
            supernet: Is trained in place.
            region: The architectures that it is trained for.
            images: The part of the budget.
            phase: Names the checkpoint.
            begin: See `Stretch`.
            end: Likewise.
            **own: Settings of the training in the place of the study's.

        Raises:
            InputError: The part does not pay for a step.
        """
        steps = self.steps_of(images, phase)
        objective = self.recipe.objective()
        config = self.stretch(steps, begin, end, **own)
        ground = Ground(
            self.study.space, region, self.seed, supernet, self.validation, config.steps
        )
        before = self.spent

        def report(step: int, total: int) -> None:
            if self.progress is not None:
                self.progress(round(before + images * step / total), self.study.budget)

        with self.clock:
            cost = train_supernet(
                supernet,
                config,
                self.source,
                self.recipe.paths.sampler(ground),
                objective,
                settings=self.settings(phase),
                checkpoint=self.file(f"{phase}.safetensors"),
                progress=report,
            )
        self.charge(cost)

    def steps_of(self, images: float, phase: str, forwards: int | None = None) -> int:
        """Steps that a part of the budget pays for.

        Args:
            images: The part.
            phase: For messages.
            forwards: Passes of the batch that only go forward in a step; None for the recipe's.

        Raises:
            InputError: It does not pay for one.
        """
        size, paths = self.study.batch_size, self.recipe.paths
        if forwards is None:
            forwards = self.recipe.objective().forwards(paths.trained)
        only = paths.evaluated + size * forwards
        steps = int(images / (size * paths.trained + FORWARD_SHARE * only))
        if steps < 1:
            raise InputError(
                f"{self.recipe.name}: a budget of {self.study.budget} images leaves {images:.0f} "
                f"for {phase}, less than a step of {size}"
            )
        return steps

    def charge(self, cost: Budget) -> None:
        """Count images."""
        self.cost = Budget(self.cost.trained + cost.trained, self.cost.evaluated + cost.evaluated)

    def stretch(self, steps: int, begin: float, end: float, **own: Any) -> Stretch:
        """The settings of so many steps of a part of the schedule."""
        whole = self.study.training(steps, **own)
        return Stretch(**vars(whole), begin=begin, end=end)

    def share(self, level: int) -> tuple[float, float]:
        """The part of the schedule that the trainings before the cuts of a level take."""
        before = self.recipe.before or (0.0,)
        total = sum(before) + self.recipe.after
        return sum(before[:level]) / total, sum(before[: level + 1]) / total

    def _overhead(self) -> float:
        """Processed images that dividing takes, at most."""
        recipe, space = self.recipe, self.study.space
        total = Budget()

        def add(metric: Metric, place: int, times: int = 1) -> None:
            region: Product[Any] = Product.whole(space)
            cost = metric.cost(Subject(region, place, 0, None, self.batches))
            total.trained += times * cost.trained
            total.evaluated += times * cost.evaluated

        how = recipe.splitting
        if how is not None and how.metric is not None and how.compares:
            for level, nodes in enumerate(recipe.nodes(space)[:-1]):
                again = how.again or not how.choice.compares
                for place in range(len(space.choices) - (0 if again else level)):
                    add(how.metric, place, nodes)
                    if not how.choice.compares:
                        break
        if recipe.hierarchy is not None:
            for places in recipe.hierarchy.levels:
                for place in places:
                    add(recipe.hierarchy.metric, place)
                judged = recipe.hierarchy.judged * self.study.held_out
                total.evaluated += 2 ** len(places) * judged
        return total.trained + FORWARD_SHARE * total.evaluated

    def _divided(self) -> tuple[Plan[Any], tuple[Supernet[Any], ...]]:
        """The plan, and the weights that each leaf starts from."""
        recipe, study = self.recipe, self.study
        if recipe.kinds is not None:
            plan = split_by_kind(study.space, *recipe.kinds)
            if recipe.joint is not None:
                one = study.supernet(self.seed, width=recipe.width)
                return plan, tuple(recipe.joint(one, plan.leaves))
            drawn = [study.supernet(self.seed, width=recipe.width) for _ in plan.leaves]
            return plan, tuple(drawn)
        supernet = study.supernet(self.seed, width=recipe.width)
        if recipe.splitting is None:
            return whole_space(study.space), (supernet,)
        trained = any(length > 0 for length in recipe.before)
        divided = split(
            study.space,
            recipe.splitting,
            seed=self.seed,
            supernet=supernet,
            batches=self.batches,
            train=self._before_cut if trained else None,
            checkpoint=self.file("cuts.json"),
            settings=self.settings("cuts"),
        )
        self.measured(divided.plan)
        return divided.plan, divided.supernets

    def _before_cut(
        self, region: Region[Any], supernet: Supernet[Any], level: int, node: int
    ) -> None:
        images = self.unit * self.recipe.before[level]
        self.train(supernet, region, images, f"level-{level}-{node}", *self.share(level))

    def measured(self, plan: Plan[Any]) -> None:
        """Count what the metric took for the cuts of a plan."""
        how = self.recipe.splitting
        if how is None or how.metric is None or not how.compares:
            return
        waiting: list[tuple[Node[Any], frozenset[int]]] = [(plan.root, frozenset())]
        while waiting:
            node, used = waiting.pop()
            if node.cut is None:
                continue
            region: Any = node.region
            place = int(node.cut.by)
            left = [p for p in region.open() if p not in used or how.again]
            for looked_at in left if how.choice.compares else [place]:
                self.charge(how.metric.cost(Subject(region, looked_at, 0, None, self.batches)))
            waiting.extend((child, used | {place}) for child in node.children)

    def _train_leaves(self, plan: Plan[Any], supernets: tuple[Supernet[Any], ...]) -> None:
        """Train the leaves on what is left of the budget."""
        if self.recipe.after == 0:
            return
        if self.recipe.joint is not None:
            routed = RoutedSupernet(supernets, plan.leaves)
            images = self.study.budget - self.spent
            self.train(routed, plan.root.region, images, "leaves", 0.0, 1.0)  # type: ignore[arg-type]
            return
        restarted = self.recipe.splitting is not None and self.recipe.splitting.inherit != "always"
        levels = len(self.recipe.before)
        begin = self.share(levels - 1)[1] if levels and not restarted else 0.0
        images = (self.study.budget - self.spent) / len(supernets)
        for leaf, (region, supernet) in enumerate(zip(plan.leaves, supernets, strict=True)):
            self.train(supernet, region, images, f"leaf-{leaf}", begin, 1.0)
