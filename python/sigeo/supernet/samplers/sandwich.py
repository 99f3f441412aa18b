"""The ends of a space at every step."""

from __future__ import annotations

from typing import Any

from sigeo.errors import InputError
from sigeo.kinds import checked_seed
from sigeo.supernet.samplers.base import Stateless, draw_connected, generator


class Sandwich(Stateless):
    """The largest architecture, random ones, the smallest (Yu and Huang, ICCV 2019, section 3.1).

    The largest comes first and the smallest last, for objectives that treat them apart.
    """

    def __init__(self, space: Any, *, seed: int, count: int = 2):
        """Set it up.

        Args:
            space: One that names its ``largest`` and ``smallest`` architecture.
            seed: The paths follow from it and the step.
            count: Random architectures of a step.

        Raises:
            InputError: A space without them, a negative count, or a seed that is not one.
        """
        for end in ("largest", "smallest"):
            if not hasattr(space, end):
                raise InputError(f"sandwich: {space.name} names no {end} architecture")
        if count < 0:
            raise InputError(f"sandwich: count must be at least 0, got {count}")
        self.space, self.seed, self.count = space, checked_seed(seed), count

    def paths(self, step: int) -> list[Any]:
        """The architectures of a step."""
        rng = generator(self.seed, step)
        between = [draw_connected(self.space, self.space, rng) for _ in range(self.count)]
        return [self._end("largest"), *between, self._end("smallest")]

    def _end(self, name: str) -> Any:
        found = getattr(self.space, name)
        return found() if callable(found) else found

    def describe(self) -> dict[str, Any]:
        """Name and settings."""
        return {"name": "sandwich", "seed": self.seed, "count": self.count}
