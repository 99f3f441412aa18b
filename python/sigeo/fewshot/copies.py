"""Which copy of a cell serves an architecture, where copies are shared among kinds.

EFS-NAS's code for NAS-Bench-201 (arXiv 2412.14678) does not send an architecture to one supernet
of its kind. It adds up the architecture's nonlinear functions from the first cell on, and every
cell has its own copies, of which the sum so far selects one.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

from sigeo.errors import InputError

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
