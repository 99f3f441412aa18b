"""Ways to cut the options of a choice into groups.

With the sum of all pairs fixed, the smallest summed similarity between groups, the largest within
them, and the largest summed distance between them are one and the same partition. What the
published systems differ in is the matrix and which sizes they try.
"""

from __future__ import annotations

import operator
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from sigeo.errors import InputError
from sigeo.fewshot.partition.relation import Group, Groups, Relation, between, within
from sigeo.fewshot.partition.sets import check_groups, check_sizes, sized_partitions
from sigeo.kinds import is_of


class Partitioner(Protocol):
    """Cuts options 0 to o - 1 into groups.

    Attributes:
        compares: Whether it looks at how alike they are, or at their number alone.
    """

    @property
    def compares(self) -> bool:
        """Whether it looks at how alike they are, or at their number alone."""
        ...

    def check(self, options: int, groups: int) -> None:
        """Check that so many options can be cut into so many groups.

        Raises:
            InputError: They cannot.
        """
        ...

    def __call__(self, relation: Relation, groups: int, rng: random.Random) -> Groups:
        """The groups, each ascending, in the order of their first options.

        Args:
            relation: How alike the options are.
            groups: How many.
            rng: For what is drawn.
        """
        ...


@dataclass(frozen=True)
class Exact:
    """The best of all partitions; the first of equal ones in the order of `set_partitions`.

    GM-NAS (Hu et al., ICLR 2022) takes ``smallest=2``, sides of 2 and 3 on five options; so does
    NAS-LID (AAAI 2023). The metric-driven framework (Ly-Manson et al., AutoML 2024) takes
    ``smallest=1``.

    Attributes:
        smallest: Options of every group, as far as there are enough of them.
        objective: "sum" for the minimum cut; "mean" for the largest mean similarity within groups
            minus that between them, which does not favour uneven groups.
    """

    smallest: int = 1
    objective: Literal["sum", "mean"] = "sum"
    compares: bool = True

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            InputError: Groups of no option, or another objective.
        """
        _check_smallest(self.smallest)
        if self.objective not in ("sum", "mean"):
            raise InputError(f"partition: objective must be sum or mean, got {self.objective!r}")

    def check(self, options: int, groups: int) -> None:
        """See `Partitioner`.

        Raises:
            InputError: Too many options or groups.
        """
        check_sizes(options, groups)

    def __call__(self, relation: Relation, groups: int, rng: random.Random) -> Groups:
        """See `Partitioner`.

        Raises:
            InputError: Too many options or groups.
        """
        values = relation.similarities

        def cost(partition: Groups) -> float:
            cut = between(values, partition)
            if self.objective == "sum":
                return cut.total
            return cut.mean - within(values, partition).mean

        return min(sized_partitions(relation.count, groups, self.smallest), key=cost)


@dataclass(frozen=True)
class Random:
    """Any partition, all equally likely.

    Attributes:
        smallest: As of `Exact`.
    """

    smallest: int = 1
    compares: bool = False

    def __post_init__(self) -> None:
        """Check the option.

        Raises:
            InputError: Groups of no option.
        """
        _check_smallest(self.smallest)

    def check(self, options: int, groups: int) -> None:
        """See `Partitioner`.

        Raises:
            InputError: Too many options or groups.
        """
        check_sizes(options, groups)

    def __call__(self, relation: Relation, groups: int, rng: random.Random) -> Groups:
        """See `Partitioner`.

        Raises:
            InputError: Too many options or groups.
        """
        return rng.choice(sized_partitions(relation.count, groups, self.smallest))


@dataclass(frozen=True)
class Exhaustive:
    """Every option its own group (Few-Shot NAS, Zhao et al., ICML 2021)."""

    compares: bool = False

    def check(self, options: int, groups: int) -> None:
        """See `Partitioner`.

        Raises:
            InputError: Another number of groups than of options.
        """
        if groups != options:
            raise InputError(
                f"partition: exhaustive makes {options} groups of as many options, "
                f"got {groups} to make"
            )

    def __call__(self, relation: Relation, groups: int, rng: random.Random) -> Groups:
        """See `Partitioner`."""
        self.check(relation.count, groups)
        return tuple((option,) for option in range(relation.count))


@dataclass(frozen=True)
class InOrder:
    """Neighbours in the space's order of options, in groups whose sizes differ by at most 1.

    For options that have an order, such as kernel sizes and widths.
    """

    compares: bool = False

    def check(self, options: int, groups: int) -> None:
        """See `Partitioner`.

        Raises:
            InputError: More groups than options.
        """
        check_groups(options, groups)

    def __call__(self, relation: Relation, groups: int, rng: random.Random) -> Groups:
        """See `Partitioner`."""
        count = relation.count
        self.check(count, groups)
        ends = [count * place // groups for place in range(groups + 1)]
        return tuple(tuple(range(ends[place], ends[place + 1])) for place in range(groups))


def grouped(
    partitioner: Partitioner, relation: Relation, groups: int, rng: random.Random
) -> Groups:
    """The groups that a partitioner makes, which may be one's own; see `Partitioner`.

    Raises:
        InputError: They are no sequences of whole numbers, are not as many, one is empty, or they
            do not hold each option once.
    """
    found = partitioner(relation, groups, rng)
    partition = _plain(found)
    held = Counter(option for group in partition for option in group)
    whole = all(partition) and held == Counter(range(relation.count))
    if len(partition) != groups or not whole:
        raise InputError(
            f"partition: expected {groups} groups that hold each of 0 to {relation.count - 1} "
            f"once, none empty, got {' '.join(repr(found).split())}"
        )
    return partition


def _plain(found: object) -> Groups:
    """Sequences of whole numbers as tuples of them; no groups where it is something else."""
    if not isinstance(found, Sequence) or not all(isinstance(group, Sequence) for group in found):
        return ()
    try:
        return tuple(tuple(operator.index(option) for option in group) for group in found)
    except TypeError:
        return ()


def _check_smallest(smallest: int) -> None:
    if not is_of(smallest, int) or smallest < 1:
        raise InputError(
            f"partition: smallest must be a whole number of at least 1, got {smallest!r}"
        )


def ordered(groups: list[Group]) -> Groups:
    """Groups with ascending options, in the order of their first ones."""
    return tuple(sorted(tuple(sorted(group)) for group in groups))
