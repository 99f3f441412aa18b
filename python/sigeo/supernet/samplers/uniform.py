"""Uniform sampling of single paths."""

from __future__ import annotations

import random
from typing import Any, Literal

from sigeo.errors import InputError
from sigeo.kinds import checked_seed
from sigeo.spaces import Product, Region, SearchSpace
from sigeo.supernet.samplers.base import (
    TRIES,
    Stateless,
    describe_region,
    draw_connected,
    generator,
)


class Uniform(Stateless):
    """Random paths, all connected architectures equally likely.

    With ``over="operations"`` every choice is drawn by itself, all options equally likely
    (Li and Talwalkar, UAI 2019), which is another distribution where a space's architectures are
    not all combinations of options. SPOS (Guo et al., ECCV 2020) is one path a step.
    """

    def __init__(
        self,
        space: SearchSpace[Any],
        *,
        seed: int,
        region: Region[Any] | None = None,
        paths: int = 1,
        over: Literal["architectures", "operations"] = "architectures",
    ):
        """Set it up.

        Args:
            space: Whose architectures.
            seed: The paths follow from it and the step.
            region: The part of the space to draw from; None for all of it.
            paths: Of a step.
            over: What is equally likely.

        Raises:
            InputError: No path, something else to be equally likely, or a seed that is not one.
        """
        if paths < 1:
            raise InputError(f"uniform: paths must be at least 1, got {paths}")
        if over not in ("architectures", "operations"):
            raise InputError(f"uniform: over must be architectures or operations, got {over!r}")
        self.space, self.region, self.over = space, region, over
        self.seed, self.count = checked_seed(seed), paths

    def paths(self, step: int) -> list[Any]:
        """The architectures of a step."""
        drawn: Any = self.space if self.region is None else self.region
        if self.over == "operations":
            drawn = _Operations(self.space, self.region)
        return [
            draw_connected(self.space, drawn, generator(self.seed, step, path))
            for path in range(self.count)
        ]

    def describe(self) -> dict[str, Any]:
        """Name and settings."""
        settings = {"seed": self.seed, "paths": self.count, "over": self.over}
        return {"name": "uniform", **settings, **describe_region(self.region)}


class _Operations:
    """Draws each choice by itself, and again until the architecture is in the region."""

    def __init__(self, space: SearchSpace[Any], region: Region[Any] | None):
        self._product: Product[Any] = (
            region if isinstance(region, Product) else Product.whole(space)
        )
        self._region: Region[Any] = self._product if region is None else region

    def sample(self, rng: random.Random) -> Any:
        for _ in range(TRIES):
            arch = self._product.sample(rng)
            if arch in self._region:
                return arch
        raise InputError(f"region: none of {TRIES} draws of operations is in it")
