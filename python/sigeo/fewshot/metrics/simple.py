"""Metrics without networks: what a table knows, and nothing at all; and sums of metrics."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from sigeo.errors import InputError, check_kind
from sigeo.fewshot.known import Known
from sigeo.fewshot.metrics.base import Metric, Subject, check, compared
from sigeo.fewshot.partition import Relation
from sigeo.supernet import Budget


@dataclass(frozen=True)
class TableOracle:
    """How far apart the options are in a table: what no search can know.

    Attributes:
        known: The table's values.
        of: "mean" or "max" of the architectures of the region that take an option.
    """

    known: Known
    of: Literal["mean", "max"] = "mean"
    name: str = "table"
    initial_weights: bool = False

    def __post_init__(self) -> None:
        """Check the option.

        Raises:
            InputError: Another way to sum up.
        """
        if self.of not in ("mean", "max"):
            raise InputError(f"table: of must be mean or max, got {self.of!r}")

    def __call__(self, subject: Subject[Any]) -> Relation:
        """Differences of the options' values.

        Raises:
            InputError: The table has no architecture of an option.
        """
        inside = self.known.inside(subject.region)
        column = self.known.codes[:, subject.place]
        values = []
        for option in subject.options:
            chosen = self.known.values[inside & (column == option)]
            if not len(chosen):
                name = subject.space.choices[subject.place].options[option]
                raise InputError(f"table: has no architecture with {name} on {subject.name} left")
            values.append(float(chosen.mean() if self.of == "mean" else chosen.max()))
        return Relation.of([[abs(a - b) for b in values] for a in values], "distance")

    def cost(self, subject: Subject[Any]) -> Budget:
        """Nothing."""
        return Budget()


@dataclass(frozen=True)
class RandomDistances:
    """Distances drawn uniformly from 0 to 1, by the subject's seed."""

    name: str = "random"
    initial_weights: bool = False

    def __call__(self, subject: Subject[Any]) -> Relation:
        """The draw."""
        rng = subject.rng("random")
        count = len(subject.options)
        values = [[0.0] * count for _ in range(count)]
        for i in range(count):
            for j in range(i):
                values[i][j] = values[j][i] = rng.random()
        return Relation.of(values, "distance")

    def cost(self, subject: Subject[Any]) -> Budget:
        """Nothing."""
        return Budget()


@dataclass(frozen=True)
class WeightedSum:
    """Several metrics' distances, weighted and added; similarities count with the sign turned.

    Attributes:
        parts: (weight, metric) pairs.
    """

    parts: tuple[tuple[float, Metric], ...]

    def __post_init__(self) -> None:
        """Check the parts.

        Raises:
            InputError: There is no part, or one is no metric.
        """
        if not self.parts:
            raise InputError("metric: a weighted sum needs at least one metric")
        for _, metric in self.parts:
            check_kind(metric, Metric, "metric: each part of a weighted sum")

    @property
    def name(self) -> str:
        """The parts' names."""
        return " + ".join(f"{weight:g} {metric.name}" for weight, metric in self.parts)

    @property
    def initial_weights(self) -> bool:
        """Whether one of the parts is defined for untrained weights only."""
        return any(metric.initial_weights for _, metric in self.parts)

    def __call__(self, subject: Subject[Any]) -> Relation:
        """The sum."""
        count = len(subject.options)
        total = [[0.0] * count for _ in range(count)]
        for weight, metric in self.parts:
            values = compared(metric, subject).similarities
            for i in range(count):
                for j in range(count):
                    total[i][j] -= weight * values[i][j]
        return Relation.of(total, "distance")

    def check(self, subject: Subject[Any]) -> None:
        """See `sigeo.fewshot.metrics.base.check`."""
        for _, metric in self.parts:
            check(metric, subject)

    def cost(self, subject: Subject[Any]) -> Budget:
        """Of all parts together."""
        return sum((metric.cost(subject) for _, metric in self.parts), Budget())
