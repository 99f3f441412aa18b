"""Carrying a recipe out: trainings and cuts within one budget, killed at any moment and gone on."""

from __future__ import annotations

import json
import math
from bisect import bisect_right
from dataclasses import replace
from pathlib import Path
from typing import Any

from sigeo.capture import Batches
from sigeo.errors import InputError
from sigeo.fewshot import checks, overhead
from sigeo.fewshot.clock import Clock
from sigeo.fewshot.family import Family, aligned
from sigeo.fewshot.gradual import grow, selection
from sigeo.fewshot.hierarchy import narrow
from sigeo.fewshot.plan import Plan, split_by_kind, whole_space
from sigeo.fewshot.recipe import Ground, Recipe
from sigeo.fewshot.splitting import split
from sigeo.fewshot.stretch import Stretch
from sigeo.fewshot.study import FORWARD_SHARE, Study
from sigeo.kinds import named_arguments
from sigeo.spaces import Region, Supernet
from sigeo.supernet import Budget, RoutedSupernet, Source, train_supernet, versions
from sigeo.supernet.checkpoint import Weights
from sigeo.supernet.samplers.base import generator
from sigeo.supernet.settings import Progress

_SECONDS_BETWEEN_LAPS = 1.0
_ROUNDING = 1e-6  # of a number of images


@named_arguments("develop")
def develop(
    recipe: Recipe,
    study: Study,
    seed: int,
    *,
    folder: str | Path | None = None,
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
        progress: Called after each step with (images processed, images in all).

    Raises:
        InputError: The budget does not pay for what dividing takes and a step of each training, or
            a file in the folder is damaged or of something else.
    """
    kept = None if folder is None else Path(folder)
    return Development(recipe, study, seed, kept, progress).run()


def check(recipe: Recipe, study: Study) -> None:
    """Check that a recipe can be carried out, before anything is trained.

    Raises:
        InputError: The study's budget does not pay for it, or an option does not fit the space.
    """
    work = Development(recipe, study, 0, None, None)
    checks.check_space(work)
    checks.check_budget(work)


@named_arguments("least_budget")
def least_budget(recipe: Recipe, study: Study) -> int:
    """Processed images of the smallest budget that pays for a recipe: a step of each training.

    Args:
        recipe: The system.
        study: Networks, images, size of batches; its own budget does not matter.

    Raises:
        InputError: A metric needs more images than there are.
    """
    return Development(recipe, study, 0, None, None).least


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
        compares = recipe.splitting is not None and recipe.splitting.compares
        if compares or recipe.hierarchy is not None:
            self.batches = study.metric_batches(seed, *recipe.metric_batches)
        self.selection = selection(self)
        self.overhead = overhead.at_most(recipe, study, self.batches)
        self.unit = (study.budget - self.overhead) / recipe.units(study.space)

    @property
    def least(self) -> int:
        """Processed images of the smallest budget that pays for a step of each training."""
        recipe = self.recipe
        steps = [(length, self.processed(1)) for length in (*recipe.before, recipe.after) if length]
        if recipe.hierarchy is not None:
            for level in range(len(recipe.hierarchy.levels)):
                step = self.processed(1, recipe.hierarchy.forwards(level))
                steps.append((recipe.hierarchy.children, step))
        unit = max(step / length for length, step in steps)
        return self.budget_of(unit)

    def budget_of(self, unit: float) -> int:
        """The smallest budget that leaves so many processed images to a training of length 1."""
        return math.ceil(self.overhead + unit * self.recipe.units(self.study.space) - _ROUNDING)

    def run(self) -> Family[Any]:
        """The whole of it.

        Raises:
            InputError: As of `develop`.
        """
        checks.check_space(self)
        checks.check_budget(self)
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
        standing: tuple[int, ...] = ()
        trainings: tuple[dict[str, Any], ...] = ()
        earlier: tuple[tuple[Supernet[Any], ...], ...]
        with self.clock:
            if self.recipe.hierarchy is not None:
                plan, supernets, standing, earlier = narrow(self)
            elif self.recipe.gradual is not None:
                plan, supernets, trainings, earlier = grow(self)
            else:
                plan, supernets = self.divided()
                earlier = self._train_leaves(plan, supernets)
        seconds = self.clock.seconds
        return Family(plan, supernets, standing, self.cost, seconds, trainings, earlier)

    def drawn(self) -> Supernet[Any]:
        """A supernet of the recipe, weights as drawn."""
        return self.study.supernet(self.seed, width=self.recipe.width, **self.recipe.supernet)

    @property
    def spent(self) -> float:
        """Processed images so far."""
        return overhead.processed(self.cost)

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
        seen: int = 0,
        *,
        kept: list[Weights] | None = None,
        **own: Any,
    ) -> int:
        """Train on a part of the budget and of the schedule.

        Args:
            supernet: In place.
            region: Of the paths.
            images: The part of the budget.
            phase: Its name, of files and messages.
            begin: Share of the schedule that lies before it.
            end: Share at its end.
            seen: Training images that the weights have seen, see `source_after`.
            kept: Of the training at the end: gets the weights at the ends of the earlier passes
                that the study keeps, see `train_supernet`.
            **own: Settings of the training in the place of the study's.

        Returns:
            How many they saw here.

        Raises:
            InputError: The part does not pay for a step.
        """
        steps = self.steps_of(images, phase)
        objective = self.recipe.objective(self.study, self.seed)
        if kept is not None:
            own["keep"] = self.study.keep
        config = self.stretch(steps, begin, end, **own)
        source = self.source_after(seen)
        ground = Ground(
            self.study.space, region, source.seed, supernet, self.validation, config.steps
        )
        before = self.spent

        def progress(step: int, steps: int) -> None:
            ends_pass = step == steps or step % config.steps_per_epoch == 0
            if self.selection is not None and ends_pass:
                self.selection.judge(supernet, phase, step)
            self.report(before + self.processed(step))

        cost = train_supernet(
            supernet,
            config,
            source,
            self.recipe.paths.sampler(ground),
            objective,
            settings={**self.settings(phase), "seen": seen},
            checkpoint=self.file(f"{phase}.safetensors"),
            progress=progress,
            kept=kept,
        )
        self.charge(cost)
        if self.selection is not None:
            self.charge(self.selection.cost(phase, config.passes))
        return config.images_of(steps)

    def source_after(self, seen: int) -> Source:
        """The training images, beginning with those that come after the ones seen before.

        So weights that are trained in several parts see new images in each, up to a whole pass. The
        seed of further passes and of paths is another one too.
        """
        if seen == 0:
            return self.source
        seed = generator(self.seed, seen).getrandbits(32)
        return replace(self.source, order=self.source.order.roll(-seen), seed=seed)

    def _seen_before(self, level: int, first: int) -> int:
        """Images of the trainings from level ``first`` on before the one of a level."""
        parts = [self.unit * part for part in self.recipe.before[first:level] if part > 0]
        return sum(self._images_of(self.steps_of(part, "a training")) for part in parts)

    def report(self, processed: float) -> None:
        """Say how far a training has come, in processed images, and keep the time it took."""
        self.clock.lap(every=_SECONDS_BETWEEN_LAPS)
        if self.progress is not None:
            self.progress(round(processed), self.study.budget)

    def steps_of(self, images: float, phase: str, forwards: int | None = None) -> int:
        """Steps that a part of the budget pays for.

        Args:
            images: The part.
            phase: For messages.
            forwards: Passes of the batch that only go forward in a step; None for the recipe's.

        Raises:
            InputError: It does not pay for one.
        """
        full = images / self._images_of(1)  # were a step one path, and nothing else
        most = 2 * int(full) + 2  # steps of a pass, its last short one among them, are half full
        steps = bisect_right(
            range(most), images + _ROUNDING, key=lambda steps: self.processed(steps, forwards)
        )
        if steps < 2:
            raise InputError(
                f"{self.recipe.name}: a budget of {self.study.budget} images leaves {images:.0f} "
                f"for {phase}, less than a step of {self.study.batch_size}"
            )
        return steps - 1

    def processed(self, steps: int, forwards: int | None = None) -> float:
        """Processed images of the first steps of a training; ``forwards`` as of `steps_of`."""
        if steps == 0:
            return 0.0
        paths = self.recipe.paths
        if forwards is None:
            forwards = self.recipe.objective(self.study, self.seed).forwards(paths.trained)
        each = paths.trained + FORWARD_SHARE * forwards
        scored = paths.evaluated(steps, self.study.held_out)
        if self.selection is not None:
            scored += self.selection.images * self.study.training(steps, keep=1).passes
        return self._images_of(steps) * each + FORWARD_SHARE * scored

    def _images_of(self, steps: int) -> int:
        """Training images of the steps of a training, short last batches as what they hold."""
        return self.study.training(steps, keep=1).images_of(steps)

    def charge(self, cost: Budget) -> None:
        """Count images."""
        self.cost += cost

    def stretch(self, steps: int, begin: float, end: float, **own: Any) -> Stretch:
        """The settings of so many steps of a part of the schedule.

        Weights before their end are not kept, unless ``keep`` is among those of its own.
        """
        whole = self.study.training(steps, **{"keep": 1, **own})
        return Stretch(**vars(whole), begin=begin, end=end)

    def share(self, level: int, first: int = 0) -> tuple[float, float]:
        """The part of a schedule from level ``first`` on that a level's training takes."""
        before = self.recipe.before or (0.0,)
        total = sum(before[first:]) + self.recipe.after
        if total == 0:
            return 0.0, 0.0
        return sum(before[first:level]) / total, sum(before[first : level + 1]) / total

    def _place(self, level: int) -> tuple[float, float, int]:
        """Where a training lies in the schedule, and the images that its weights have seen before.

        Args:
            level: Of the supernets; the number of levels for the leaves.
        """
        how, levels = self.recipe.splitting, len(self.recipe.before)
        anew = how is not None and (
            how.inherit == "never" or (how.inherit == "inner" and level == levels)
        )
        first = level if anew else 0
        begin, end = self.share(level, first)
        return begin, 1.0 if level == levels else end, self._seen_before(level, first)

    def divided(self) -> tuple[Plan[Any], tuple[Supernet[Any], ...]]:
        """The plan, and the weights that each leaf starts from."""
        recipe, study = self.recipe, self.study
        if recipe.kinds is not None:
            plan = split_by_kind(study.space, *recipe.kinds)
            if recipe.joint is not None:
                return plan, tuple(recipe.joint(self.drawn(), plan.leaves))
            return plan, tuple(self.drawn() for _ in plan.leaves)
        supernet = self.drawn()
        if recipe.splitting is None:
            return whole_space(study.space), (supernet,)
        trained = any(length > 0 for length in recipe.before)
        divided = split(
            study.space,
            recipe.splitting,
            seed=self.seed,
            supernet=supernet,
            draw=self.drawn,
            batches=self.batches,
            train=self._before_cut if trained else None,
            connected=True,
            checkpoint=self.file("cuts.json"),
            settings=self.settings("cuts"),
            progress=lambda done, known: self.clock.lap(),
        )
        self.charge(overhead.of_plan(recipe.splitting, divided.plan, self.batches))
        return divided.plan, divided.supernets

    def _before_cut(
        self, region: Region[Any], supernet: Supernet[Any], level: int, node: int
    ) -> None:
        images = self.unit * self.recipe.before[level]
        if images == 0:
            return
        self.train(supernet, region, images, f"level-{level}-{node}", *self._place(level))

    def _train_leaves(
        self, plan: Plan[Any], supernets: tuple[Supernet[Any], ...]
    ) -> tuple[tuple[Supernet[Any], ...], ...]:
        """Train the leaves on what is left of the budget; see `Family.earlier`."""
        if self.recipe.after == 0:
            return ()
        kept: list[Weights] = []
        if self.recipe.joint is not None:
            routed = RoutedSupernet(supernets, plan.leaves)
            images = self.study.budget - self.spent
            self.train(routed, plan.root.region, images, "leaves", 0.0, 1.0, kept=kept)  # type: ignore[arg-type]
            return tuple(tuple(one.parts) for one in versions(routed, kept)[:-1])  # type: ignore[arg-type]
        place = self._place(len(self.recipe.before))
        images = (self.study.budget - self.spent) / len(supernets)
        leaves = []
        for leaf, (region, supernet) in enumerate(zip(plan.leaves, supernets, strict=True)):
            # Not the name of `leaf_file`: a family may be saved in the same folder.
            kept = []
            self.train(supernet, region, images, f"final-{leaf}", *place, kept=kept)
            leaves.append(versions(supernet, kept))
        return aligned(leaves)[:-1]
