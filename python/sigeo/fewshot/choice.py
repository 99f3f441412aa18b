"""Which choice of a region is split: the one whose groups are best, or one given or drawn."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from sigeo.errors import InputError
from sigeo.fewshot.partition import Groups, Relation, between, within
from sigeo.kinds import named_arguments
from sigeo.spaces import Kind, Product
from sigeo.supernet import draw_connected


@dataclass(frozen=True)
class Candidate:
    """A choice with its groups.

    Attributes:
        place: Of the choice in ``space.choices``.
        relation: How alike its options left are; None where nothing was measured.
        groups: Partition of 0 to o - 1, places among the options left.
    """

    place: int
    relation: Relation | None
    groups: Groups


def fitting(region: Product[Any], needed: int) -> list[int]:
    """The places of the choices with so many options left, ascending."""
    return [place for place in region.open() if len(region.allowed[place]) >= needed]


def shortage(
    region: Product[Any], cuts: Sequence[int], used: Collection[int] = ()
) -> tuple[int, int, int] | None:
    """Whether there are too few choices for cuts one below another, each of a choice of its own.

    Args:
        region: Whose choices are cut.
        cuts: The options that the choice of each cut must have.
        used: The places of choices that are not to be had.

    Returns:
        How many choices are needed, how many options each must have, and how many such choices
        there are; None where there are enough.
    """
    for needed in cuts:
        wanted = sum(other >= needed for other in cuts)
        found = sum(place not in used for place in fitting(region, needed))
        if wanted > found:
            return wanted, needed, found
    return None


def connected_parts(region: Product[Any], candidates: Sequence[Candidate]) -> list[Candidate]:
    """The candidates of whose parts each has an architecture whose output depends on the input.

    Args:
        region: What they cut.
        candidates: At least one.

    Raises:
        InputError: There is none.
    """
    found = []
    for candidate in candidates:
        options = region.allowed[candidate.place]
        groups = [[options[i] for i in group] for group in candidate.groups]
        lost = [part for part in region.split(candidate.place, groups) if not is_connected(part)]
        if not lost:
            found.append(candidate)
    if not found:
        left = ", ".join(
            f"{choice.name} {'/'.join(choice.options[option] for option in allowed)}"
            for choice, allowed in zip(region.space.choices, lost[0].allowed, strict=True)
        )
        raise InputError(
            f"split: every cut leaves a part in which no output depends on the input ({left}); a "
            "larger smallest of the partitioner keeps more options together"
        )
    return found


def is_connected(part: Product[Any] | Kind[Any]) -> bool:
    """Whether a part has an architecture whose output depends on the input."""
    try:
        draw_connected(part.space, part, random.Random(0))
    except InputError:
        return False
    return True


class ChoiceRule(Protocol):
    """Finds the choice to split.

    Attributes:
        compares: Whether it looks at relations.
    """

    @property
    def compares(self) -> bool:
        """Whether it looks at relations."""
        ...

    def places(self, left: Sequence[int], level: int, rng: random.Random) -> Sequence[int]:
        """The choices to look at.

        Args:
            left: Those that can be split, ascending.
            level: Of the tree, from 0.
            rng: For what is drawn.
        """
        ...

    def score(self, candidate: Candidate) -> float | None:
        """The candidate with the largest is split, the first of equal ones; None for no opinion."""
        ...


def looked_at(
    rule: ChoiceRule, left: Sequence[int], level: int, rng: random.Random
) -> Sequence[int]:
    """The choices that a rule looks at; see `ChoiceRule.places`.

    Raises:
        InputError: There is none, or one that cannot be split.
    """
    places = list(rule.places(left, level, rng))
    if not places or not set(places) <= set(left):
        raise InputError(
            f"choice: the places of {type(rule).__name__} must be some of {list(left)}, which can "
            f"be split on level {level}, got {places or 'none'}"
        )
    return places


@dataclass(frozen=True)
class InTurn:
    """A given choice on each level, as the published splits of the metric-driven framework.

    Attributes:
        order: The place of a choice for each level; empty for 0, 1, 2 and so on.
    """

    order: tuple[int, ...] = ()
    compares: bool = False

    def places(self, left: Sequence[int], level: int, rng: random.Random) -> Sequence[int]:
        """See `ChoiceRule`.

        Raises:
            InputError: The order is too short, or its choice cannot be split.
        """
        if self.order and level >= len(self.order):
            raise InputError(
                f"choice: the order has {len(self.order)} choices, level {level} needs one more"
            )
        place = self.order[level] if self.order else level
        if place not in left:
            raise InputError(
                f"choice: {place}, in turn on level {level}, cannot be split; left are {list(left)}"
            )
        return (place,)

    def score(self, candidate: Candidate) -> float | None:
        """None."""
        return None


@dataclass(frozen=True)
class AnyChoice:
    """A choice drawn uniformly."""

    compares: bool = False

    def places(self, left: Sequence[int], level: int, rng: random.Random) -> Sequence[int]:
        """See `ChoiceRule`."""
        return (rng.choice(left),)

    def score(self, candidate: Candidate) -> float | None:
        """None."""
        return None


Criterion = Callable[[Relation, Groups], float]


def between_mean(relation: Relation, groups: Groups) -> float:
    """Mean distance between groups."""
    return -between(relation.similarities, groups).mean


def between_sum(relation: Relation, groups: Groups) -> float:
    """Summed distance between groups: GM-NAS's code for NAS-Bench-201 and OFA."""
    return -between(relation.similarities, groups).total


def within_sum(relation: Relation, groups: Groups) -> float:
    """Summed similarity within groups: GM-NAS's code for the DARTS and ProxylessNAS spaces."""
    return within(relation.similarities, groups).total


def separation(relation: Relation, groups: Groups) -> float:
    """Mean similarity within groups minus that between them.

    Groups of one option each hold nothing but what is alike: an option and itself.
    """
    inside, across = (f(relation.similarities, groups) for f in (within, between))
    return (inside.mean if inside.count else relation.itself) - across.mean


def most_alike(relation: Relation, groups: Groups) -> float:
    """Summed similarity between groups: NAS-LID's code, against its description."""
    return between(relation.similarities, groups).total


_CRITERIA: dict[str, Criterion] = {
    f.__name__: f for f in (between_mean, between_sum, within_sum, separation, most_alike)
}


@dataclass(frozen=True)
class BestGroups:
    """The choice whose groups have the largest value of a criterion.

    Attributes:
        criterion: ``between_mean`` (the default), ``between_sum``, ``within_sum``, ``separation``
            or ``most_alike``; the functions of this module say what they are.
    """

    criterion: str = "between_mean"
    compares: bool = True

    def __post_init__(self) -> None:
        """Check the name.

        Raises:
            InputError: No criterion of that name.
        """
        if self.criterion not in _CRITERIA:
            raise InputError(
                f"choice: criterion must be one of {', '.join(_CRITERIA)}, got {self.criterion!r}"
            )

    def places(self, left: Sequence[int], level: int, rng: random.Random) -> Sequence[int]:
        """All of them."""
        return left

    def score(self, candidate: Candidate) -> float | None:
        """See `ChoiceRule`; None where nothing was measured."""
        if candidate.relation is None:
            return None
        return _CRITERIA[self.criterion](candidate.relation, candidate.groups)


def names() -> list[str]:
    """The names that `get` takes."""
    return ["in_turn", "random", *_CRITERIA]


@named_arguments("choice.get")
def get(name: str, **options: Any) -> ChoiceRule:
    """The rule of a name.

    Args:
        name: One of `names`.
        **options: Of ``in_turn`` its ``order``.

    Raises:
        InputError: No rule of that name, or an option that it does not have.
    """
    makers: dict[str, Callable[..., ChoiceRule]] = {"in_turn": InTurn, "random": AnyChoice}
    if name not in names():
        raise InputError(f"choice must be one of {', '.join(names())}, got {name!r}")
    try:
        return makers[name](**options) if name in makers else BestGroups(name, **options)
    except TypeError as error:
        raise InputError(f"choice {name}: {error}") from error
