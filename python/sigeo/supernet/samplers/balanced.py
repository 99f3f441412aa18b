"""As many updates for each region of a space."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from sigeo.errors import InputError
from sigeo.kinds import checked_seed
from sigeo.spaces import Region, SearchSpace
from sigeo.supernet.samplers.base import Stateless, describe_region, draw_connected, generator


class Balanced(Stateless):
    """As many updates for each of several regions (supernet-balanced sampling, arXiv 2412.14678).

    In the form "each" a step takes one architecture of every region on its batch and sums their
    gradients, as published for MobileNet-like spaces; in the form "one" it takes one architecture
    of one region, as published for NAS-Bench-201. Inside a region all connected architectures are
    equally likely.
    """

    def __init__(
        self,
        space: SearchSpace[Any],
        regions: Sequence[Region[Any]],
        *,
        seed: int,
        form: Literal["each", "one"] = "each",
    ):
        """Set it up.

        Args:
            space: Whose architectures.
            regions: At least one.
            seed: The paths follow from it and the step.
            form: Whether a step takes a path of each region, or of one.

        Raises:
            InputError: No region, another form, or a seed that is not one.
        """
        if not regions:
            raise InputError("balanced: expected at least one region, got none")
        if form not in ("each", "one"):
            raise InputError(f"balanced: form must be each or one, got {form!r}")
        self.space, self.regions, self.form = space, tuple(regions), form
        self.seed = checked_seed(seed)

    def paths(self, step: int) -> list[Any]:
        """The architectures of a step."""
        rng = generator(self.seed, step)
        chosen = self.regions if self.form == "each" else (rng.choice(self.regions),)
        return [draw_connected(self.space, region, rng) for region in chosen]

    def describe(self) -> dict[str, Any]:
        """Name and settings."""
        regions = [describe_region(region) for region in self.regions]
        return {"name": "balanced", "seed": self.seed, "form": self.form, "regions": regions}
