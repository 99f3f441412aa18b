"""Several supernets as one: each serves a part of the space."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from sigeo.errors import InputError
from sigeo.spaces import Region, Supernet


class RoutedSupernet(nn.Module):
    """Sub-supernets behind one call: an architecture runs on the weights of its region.

    A training of it trains all of them with one optimiser, as supernet-balanced sampling of a split
    space does (EFS-NAS, arXiv 2412.14678): `Balanced` with the same regions.

    Attributes:
        parts: The sub-supernets, in the order of the regions.
        regions: What each serves.
    """

    def __init__(self, parts: Sequence[Supernet[Any]], regions: Sequence[Region[Any]]):
        """Put them together.

        Args:
            parts: Supernets of the same space; modules that they have in common are trained by
                all.
            regions: One a part, disjoint; the first that holds an architecture counts.

        Raises:
            InputError: No part, or another number of regions.
        """
        if not parts or len(parts) != len(regions):
            raise InputError(
                f"routed: expected one region for each of at least one part, got {len(regions)} "
                f"regions and {len(parts)} parts"
            )
        super().__init__()
        self.regions = tuple(regions)
        modules: list[Any] = list(parts)
        self.parts = nn.ModuleList(modules)

    @classmethod
    def of(
        cls,
        supernet: Supernet[Any],
        regions: Sequence[Region[Any]],
        *,
        share: Sequence[str] = (),
    ) -> RoutedSupernet:
        """A copy of a supernet for each region.

        Args:
            supernet: Where all of them begin.
            regions: What each serves.
            share: Names of submodules that stay common to all, such as "stem" and "head".

        Raises:
            InputError: There is no such submodule.
        """
        parts: list[Any] = [copy.deepcopy(supernet) for _ in regions]
        for name in share:
            owner, _, last = name.rpartition(".")
            for part in parts:
                try:
                    common = parts[0].get_submodule(name)
                    setattr(part.get_submodule(owner), last, common)
                except AttributeError:
                    raise InputError(
                        f"routed: {type(supernet).__name__} has no submodule {name!r} to share"
                    ) from None
        return cls(parts, regions)

    def route(self, arch: Any) -> int:
        """The number of the part that serves an architecture.

        Raises:
            InputError: None does.
        """
        for number, region in enumerate(self.regions):
            if arch in region:
                return number
        raise InputError(f"routed: no region holds the architecture {arch}")

    def part(self, arch: Any) -> Supernet[Any]:
        """The sub-supernet that serves an architecture."""
        found: Any = self.parts[self.route(arch)]
        part: Supernet[Any] = found
        return part

    @property
    def noisy(self) -> bool:
        """Whether a pass of some part draws random numbers."""
        return any(getattr(part, "noisy", False) for part in self.parts)

    def start_step(self, step: int, steps: int, seed: int) -> None:
        """Begin a step of training."""
        for part in self.parts:
            begin = getattr(part, "start_step", None)
            if begin is not None:
                begin(step, steps, seed)

    def forward(self, x: Tensor, arch: Any) -> Tensor:
        """Run an architecture on the weights of its region."""
        return self.part(arch)(x, arch)

    def subnet(self, arch: Any, *, whole: bool = False) -> nn.Module:
        """A plain module of an architecture; see `Supernet.subnet`."""
        return self.part(arch).subnet(arch, whole=whole)
