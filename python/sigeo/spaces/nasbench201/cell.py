"""The cell of NAS-Bench-201 as data: six operations, its string, its official index.

Dong and Yang, "NAS-Bench-201", ICLR 2020, section 2. Nodes 0 to 3; node j is the sum over i < j of
operation (i, j) applied to node i; node 0 is the input, node 3 the output.
"""

from __future__ import annotations

import functools
import itertools
import random
from dataclasses import dataclass
from typing import Any

from sigeo.errors import InputError
from sigeo.kinds import whole_numbers

OPERATIONS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
NONE, SKIP, CONV_1X1, CONV_3X3, POOL = range(len(OPERATIONS))
CONVOLUTIONS = (CONV_1X1, CONV_3X3)

EDGES = ((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3))
"""(source, target) of each edge, in the order of the architecture string."""

INCOMING = ((0,), (1, 2), (3, 4, 5))
"""Places in `EDGES` of those that enter node 1, 2 and 3."""

OUTPUT = 3
SIZE = len(OPERATIONS) ** len(EDGES)

# The published tables number the cells by a shuffle with this seed of their listing in order.
_INDEX_SEED = 88


@dataclass(frozen=True, order=True)
class Cell:
    """One architecture.

    Attributes:
        operations: An index into `OPERATIONS` for each edge of `EDGES`.
    """

    operations: tuple[int, ...]

    def __post_init__(self) -> None:
        """Check the operations.

        Raises:
            ValueError: Not six of them, or one that does not exist.
        """
        found = whole_numbers(self.operations) or ()
        valid = all(0 <= operation < len(OPERATIONS) for operation in found)
        if len(found) != len(EDGES) or not valid:
            raise ValueError(
                f"cell: expected {len(EDGES)} operations from 0 to 4, got {self.operations}"
            )
        object.__setattr__(self, "operations", found)

    def __str__(self) -> str:
        """The official string, ``|op~0|+|op~0|op~1|+|op~0|op~1|op~2|``."""
        nodes = []
        for target in range(1, OUTPUT + 1):
            inputs = [
                f"{OPERATIONS[operation]}~{source}"
                for (source, to), operation in zip(EDGES, self.operations, strict=True)
                if to == target
            ]
            nodes.append("|" + "|".join(inputs) + "|")
        return "+".join(nodes)

    @classmethod
    def parse(cls, text: str) -> Cell:
        """The cell that `str` wrote.

        Raises:
            ValueError: The string is malformed; the message says where.
        """
        nodes = text.strip().split("+")
        if len(nodes) != OUTPUT:
            raise ValueError(
                f"architecture {text!r}: expected {OUTPUT} nodes joined by '+', got {len(nodes)}"
            )
        operations = []
        for target, node in enumerate(nodes, start=1):
            if len(node) < 2 or node[0] != "|" or node[-1] != "|":
                raise ValueError(
                    f"architecture {text!r}: node {target} must be wrapped in '|', got {node!r}"
                )
            inputs = node[1:-1].split("|")
            if len(inputs) != target:
                raise ValueError(
                    f"architecture {text!r}: node {target} must have {target} inputs, "
                    f"got {len(inputs)}"
                )
            for source, entry in enumerate(inputs):
                name, tilde, origin = entry.partition("~")
                if not tilde or origin != str(source):
                    raise ValueError(
                        f"architecture {text!r}: input {source} of node {target} must read "
                        f"'operation~{source}', got {entry!r}"
                    )
                if name not in OPERATIONS:
                    raise ValueError(
                        f"architecture {text!r}: operation must be one of "
                        f"{', '.join(OPERATIONS)}, got {name!r}"
                    )
                operations.append(OPERATIONS.index(name))
        return cls(tuple(operations))


def expect_cell(arch: Any) -> Cell:
    """An architecture of this space, as it is.

    Raises:
        InputError: It is something else: a string, or of another space.
    """
    if not isinstance(arch, Cell):
        raise InputError(
            f"architecture: expected one of nasbench201, got {type(arch).__name__} {str(arch)!r}; "
            "the space's `parse` reads strings"
        )
    return arch


@functools.cache
def all_cells() -> tuple[Cell, ...]:
    """All 15,625 cells; a cell's place is its official index."""
    cells = [Cell(o) for o in itertools.product(range(len(OPERATIONS)), repeat=len(EDGES))]
    random.Random(_INDEX_SEED).shuffle(cells)
    return tuple(cells)


@functools.cache
def _indices() -> dict[Cell, int]:
    return {cell: index for index, cell in enumerate(all_cells())}


def index_of(cell: Cell) -> int:
    """The official index of a cell, 0 to 15,624."""
    return _indices()[cell]
