"""Splitting: a supernet's space is cut level by level, as a metric of its weights says.

A published system is a `Splitting`: a metric of options, a partitioner, a rule for the choice, a
tree of factors, and what the children start from.
"""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from torch import nn

from sigeo.capture import Batches
from sigeo.errors import InputError, check_kind
from sigeo.fewshot.branching import (
    EVERY,
    Branch,
    Branching,
    Visit,
    cuts_of,
    options_needed,
    visits,
)
from sigeo.fewshot.choice import (
    BestGroups,
    Candidate,
    ChoiceRule,
    InTurn,
    connected_parts,
    fitting,
    is_connected,
    looked_at,
    shortage,
)
from sigeo.fewshot.description import description
from sigeo.fewshot.metrics import Metric, Subject
from sigeo.fewshot.metrics.base import check as check_metric
from sigeo.fewshot.metrics.base import compared
from sigeo.fewshot.partition import Exact, Partitioner, Relation, grouped
from sigeo.fewshot.plan import Cut, Node, Plan
from sigeo.fewshot.plan_file import decided, save_plan
from sigeo.kinds import named_arguments
from sigeo.scoring.export import strict_dumps
from sigeo.spaces import Product, SearchSpace, Supernet
from sigeo.supernet.settings import Progress

A = TypeVar("A")

Train = Callable[[Product[Any], Supernet[Any], int, int], None]
"""(region, supernet, level, number of the node on it): trains the weights in place."""


@dataclass(frozen=True)
class Splitting:
    """How a space is split.

    Attributes:
        metric: Compares the options of a choice; None where neither partitioner nor rule compares.
        branching: Into how many parts, level by level.
        partitioner: Cuts options into groups.
        choice: Finds the choice to split.
        again: Whether a choice that was split above may be split again.
        inherit: What children start from: "always", the weights of their parent; "inner", the same
            but on the last level weights as drawn (GM-NAS's final restart); "never", weights as
            drawn. A node with factor 1 goes on as its own child.
    """

    metric: Metric | None
    branching: Branching
    partitioner: Partitioner = field(default_factory=Exact)
    choice: ChoiceRule = field(default_factory=BestGroups)
    again: bool = False
    inherit: Literal["always", "inner", "never"] = "always"

    def __post_init__(self) -> None:
        """Check the parts.

        Raises:
            InputError: A part is something else, nothing is measured for one that compares, or an
                unknown way to inherit.
        """
        if self.metric is not None:
            check_kind(self.metric, Metric, "split: metric")
        check_kind(self.branching, Branching, "split: branching")
        check_kind(self.partitioner, Partitioner, "split: partitioner")
        check_kind(self.choice, ChoiceRule, "split: choice")
        if self.metric is None and self.compares:
            raise InputError("split: the partitioner or the choice rule needs a metric, got none")
        if self.inherit not in ("always", "inner", "never"):
            raise InputError(f"split: inherit must be always, inner or never, got {self.inherit!r}")

    @property
    def compares(self) -> bool:
        """Whether the metric decides anything."""
        return self.partitioner.compares or self.choice.compares

    def check(
        self, region: Product[A], supernet: Supernet[A] | None, batches: Batches | None
    ) -> None:
        """Check what is known before anything is trained.

        Args:
            region: What is to be split.
            supernet: Its weights, trained or as drawn; None for metrics without networks.
            batches: What the metric measures on; None for metrics without data.

        Raises:
            InputError: The choices have not the options that the cuts need, the partitioner does
                not make such cuts, or the metric is not served by the weights or the batches.
        """
        self.check_cuts(region)
        first = next(cuts_of(self.branching.paths[0]), None)
        if first is None or self.metric is None or not self.compares:
            return
        level, needed = first
        place = looked_at(self.choice, fitting(region, needed), level, random.Random(0))[0]
        check_metric(self.metric, Subject(region, place, 0, supernet, batches))

    def check_cuts(self, region: Product[A]) -> None:
        """Check the cuts alone, as far as `check` does.

        Args:
            region: What is to be split.

        Raises:
            InputError: The choices have not the options that the cuts need, or the partitioner does
                not make such cuts.
        """
        for path in self.branching.paths:
            self._check_path(region, path)

    def _check_path(self, region: Product[Any], path: Sequence[int]) -> None:
        """Whether there are choices for all cuts from the root to a leaf, and a way to cut them.

        Raises:
            InputError: There are none, or the partitioner does not make such groups.
        """
        cuts = [needed for _, needed in cuts_of(path)]
        # One choice may serve all cuts again and again, but each must find one.
        for some in [[needed] for needed in cuts] if self.again else [cuts]:
            if lack := shortage(region, some):
                raise InputError(
                    "split: cuts one below another need {} or more choices with at least {} "
                    "options, got {}".format(*lack)
                )
        used: set[int] = set()
        for level, needed in cuts_of(path):
            places = fitting(region, needed)
            if isinstance(self.choice, InTurn):
                left = [place for place in places if self.again or place not in used]
                places = list(self.choice.places(left, level, random.Random(0)))
                used.update(places)
            for options in {len(region.allowed[place]) for place in places}:
                self.partitioner.check(options, path[level] or options)

    def left(
        self, region: Product[Any], factors: tuple[int, ...], used: Collection[int]
    ) -> list[int]:
        """The choices that a node may be cut by.

        A choice that cuts below the node cannot do without is not one of them.

        Args:
            region: Of the node.
            factors: From the root to the node, its own the last.
            used: The places of the choices split above it.
        """
        places = fitting(region, options_needed(factors[-1]))
        if self.again:
            return places
        below = self.branching.needed_below(factors)
        return [
            place
            for place in places
            if place not in used
            and not any(shortage(region, cuts, {*used, place}) for cuts in below)
        ]

    def describe(self) -> dict[str, Any]:
        """All parts with their settings, as JSON can hold them."""
        return {field.name: description(getattr(self, field.name)) for field in fields(self)}


@dataclass(frozen=True)
class Divided(Generic[A]):
    """The result of a splitting.

    Attributes:
        plan: Which leaf serves which architecture.
        supernets: The weights that each leaf starts from; empty without a supernet.
    """

    plan: Plan[A]
    supernets: tuple[Supernet[A], ...]


@named_arguments("split")
def split(
    space: SearchSpace[A],
    how: Splitting,
    *,
    seed: int = 0,
    supernet: Supernet[A] | None = None,
    batches: Batches | Iterable[Any] | None = None,
    train: Train | None = None,
    draw: Callable[[], Supernet[A]] | None = None,
    warmed: bool = False,
    region: Product[A] | None = None,
    connected: bool = False,
    checkpoint: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Divided[A]:
    """Split a space.

    On each level every current supernet is trained, if there is a ``train``, and then cut; each
    part gets a copy of all of its parent's weights, those of the pinned options included.

    Args:
        space: The space.
        how: The rules.
        seed: Of paths, draws and weights as drawn.
        supernet: The weights of the whole, which stay as they are; metrics of networks need them.
        batches: What metrics measure on: `Batches`, or pairs (inputs, labels) as `Batches` takes.
        train: Called for each node before it is cut. Its own checkpoints make it go on after a
            kill; it must do the same whenever it is called with the same arguments.
        draw: Makes weights as drawn, of a supernet made with the same options as the one given;
            None for ``space.supernet(seed=seed)``.
        warmed: Whether the weights given have been trained.
        region: The part of the space to split; None for all of it.
        connected: Whether every part must have an architecture whose output depends on the input,
            as a part that is to be trained needs: a choice whose groups leave one without is passed
            over, also where the checkpoint has it.
        checkpoint: A plan file, written after every cut; if there is one of the same settings, its
            cuts are not measured again.
        settings: What the cuts depend on beside the rules and the seed, as JSON can hold it: data,
            the weights given. Kept in the checkpoint, with those under the key "splitting".
        progress: Called after each node with (nodes done, nodes known of).

    Raises:
        InputError: No choice is left to split, or none whose parts are connected; weights or
            batches do not serve the metric; or the checkpoint is damaged or of other settings.
    """
    trained = warmed or train is not None
    if how.compares and how.metric is not None and how.metric.initial_weights and trained:
        raise InputError(f"{how.metric.name} needs weights as drawn, got trained ones")
    if train is not None and supernet is None:
        raise InputError("split: training needs a supernet, got none")
    root = Product.whole(space) if region is None else region
    model: Any = nn.Identity() if supernet is None else supernet  # says the device
    data = None if batches is None else Batches.of(batches, model, "auto")
    how.check(root, supernet, data)
    own = how.describe() | {"seed": seed}
    kept = json.loads(strict_dumps({**(settings or {}), "splitting": own}))
    file = None if checkpoint is None else Path(checkpoint)
    known = None if file is None else decided(file, root, kept)
    start = Branch(root, copy.deepcopy(supernet), known)
    drawn = draw or (lambda: space.supernet(seed=seed))
    run = _Run(space, how, seed, data, train, drawn, connected)

    def keep() -> None:
        if file is not None:
            save_plan(file, Plan(start.node(decided=True)), kept)

    run.grow(start, keep, progress)
    weights = tuple(leaf.supernet for leaf in start.leaves() if leaf.supernet is not None)
    return Divided(Plan(start.node(decided=False)), weights)


@dataclass(frozen=True)
class _Run(Generic[A]):
    """One splitting."""

    space: SearchSpace[A]
    how: Splitting
    seed: int
    batches: Batches | None
    train: Train | None
    draw: Callable[[], Supernet[A]]
    connected: bool

    def grow(self, root: Branch[A], keep: Callable[[], None], progress: Progress | None) -> None:
        """Cut level by level."""
        for done, visit in enumerate(visits(self.how.branching, root), 1):
            branch = visit.node
            if self.train is not None and branch.supernet is not None:
                self.train(branch.region, branch.supernet, visit.level, visit.number)
            if visit.factor == 1:
                branch.supernet = self._children(visit, 1)[0]
            else:
                self._divide(visit)
                keep()
            if progress is not None:
                progress(done, done + visit.after)

    def _divide(self, visit: Visit[Branch[A]]) -> None:
        branch, factor = visit.node, visit.factor
        known = branch.decided
        if known is not None and known.cut is not None and self._serve(known.children):
            cut, decided = known.cut, known.children
        else:
            cut, decided = self._cut(visit), ()
        place = cut.by
        if not isinstance(place, int) or len(cut.groups) != (factor or len(cut.groups)):
            raise InputError(
                f"plan: expected a cut of node {visit.number} of level {visit.level} into {factor} "
                f"groups of options, got {len(cut.groups)} by {place}"
            )
        parts = branch.region.split(place, cut.groups)
        weights = self._children(visit, len(parts))
        branch.cut = cut
        branch.children = tuple(
            Branch(part, supernet, decided[i] if decided else None)
            for i, (part, supernet) in enumerate(zip(parts, weights, strict=True))
        )
        branch.supernet = None

    def _serve(self, parts: Sequence[Node[A]]) -> bool:
        """Whether parts decided before can be taken: cuts may be kept that were not `connected`."""
        return not self.connected or all(is_connected(part.region) for part in parts)

    def _children(self, visit: Visit[Branch[A]], count: int) -> list[Supernet[A] | None]:
        """The weights that the parts start from.

        Raises:
            InputError: Weights as drawn do not fit.
        """
        branch = visit.node
        if branch.supernet is None:
            return [None] * count
        last = visit.level + 1 == len(self.how.branching.levels)
        if self.how.inherit == "never" or (self.how.inherit == "inner" and last):
            drawn: nn.Module = self.draw()  # type: ignore[assignment]
            module: nn.Module = branch.supernet  # type: ignore[assignment]
            try:
                module.load_state_dict(drawn.state_dict())
            except RuntimeError:
                raise InputError(
                    "split: weights as drawn do not fit the supernet given; make them with its "
                    "options, see `draw`"
                ) from None
        copies = [copy.deepcopy(branch.supernet) for _ in range(count - 1)]
        return [branch.supernet, *copies]

    def _cut(self, visit: Visit[Branch[A]]) -> Cut:
        """The best groups of the best choice.

        Raises:
            InputError: No choice has options enough, or none has connected parts.
        """
        how, branch, level, number = self.how, visit.node, visit.level, visit.number
        left = how.left(branch.region, visit.factors, visit.used)
        if not left:
            raise InputError(
                f"split: node {number} of level {level} has no choice left with "
                f"{options_needed(visit.factor)} options or more that was not split before"
            )
        seed = f"{self.seed}/{level}/{number}"
        rng = random.Random(f"{seed}/choice")
        candidates = [
            self._candidate(branch, place, visit.factor, seed)
            for place in looked_at(how.choice, left, level, rng)
        ]
        if self.connected:
            candidates = connected_parts(branch.region, candidates)
        scores = [how.choice.score(candidate) for candidate in candidates]
        best = max(
            range(len(candidates)),
            key=lambda i: (-float("inf") if (score := scores[i]) is None else score, -i),
        )
        chosen = candidates[best]
        options = branch.region.allowed[chosen.place]
        groups = tuple(tuple(options[i] for i in group) for group in chosen.groups)
        return Cut(chosen.place, groups, scores[best])

    def _candidate(self, branch: Branch[A], place: int, factor: int, seed: str) -> Candidate:
        how = self.how
        options = branch.region.allowed[place]
        relation = None
        if how.compares and how.metric is not None:
            subject = Subject(branch.region, place, seed, branch.supernet, self.batches)
            relation = compared(how.metric, subject)
        blank = Relation.of([[0.0] * len(options)] * len(options), "distance")
        groups = grouped(
            how.partitioner,
            relation or blank,
            len(options) if factor == EVERY else factor,
            random.Random(f"{seed}/{place}/partition"),
        )
        return Candidate(place, relation, groups)
