"""What a metric gets: a choice of a part of a space, weights, batches; and what it says of it."""

from __future__ import annotations

import random
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import torch

from sigeo.capture import Batches
from sigeo.errors import InputError, check_kind
from sigeo.fewshot.partition import Relation
from sigeo.spaces import Product, SearchSpace, Supernet
from sigeo.supernet import Budget
from sigeo.supernet.randomness import drawing

A = TypeVar("A", bound=Hashable)
_TRIES = 1000


@runtime_checkable
class NamedWeights(Protocol):
    """A supernet that knows whose its weights are."""

    def choice_weights(self, place: int) -> frozenset[str]:
        """Names of the weights that the options of one choice have for themselves."""
        ...

    def end_weights(self) -> frozenset[str]:
        """Names of the weights outside the searched part."""
        ...


@dataclass(frozen=True)
class Subject(Generic[A]):
    """A choice whose options are compared.

    Attributes:
        region: What is left of the other choices, and the options o of this one.
        place: Of the choice in ``space.choices``.
        seed: Of the paths that are drawn, and of what networks draw, as by dropout.
        supernet: The weights; None for metrics without networks.
        batches: Images and labels; None for metrics without data.
    """

    region: Product[A]
    place: int
    seed: int | str = 0
    supernet: Supernet[A] | None = None
    batches: Batches | None = None

    @property
    def space(self) -> SearchSpace[A]:
        """Whose choice it is."""
        return self.region.space

    @property
    def options(self) -> tuple[int, ...]:
        """The options left."""
        return self.region.allowed[self.place]

    @property
    def name(self) -> str:
        """Of the choice."""
        return self.space.choices[self.place].name

    def rng(self, what: object) -> random.Random:
        """A generator of the seed, the choice and what it is for."""
        return random.Random(f"{self.seed}/{self.place}/{what}")

    def networks(self) -> Supernet[A]:
        """The supernet.

        Raises:
            InputError: There is none.
        """
        if self.supernet is None:
            raise InputError("split: this metric compares networks, got no supernet")
        return self.supernet

    def data(self) -> Batches:
        """The batches.

        Raises:
            InputError: There are none.
        """
        if self.batches is None:
            raise InputError("split: this metric measures on data, got no batches")
        return self.batches

    def batch(self, repetition: int) -> tuple[Any, Any]:
        """Inputs and labels of a repetition; the batches are gone through again and again."""
        batches = self.data()
        return batches[repetition % len(batches)]

    def images(self, repetitions: int) -> int:
        """Images of so many repetitions, through one path an option."""
        batches = self.data()
        sizes = [len(batches[place][1]) for place in range(len(batches))]
        turns, rest = divmod(repetitions, len(sizes))
        return (turns * sum(sizes) + sum(sizes[:rest])) * len(self.options)

    def paths(self, repetition: int, *, every: bool = False) -> list[A]:
        """One architecture an option, alike in all other choices, which are drawn.

        Drawn again until an option's output depends on the input.

        Args:
            repetition: Its number; each has another draw.
            every: Whether that is to hold for every option. Where no such draw is found, the one
                with most such options is taken.

        Raises:
            InputError: No draw has one such option.
        """
        rng = self.rng(repetition)
        best: list[A] = []
        most = 0
        for _ in range(_TRIES):
            codes = list(self.space.encode(self.region.sample(rng)))
            paths = []
            for option in self.options:
                codes[self.place] = option
                paths.append(self.space.decode(codes))
            connected = sum(map(self.space.connected, paths))
            if connected > most:
                best, most = paths, connected
            if most == len(paths) or (most and not every):
                return best
        if not best:
            raise InputError(
                f"split: found no path through {self.name} on which the output depends on the input"
            )
        return best


class Metric(Protocol):
    """Compares the options of a choice.

    It may also have a method ``check(subject)``, which raises InputError where weights or batches
    do not serve it, without measuring: `check` calls it before anything is trained.

    Attributes:
        name: As on the command line.
        initial_weights: Whether it is defined for untrained weights only.
    """

    @property
    def name(self) -> str:
        """As on the command line."""
        ...

    @property
    def initial_weights(self) -> bool:
        """Whether it is defined for untrained weights only."""
        ...

    def __call__(self, subject: Subject[Any]) -> Relation:
        """How alike the options are."""
        ...

    def cost(self, subject: Subject[Any]) -> Budget:
        """Images that comparing them processes."""
        ...


def check(metric: Metric, subject: Subject[Any]) -> None:
    """Whether weights and batches serve a metric that can say so by a ``check`` of its own.

    Raises:
        InputError: They do not.
    """
    own = getattr(metric, "check", None)
    if own is not None:
        own(subject)


def compared(metric: Metric, subject: Subject[Any]) -> Relation:
    """How alike a metric finds the options; what networks draw follows from the subject's seed.

    Raises:
        InputError: It returns something else, or a relation of other options.
    """
    device = torch.device("cpu") if subject.batches is None else subject.batches.device
    with drawing(f"{subject.seed}/{subject.place}/metric", device):
        relation = metric(subject)
    check_kind(relation, Relation, f"metric {metric.name}: what it returns")
    if relation.count != len(subject.options):
        raise InputError(
            f"metric {metric.name}: expected a Relation of the {len(subject.options)} options of "
            f"{subject.name}, got one of {relation.count}"
        )
    return relation
