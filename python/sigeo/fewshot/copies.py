"""Which copy of a cell serves an architecture, where copies are shared among kinds.

EFS-NAS's code for NAS-Bench-201 (arXiv 2412.14678) does not send an architecture to one supernet
of its kind. It adds up the architecture's nonlinear functions from the first cell on, and every
cell has its own copies, of which the sum so far selects one.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from torch import nn

from sigeo.errors import InputError
from sigeo.spaces.nasbench201.supernet import CellSlots, NASBench201Supernet

A = TypeVar("A", bound=Hashable)


@dataclass(frozen=True)
class CumulativeCopies(Generic[A]):
    """Copies of cells selected by a running count.

    Cell i, counted from 1, of an architecture with n functions a cell is served by the copy whose
    number is how many thresholds are below n i.

    Attributes:
        function: Architecture to n, `sigeo.spaces.nasbench201.nonlinear_depth`.
        cells: Cells of a network, reductions not counted (published: 15).
        thresholds: Ascending (published: 25 for two copies, 15 and 20 for three, 10, 20 and 30 for
            four).
        shared: First cells that have one copy for all (published: 5; 0 with four copies).
    """

    function: Callable[[A], int]
    cells: int = 15
    thresholds: tuple[int, ...] = (15, 20)
    shared: int = 5

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            InputError: Thresholds that do not ascend, or more shared cells than cells.
        """
        if list(self.thresholds) != sorted(set(self.thresholds)) or not self.thresholds:
            raise InputError(f"copies: thresholds must ascend, got {list(self.thresholds)}")
        if not 0 <= self.shared <= self.cells or self.cells < 1:
            raise InputError(
                f"copies: expected 1 cell or more and 0 to {self.cells} shared ones, "
                f"got {self.shared}"
            )

    @property
    def count(self) -> int:
        """Copies of each cell that is not shared."""
        return len(self.thresholds) + 1

    def route(self, arch: A) -> tuple[int, ...]:
        """The copy of each cell, from the first on; 0 for a shared one."""
        each = self.function(arch)
        return tuple(
            0 if cell <= self.shared else sum(limit < each * cell for limit in self.thresholds)
            for cell in range(1, self.cells + 1)
        )


def cumulative_parts(
    supernet: NASBench201Supernet, archs: Sequence[Any], copies: CumulativeCopies[Any]
) -> list[NASBench201Supernet]:
    """Supernets that share what their architectures' routes share.

    Stem, reductions, head and the first cells are the given supernet's in all of them; of every
    other cell there are as many copies as routes select, each in the supernets that select it.

    Args:
        supernet: Where all copies begin; becomes part of the result.
        archs: An architecture of each kind that gets a supernet.
        copies: Which copy serves it where.

    Raises:
        InputError: Another number of cells.
    """
    cells = sum(isinstance(block, CellSlots) for block in supernet.blocks)
    if cells != copies.cells:
        raise InputError(f"copies: made for {copies.cells} cells, the supernet has {cells}")
    every = [supernet.blocks, *(copy.deepcopy(supernet.blocks) for _ in range(copies.count - 1))]
    parts = []
    for arch in archs:
        route = iter(copies.route(arch))
        chosen = [
            every[next(route)][place] if isinstance(block, CellSlots) else block
            for place, block in enumerate(supernet.blocks)
        ]
        part = copy.copy(supernet)
        part._modules = dict(supernet._modules)
        part.blocks = nn.ModuleList(chosen)
        parts.append(part)
    return parts
