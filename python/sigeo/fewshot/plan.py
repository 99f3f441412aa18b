"""Which sub-supernet serves which architecture: a tree of regions, cut again and again."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Generic, TypeVar

from sigeo.errors import InputError
from sigeo.fewshot.kind_functions import kind_function
from sigeo.kinds import named_arguments
from sigeo.spaces import Kind, Product, SearchSpace

A = TypeVar("A", bound=Hashable)
Groups = tuple[tuple[int, ...], ...]

_COUNTED = 1_000_000


@dataclass(frozen=True)
class Cut:
    """How the architectures of a region are divided.

    Attributes:
        by: The place of a choice in ``space.choices``, or the name of a kind function.
        groups: The options of the choice, or the kinds, that go to each part.
        score: What the rule that chose the cut made of it; None where there was none.
    """

    by: int | str
    groups: Groups
    score: float | None = None

    def code(self, space: SearchSpace[A], arch: A) -> int:
        """The option or kind of an architecture."""
        if isinstance(self.by, int):
            return space.encode(arch)[self.by]
        return kind_function(space, self.by).function(arch)


@dataclass(frozen=True)
class Node(Generic[A]):
    """A region, and what it is divided into.

    Attributes:
        region: The architectures.
        cut: How they are divided; None for a leaf, which is served by a sub-supernet.
        children: One a group of the cut.
    """

    region: Product[A] | Kind[A]
    cut: Cut | None = None
    children: tuple[Node[A], ...] = ()

    @classmethod
    def divided(
        cls,
        region: Product[A] | Kind[A],
        cut: Cut,
        grow: Callable[[Product[A] | Kind[A], int], Node[A]] | None = None,
    ) -> Node[A]:
        """A node that is cut.

        Args:
            region: What is divided.
            cut: How.
            grow: (part, its number) to the child; leaves without it.

        Raises:
            InputError: The groups do not hold every option left, or every kind, once.
        """
        parts = enumerate(_parts(region, cut))
        return cls(
            region,
            cut,
            tuple(cls(part) if grow is None else grow(part, place) for place, part in parts),
        )

    def leaves(self) -> Iterator[Node[A]]:
        """The leaves, from the first group on.

        Yields:
            Each leaf below the node, or the node itself.
        """
        if self.cut is None:
            yield self
        for child in self.children:
            yield from child.leaves()

    @cached_property
    def leaf_count(self) -> int:
        """How many leaves there are."""
        return sum(child.leaf_count for child in self.children) if self.cut is not None else 1


def _parts(region: Product[A] | Kind[A], cut: Cut) -> Sequence[Product[A] | Kind[A]]:
    if isinstance(region, Kind):
        raise InputError("plan: a region of kinds is not divided further")
    if any(not group for group in cut.groups) or len(cut.groups) < 2:
        raise InputError(f"plan: a cut needs two groups or more, none empty, got {cut.groups}")
    if isinstance(cut.by, int):
        if not 0 <= cut.by < len(region.space.choices):
            raise InputError(
                f"plan: choice must be from 0 to {len(region.space.choices) - 1}, got {cut.by}"
            )
        return region.split(cut.by, cut.groups)
    known = kind_function(region.space, cut.by)
    known.check(cut.groups)
    whole = region == Product.whole(region.space)
    within = None if whole else region
    return [
        Kind(region.space, known.function, frozenset(group), within=within) for group in cut.groups
    ]


@dataclass(frozen=True)
class Plan(Generic[A]):
    """The tree of a space; its leaves, numbered from 0, are sub-supernets.

    Every cut holds each option left once, so every architecture of the root's region belongs to
    exactly one leaf.

    Attributes:
        root: The whole space, or the part that is served.
    """

    root: Node[A]

    def __post_init__(self) -> None:
        """Check that every node's children are what its cut says.

        Raises:
            InputError: They are not.
        """
        waiting = [self.root]
        while waiting:
            node = waiting.pop()
            parts = () if node.cut is None else tuple(_parts(node.region, node.cut))
            if parts != tuple(child.region for child in node.children):
                raise InputError("plan: a node's children must be the parts that its cut makes")
            waiting.extend(node.children)

    @property
    def space(self) -> SearchSpace[A]:
        """Whose architectures."""
        return self.root.region.space

    @cached_property
    def leaves(self) -> tuple[Product[A] | Kind[A], ...]:
        """The regions of the leaves."""
        return tuple(node.region for node in self.root.leaves())

    @cached_property
    def sizes(self) -> tuple[int | None, ...]:
        """Number of architectures of each leaf, as `size_of` knows it."""
        return tuple(size_of(region) for region in self.leaves)

    def route(self, arch: A) -> int:
        """The number of the leaf that serves an architecture.

        Raises:
            InputError: None does; the plan is of a part of the space, or it is of a kind that its
                function was not said to have.
        """
        if arch not in self.root.region:
            raise InputError(f"plan: no sub-supernet serves {arch}")
        node, number = self.root, 0
        while node.cut is not None:
            code = node.cut.code(self.space, arch)
            places = [i for i, group in enumerate(node.cut.groups) if code in group]
            if not places:
                raise InputError(
                    f"plan: {node.cut.by} of {arch} is {code}, none of {list(node.cut.groups)}"
                )
            (place,) = places
            number += sum(child.leaf_count for child in node.children[:place])
            node = node.children[place]
        return number

    def routed(self, archs: Iterable[A]) -> list[list[A]]:
        """Architectures by the leaf that serves them, in their order.

        Raises:
            InputError: One that no leaf serves.
        """
        served: list[list[A]] = [[] for _ in self.leaves]
        for arch in archs:
            served[self.route(arch)].append(arch)
        return served


def size_of(region: Product[Any] | Kind[Any]) -> int | None:
    """Number of architectures; None for kinds of more than a million, which would be counted."""
    if isinstance(region, Kind):
        searched = region.space.size if region.within is None else region.within.size
        if searched > _COUNTED:
            return None
    return region.size


@named_arguments("whole_space")
def whole_space(space: SearchSpace[A]) -> Plan[A]:
    """The plan of one supernet for everything."""
    return Plan(Node(Product.whole(space)))


@named_arguments("split_by_kind")
def split_by_kind(space: SearchSpace[A], name: str, groups: Sequence[Sequence[int]]) -> Plan[A]:
    """A plan of one sub-supernet a group of kinds.

    Args:
        space: The space.
        name: Of the kind function, such as ``nonlinear_depth`` (EFS-NAS).
        groups: All kinds, in groups.

    Raises:
        InputError: No such function, or groups that do not hold each kind once.
    """
    cut = Cut(name, tuple(tuple(sorted(group)) for group in groups))
    return Plan(Node.divided(Product.whole(space), cut))


@named_arguments("joint")
def joint(region: Product[A], cuts: Sequence[Cut]) -> Node[A]:
    """All combinations of the groups of several cuts, each of another choice (HEP-NAS).

    Raises:
        InputError: A cut that does not fit the region.
    """
    if not cuts:
        return Node(region)
    return Node.divided(region, cuts[0], lambda part, _: joint(part, cuts[1:]))  # type: ignore[arg-type]


def describe_root(plan: Plan[Any]) -> list[list[str]]:
    """The options that the plan's root has left of each choice, by name.

    Raises:
        InputError: The root is a region of kinds.
    """
    region = plan.root.region
    if isinstance(region, Kind):
        raise InputError("plan: the root must be a product of options, got a region of kinds")
    return [
        [choice.options[option] for option in options]
        for choice, options in zip(plan.space.choices, region.allowed, strict=True)
    ]
