"""Into how many parts each node is cut, level by level."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby, islice
from typing import Any, Generic, Protocol, TypeVar

from sigeo.errors import InputError
from sigeo.fewshot.plan import Cut, Node
from sigeo.kinds import check_fields, named_arguments
from sigeo.spaces import Product, Supernet

EVERY = 0
"""The factor that stands for as many parts as there are options left."""

_MOST = 1_000_000

A = TypeVar("A")


def options_needed(factor: int) -> int:
    """Options that a choice must have for a cut by a factor; 0 for 1, which does not cut."""
    return 0 if factor == 1 else max(2, factor)


def cuts_of(path: Sequence[int]) -> Iterator[tuple[int, int]]:
    """The cuts of a path of factors from the root down.

    Yields:
        The level of each, and the options that its choice must have.
    """
    for level, factor in enumerate(path):
        if needed := options_needed(factor):
            yield level, needed


@dataclass(frozen=True)
class Branching:
    """The factors of a tree of cuts; a node with factor 1 is not cut on that level.

    Attributes:
        levels: For each level one factor for all of its nodes, or a tuple with one a node.
    """

    levels: tuple[int | tuple[int, ...], ...]

    def __post_init__(self) -> None:
        """Check the factors.

        Raises:
            InputError: One that is no whole number or below 0, or not as many as the level has
                nodes.
        """
        check_fields(self, "branching")
        levels = tuple(
            tuple(map(int, n)) if isinstance(n, Iterable) else int(n) for n in self.levels
        )
        object.__setattr__(self, "levels", levels)
        nodes: int | None = 1
        for number, level in enumerate(levels):
            factors = (level,) if isinstance(level, int) else level
            if min(factors, default=0) < EVERY or not factors:
                raise InputError(f"branching: factors must be from 0, got {level}")
            if isinstance(level, tuple):
                if nodes is not None and len(level) != nodes:
                    raise InputError(
                        f"branching: level {number} has {nodes} nodes, got {len(level)} factors"
                    )
                nodes = None if EVERY in level else sum(level)
            elif nodes is not None:
                nodes = None if level == EVERY else nodes * level

    @classmethod
    @named_arguments("of_leaves")
    def of_leaves(cls, leaves: int, factors: Sequence[int] = (2,)) -> Branching:
        """The tree with a number of leaves (Ly-Manson et al., AutoML 2024, the code).

        The factors are used in ascending order, one a level, the largest again and again; the last
        level gets factors that differ by at most 1 and make up the number.

        Args:
            leaves: How many, from 1 to a million: each is to be a supernet.
            factors: Each 2 or more.

        Raises:
            InputError: A number out of its range.
        """
        if not 1 <= leaves <= _MOST or not factors or min(factors) < 2:
            raise InputError(
                f"branching: expected 1 to {_MOST:,} leaves and factors from 2, "
                f"got {leaves:,} and {list(factors)}"
            )
        ascending = sorted(factors)
        levels: list[int | tuple[int, ...]] = []
        nodes = 1
        while nodes < leaves:
            factor = ascending[min(len(levels), len(ascending) - 1)]
            if nodes * factor > leaves:
                least, more = divmod(leaves, nodes)
                levels.append((least + 1,) * more + (least,) * (nodes - more))
                break
            levels.append(factor)
            nodes *= factor
        return cls(tuple(levels))

    @classmethod
    def exhaustive(cls, levels: int = 1) -> Branching:
        """One part an option, on every level (Zhao et al., ICML 2021)."""
        return cls((EVERY,) * levels)

    @cached_property
    def paths(self) -> tuple[tuple[int, ...], ...]:
        """The factors from the root to the nodes of the last level, each sequence once.

        Below `EVERY` it is not known how many nodes there are. All of them then count with the
        factor of their level that needs the fewest options.
        """
        runs: list[tuple[tuple[int, ...], int]] = [((), 1)]  # nodes next to each other
        for level in self.levels:
            factors = iter(() if isinstance(level, int) else level)
            known = all(nodes != EVERY for _, nodes in runs)
            following = []
            for path, nodes in runs:
                if isinstance(level, int):
                    found = [(level, nodes)]
                elif not known:
                    found = [(min(level, key=options_needed), EVERY)]
                else:
                    same = groupby(islice(factors, nodes))
                    found = [(factor, len(list(equal))) for factor, equal in same]
                following += [((*path, factor), count * factor) for factor, count in found]
            runs = following
        return tuple(dict.fromkeys(path for path, _ in runs))

    def needed_below(self, factors: tuple[int, ...]) -> list[tuple[int, ...]]:
        """What cuts below a node need: for each way down, the options of the choice of each cut.

        Args:
            factors: From the root to the node, its own the last.
        """
        level = len(factors)
        # Below `EVERY` a path stands for all nodes of a level, whatever the factor of each is.
        paths = [path for path in self.paths if path[:level] == factors] or self.paths
        cuts = [tuple(needed for at, needed in cuts_of(path) if at >= level) for path in paths]
        return list(dict.fromkeys(cuts))

    def factor(self, level: int, node: int) -> int:
        """The factor of a node, counted from 0 along its level.

        Raises:
            InputError: The level has no factor for that node.
        """
        factors = self.levels[level]
        if isinstance(factors, int):
            return factors
        if not 0 <= node < len(factors):
            raise InputError(
                f"branching: level {level} has {len(factors)} factors, none for node {node}"
            )
        return factors[node]


@dataclass
class Branch(Generic[A]):
    """A node of the tree while it grows, with the weights that serve it."""

    region: Product[A]
    supernet: Supernet[A] | None
    decided: Node[A] | None
    cut: Cut | None = None
    children: tuple[Branch[A], ...] = ()

    def node(self, *, decided: bool) -> Node[A]:
        """The node; with cuts that were decided before a kill and are not taken again yet."""
        if self.cut is None:
            return self.decided if decided and self.decided is not None else Node(self.region)
        children = tuple(child.node(decided=decided) for child in self.children)
        return Node(self.region, self.cut, children)

    def leaves(self) -> list[Branch[A]]:
        """The nodes without children, from the first to the last."""
        if self.cut is None:
            return [self]
        return [leaf for child in self.children for leaf in child.leaves()]


class _Divisible(Protocol):
    """A node that is cut, or will be."""

    @property
    def cut(self) -> Cut | None: ...

    @property
    def children(self) -> Sequence[Any]: ...


N = TypeVar("N", bound=_Divisible)


@dataclass(frozen=True)
class Visit(Generic[N]):
    """A node on the way through a tree.

    Attributes:
        node: The node.
        level: Of the tree, from 0.
        number: Of the node on its level, from 0; one that was not cut goes on as its own child.
        after: How many nodes the level has after it.
        factors: From the root to the node, its own the last.
        used: The places of the choices split above it.
    """

    node: N
    level: int
    number: int
    after: int
    factors: tuple[int, ...]
    used: frozenset[int]

    @property
    def factor(self) -> int:
        """Of the node."""
        return self.factors[-1]


def visits(branching: Branching, root: N) -> Iterator[Visit[N]]:
    """Go through a tree level by level.

    Yields:
        Each node, which must be cut by its factor before the next is taken.

    Raises:
        InputError: A level has not as many factors as nodes.
    """
    current: list[tuple[N, tuple[int, ...], frozenset[int]]] = [(root, (), frozenset())]
    for level in range(len(branching.levels)):
        following = []
        for number, (node, above, used) in enumerate(current):
            factors = (*above, branching.factor(level, number))
            yield Visit(node, level, number, len(current) - number - 1, factors, used)
            if factors[-1] == 1:
                following.append((node, factors, used))
                continue
            assert node.cut is not None
            used |= {int(node.cut.by)}
            following += [(child, factors, used) for child in node.children]
        current = following
