"""Paths of one step that share no options: fair sampling, and pairs of disjoint paths."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from sigeo.errors import InputError
from sigeo.kinds import checked_seed
from sigeo.spaces import Product, SearchSpace
from sigeo.supernet.samplers.base import Stateless, describe_region, generator, product_of

_DRAWS = 1000


class Fair(Stateless):
    """Every option of every choice once a step (Chu et al., FairNAS, ICCV 2021, section 3.3).

    The options of each choice are put in random order, and path i takes the i-th of each; a choice
    with fewer options than another starts over in a new order. Orders that make a path whose output
    does not depend on its input are drawn anew, all of them.
    """

    def __init__(self, space: SearchSpace[Any], *, seed: int, region: Product[Any] | None = None):
        """Set it up.

        Args:
            space: Whose architectures.
            seed: The paths follow from it and the step.
            region: The options that are left; None for all.

        Raises:
            InputError: A region that is no product of options, or a seed that is not one.
        """
        self.space, self.region, self.seed = space, region, checked_seed(seed)
        self._allowed = product_of(space, region, "fair").allowed
        self.count = max(map(len, self._allowed))

    def paths(self, step: int) -> list[Any]:
        """The architectures of a step.

        Raises:
            InputError: The options do not combine to connected architectures alone.
        """
        rng = generator(self.seed, step)
        for _ in range(_DRAWS):
            columns = [self._column(options, rng) for options in self._allowed]
            archs = [self.space.decode(codes) for codes in zip(*columns, strict=True)]
            if all(map(self.space.connected, archs)):
                return archs
        raise InputError(
            f"fair: in {_DRAWS} draws of every option once, some path had an output that does not "
            "depend on its input"
        )

    def _column(self, options: Sequence[int], rng: random.Random) -> list[int]:
        column: list[int] = []
        while len(column) < self.count:
            column += rng.sample(options, len(options))
        return column[: self.count]

    def describe(self) -> dict[str, Any]:
        """Name and settings."""
        return {"name": "fair", "seed": self.seed, **describe_region(self.region)}


class Disjoint(Stateless):
    """Two paths that differ in every choice (Peng et al., Pi-NAS, ICCV 2021, section 3.2)."""

    def __init__(self, space: SearchSpace[Any], *, seed: int, region: Product[Any] | None = None):
        """Set it up.

        Args:
            space: Whose architectures.
            seed: The paths follow from it and the step.
            region: The options that are left; None for all. Choices with one option left are
                shared.

        Raises:
            InputError: A region that is no product of options, or a seed that is not one.
        """
        self.space, self.region, self.seed = space, region, checked_seed(seed)
        self._allowed = product_of(space, region, "disjoint").allowed

    def paths(self, step: int) -> list[Any]:
        """The two architectures of a step.

        Raises:
            InputError: No two disjoint architectures are connected.
        """
        rng = generator(self.seed, step)
        for _ in range(_DRAWS):
            pairs = [
                rng.sample(options, 2) if len(options) > 1 else [*options, *options]
                for options in self._allowed
            ]
            archs = [self.space.decode(codes) for codes in zip(*pairs, strict=True)]
            if all(map(self.space.connected, archs)):
                return archs
        raise InputError(f"disjoint: found no two connected architectures in {_DRAWS} draws")

    def describe(self) -> dict[str, Any]:
        """Name and settings."""
        return {"name": "disjoint", "seed": self.seed, **describe_region(self.region)}
