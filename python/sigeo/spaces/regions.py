"""Parts of a search space: what one of several shared-weight networks serves."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Generic, Protocol, TypeVar

from sigeo.errors import InputError
from sigeo.spaces.base import SearchSpace

A = TypeVar("A", bound=Hashable)


class Region(Protocol[A]):
    """A set of architectures of one space, which stays the same.

    Attributes:
        size: Number of architectures.
    """

    @property
    def size(self) -> int:
        """Number of architectures."""
        ...

    def __contains__(self, arch: A) -> bool:
        """Whether it is one of them."""
        ...

    def __iter__(self) -> Iterator[A]:
        """All of them, each once."""
        ...

    def sample(self, rng: random.Random) -> A:
        """One of them, all equally likely."""
        ...


@dataclass(frozen=True)
class Product(Generic[A]):
    """All architectures whose choices are among those allowed, each choice by itself.

    Attributes:
        space: Whose architectures.
        allowed: For each of ``space.choices`` the options left, ascending, at least one.
    """

    space: SearchSpace[A]
    allowed: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            InputError: They do not fit the space's choices.
        """
        choices = self.space.choices
        if len(self.allowed) != len(choices):
            raise InputError(
                f"region: expected options for {len(choices)} choices, got {len(self.allowed)}"
            )
        for choice, options in zip(choices, self.allowed, strict=True):
            ascending = tuple(sorted(set(options))) == options
            if not options or not ascending or not set(options) <= set(range(len(choice.options))):
                raise InputError(
                    f"region: options of {choice.name} must be some of 0 to "
                    f"{len(choice.options) - 1}, ascending, got {options}"
                )

    @classmethod
    def whole(cls, space: SearchSpace[A]) -> Product[A]:
        """All architectures of a space."""
        return cls(space, tuple(tuple(range(len(c.options))) for c in space.choices))

    @property
    def size(self) -> int:
        """Number of architectures."""
        return math.prod(map(len, self.allowed))

    def __contains__(self, arch: A) -> bool:
        """Whether every choice is among those allowed."""
        codes = self.space.encode(arch)
        return all(c in options for c, options in zip(codes, self.allowed, strict=True))

    def __iter__(self) -> Iterator[A]:
        """All architectures, the last choice varying fastest."""
        return (self.space.decode(codes) for codes in itertools.product(*self.allowed))

    def sample(self, rng: random.Random) -> A:
        """One architecture, each choice drawn by itself."""
        return self.space.decode(tuple(rng.choice(options) for options in self.allowed))

    def open(self) -> tuple[int, ...]:
        """The places of the choices with more than one option left."""
        return tuple(place for place, options in enumerate(self.allowed) if len(options) > 1)

    def limited(self, place: int, options: Sequence[int]) -> Product[A]:
        """The part with some options of one choice alone."""
        allowed = list(self.allowed)
        allowed[place] = tuple(sorted(options))
        return Product(self.space, tuple(allowed))

    def split(self, place: int, groups: Sequence[Sequence[int]]) -> list[Product[A]]:
        """One part a group of options of a choice.

        Args:
            place: Of the choice in ``space.choices``.
            groups: Partition of the options that are left.

        Raises:
            InputError: The groups are no partition of them.
        """
        if sorted(option for group in groups for option in group) != list(self.allowed[place]):
            raise InputError(
                f"region: groups of {self.space.choices[place].name} must hold each of "
                f"{self.allowed[place]} once, got {[tuple(group) for group in groups]}"
            )
        return [self.limited(place, group) for group in groups]


@dataclass(frozen=True)
class Kind(Generic[A]):
    """All architectures of which a function has certain values.

    Attributes:
        space: Whose architectures.
        function: Architecture to its kind.
        kinds: Those that belong to the region.
        tries: Draws after which sampling gives up.
        within: The part of the space that is looked at; None for all of it.
    """

    space: SearchSpace[A]
    function: Callable[[A], Any]
    kinds: frozenset[Any]
    tries: int = 100_000
    within: Product[A] | None = None

    @cached_property
    def size(self) -> int:
        """Number of architectures, by going through all of the space or part."""
        return sum(1 for _ in self)

    def __contains__(self, arch: A) -> bool:
        """Whether it is of one of the kinds."""
        inside = self.within is None or arch in self.within
        return inside and self.function(arch) in self.kinds

    def __iter__(self) -> Iterator[A]:
        """All architectures, by going through all of the space or part."""
        if self.within is not None:
            return (arch for arch in self.within if self.function(arch) in self.kinds)
        return (arch for index in range(self.space.size) if (arch := self.space.at(index)) in self)

    def sample(self, rng: random.Random) -> A:
        """One architecture, by rejection.

        Raises:
            InputError: None was found.
        """
        for _ in range(self.tries):
            arch = (self.space if self.within is None else self.within).sample(rng)
            if arch in self:
                return arch
        raise InputError(
            f"region: no architecture of kinds {sorted(self.kinds)} in {self.tries} draws"
        )
