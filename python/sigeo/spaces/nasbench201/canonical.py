"""Which cells are the same network, and which edges of a cell matter.

Two cells are one function when one becomes the other by renaming nodes, by reading through
``skip_connect`` and by leaving out what is zero. Zero is what ``none`` gives, what any operation
without a shift makes of zero, and what no path carries to the output. The literature counts such
classes, see `Zeros`.

They are one network, with scores that agree but for the draw of the weights, if they have the same
convolutions as well: a convolution that is read twice is not two convolutions. A convolution is
followed by batch norm, which turns zero into its shift; shifts start at zero and move with the
first optimiser step, so for a network a convolution of zero counts.
"""

from __future__ import annotations

import enum
import functools

from sigeo.spaces.nasbench201.cell import (
    CONVOLUTIONS,
    EDGES,
    NONE,
    OPERATIONS,
    OUTPUT,
    SKIP,
    Cell,
    all_cells,
)


class Zeros(enum.Enum):
    """What the literature counts as the same function, with the number of classes of the space."""

    KEPT = "kept"
    """Only skip connections are read through: 12,751 classes."""
    OFFICIAL = "official"
    """The published rule, which misses a node all of whose two or three inputs are zero: 6,466."""
    DROPPED = "dropped"
    """Every zero input is left out: 5,390, one of them the 341 cells without a path."""


_ZERO = "#"
_SHIFT = "shift"  # of the batch norm behind a convolution of zero


@functools.cache
def canonical_string(cell: Cell, zeros: Zeros) -> str:
    """A name that two cells share exactly if the rule calls them one function."""
    nodes = ["0"]
    for target in range(1, OUTPUT + 1):
        terms = []
        for source, operation in _inputs(cell, target):
            term = f"({nodes[source]})@{OPERATIONS[operation]}"
            if zeros is not Zeros.KEPT and (operation == NONE or nodes[source] == _ZERO):
                term = _ZERO
            elif operation == SKIP:
                term = nodes[source]
            terms.append(term)
        if zeros is Zeros.DROPPED:
            terms = [term for term in terms if term != _ZERO] or [_ZERO]
        nodes.append("+".join(sorted(terms)))
    return nodes[OUTPUT]


def _inputs(cell: Cell, target: int) -> list[tuple[int, int]]:
    return [
        (source, operation)
        for (source, to), operation in zip(EDGES, cell.operations, strict=True)
        if to == target
    ]


@functools.cache
def network_key(cell: Cell) -> str:
    """A name that two cells share exactly if they are the same network.

    The output as a sum of terms, in which a node read through a skip connection is merged, and all
    convolutions that run, each with its input.
    """
    nodes: list[list[str]] = [["0"]]
    convolutions: list[str] = []
    for target in range(1, OUTPUT + 1):
        terms: list[str] = []
        for source, operation in _inputs(pruned(cell), target):
            if operation == SKIP:
                terms += nodes[source]
            elif operation != NONE:
                value = "+".join(nodes[source])
                terms.append(f"({value})@{operation}" if value else _SHIFT)
                convolutions += [terms[-1]] if operation in CONVOLUTIONS else []
        nodes.append(sorted(terms))
    return f"{'+'.join(nodes[OUTPUT])} of {', '.join(sorted(convolutions))}"


@functools.cache
def _representatives() -> dict[str, Cell]:
    chosen: dict[str, Cell] = {}
    for cell in sorted(all_cells()):
        chosen.setdefault(network_key(cell), cell)
    return chosen


def representative(cell: Cell) -> Cell:
    """The one cell that stands for all that are the same network."""
    return _representatives()[network_key(cell)]


def networks() -> int:
    """The number of different networks in the space."""
    return len(_representatives())


def classes(zeros: Zeros) -> int:
    """The number of different functions in the space, by a rule of the literature."""
    return len({canonical_string(cell, zeros) for cell in all_cells()})


def zero_nodes(cell: Cell) -> frozenset[int]:
    """The nodes that no path without ``none`` leads to from the input."""
    zero: set[int] = set()
    for target in range(1, OUTPUT + 1):
        inputs = _inputs(cell, target)
        if all(operation == NONE or source in zero for source, operation in inputs):
            zero.add(target)
    return frozenset(zero)


def pruned(cell: Cell) -> Cell:
    """The cell with ``none`` on every edge that does nothing: the same network, edge by edge.

    These are the edges that carry zero and those whose target never reaches the output. A
    convolution of zero stays, as the shift of its batch norm moves with the first step.
    """
    zero: set[int] = set()
    for target in range(1, OUTPUT + 1):
        gives = [
            operation != NONE and (source not in zero or operation in CONVOLUTIONS)
            for source, operation in _inputs(cell, target)
        ]
        if not any(gives):
            zero.add(target)
    read = {OUTPUT}
    operations = list(cell.operations)
    for edge in sorted(range(len(EDGES)), key=lambda e: -EDGES[e][1]):
        source, target = EDGES[edge]
        operation = operations[edge]
        carries = source not in zero or operation in CONVOLUTIONS
        if operation == NONE or target not in read or not carries:
            operations[edge] = NONE
        else:
            read.add(source)
    return Cell(tuple(operations))
