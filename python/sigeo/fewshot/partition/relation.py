"""How alike the options of a choice are, and what a partition keeps together."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

from sigeo.errors import InputError, check_one_of

Group = tuple[int, ...]
Groups = tuple[Group, ...]
Sense = Literal["similarity", "distance"]


@dataclass(frozen=True)
class Relation:
    """A symmetric matrix over the options left on a choice.

    Attributes:
        values: [o, o], each pair's value; the diagonal is not looked at.
        sense: Whether large values mean alike ("similarity": 1 of an option with itself, as cosines
            and correlations have it) or unlike ("distance": 0).
    """

    values: tuple[tuple[float, ...], ...]
    sense: Sense

    def __post_init__(self) -> None:
        """Check the matrix and what it means.

        Raises:
            InputError: It is not square, not symmetric, or has a value that is not finite; or there
                is no such sense.
        """
        check_one_of("relation: sense", self.sense, get_args(Sense))
        count = len(self.values)
        if any(len(row) != count for row in self.values):
            raise InputError(
                f"relation: values must be [{count}, {count}], got rows of "
                f"{sorted({len(row) for row in self.values})}"
            )
        for i, j in itertools.combinations(range(count), 2):
            value, other = self.values[i][j], self.values[j][i]
            if not math.isfinite(value) or value != other:
                raise InputError(
                    f"relation: expected finite symmetric values, got {value} and {other} "
                    f"at {i}, {j}"
                )

    @classmethod
    def of(cls, values: Sequence[Sequence[float]], sense: Sense) -> Relation:
        """The relation of rows, each pair's two values averaged: rounding may tell them apart.

        Raises:
            InputError: They are not square or not finite, or there is no such sense.
        """
        count = len(values)
        if any(len(row) != count for row in values):
            raise InputError(f"relation: expected {count} values in every row")
        return cls(
            tuple(
                tuple((float(values[i][j]) + float(values[j][i])) / 2 for j in range(count))
                for i in range(count)
            ),
            sense,
        )

    @property
    def count(self) -> int:
        """Number of options o."""
        return len(self.values)

    @property
    def itself(self) -> float:
        """What an option's similarity with itself is."""
        return 1.0 if self.sense == "similarity" else 0.0

    @cached_property
    def similarities(self) -> tuple[tuple[float, ...], ...]:
        """The values, distances with the sign turned."""
        sign = 1 if self.sense == "similarity" else -1
        return tuple(tuple(sign * value for value in row) for row in self.values)


@dataclass(frozen=True)
class Pairs:
    """The sum of some pairs' values and their number."""

    total: float
    count: int

    @property
    def mean(self) -> float:
        """Of the values; 0 where there is no pair."""
        return self.total / self.count if self.count else 0.0


def within(values: Sequence[Sequence[float]], groups: Iterable[Group]) -> Pairs:
    """The pairs of two options of one group."""
    found = [values[i][j] for group in groups for i, j in itertools.combinations(group, 2)]
    return Pairs(math.fsum(found), len(found))


def between(values: Sequence[Sequence[float]], groups: Sequence[Group]) -> Pairs:
    """The pairs of two options of different groups."""
    found = [
        values[i][j]
        for one, other in itertools.combinations(groups, 2)
        for i, j in itertools.product(one, other)
    ]
    return Pairs(math.fsum(found), len(found))
