"""Which cells compute the same function, and which edges of a cell matter.

Two cells are one function when one becomes the other by renaming nodes, by reading through
``skip_connect`` and by leaving out what is zero. Zero is what ``none`` gives, what any operation
without a shift makes of zero, and what no path carries to the output.

A convolution is followed by batch norm, which turns zero into its shift. Shifts start at zero, so
at initialisation that is zero too; after an optimiser step it is not. `Zeros` says which is meant.
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
    """What counts as the same function; the number of classes is that of the whole space."""

    KEPT = "kept"
    """Only skip connections are read through: 12,751 classes."""
    OFFICIAL = "official"
    """The published rule, which misses a node all of whose two or three inputs are zero: 6,466."""
    DROPPED = "dropped"
    """Every zero input is left out: 5,390, one of them the 341 cells without a path."""
    MERGED = "merged"
    """As DROPPED, and a node read through a skip connection joins the sum it goes into: 4,930."""
    STEPPED = "stepped"
    """As MERGED for networks that have taken steps: a convolution of zero is a shift. 5,155."""


_ZERO = "#"
_SHIFT = "shift"


@functools.cache
def canonical_string(cell: Cell, zeros: Zeros) -> str:
    """A name that two cells share exactly if they compute the same function."""
    if zeros in (Zeros.MERGED, Zeros.STEPPED):
        return "+".join(_merged_terms(cell, stepped=zeros is Zeros.STEPPED)) or _ZERO
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


def _merged_terms(cell: Cell, *, stepped: bool) -> list[str]:
    """The output as a sorted sum of terms; no term means zero."""
    nodes: list[list[str]] = [["0"]]
    for target in range(1, OUTPUT + 1):
        terms: list[str] = []
        for source, operation in _inputs(cell, target):
            if operation == NONE:
                continue
            if not nodes[source]:
                terms += [_SHIFT] if stepped and operation in CONVOLUTIONS else []
            elif operation == SKIP:
                terms += nodes[source]
            else:
                terms.append(f"({'+'.join(nodes[source])})@{operation}")
        nodes.append(sorted(terms))
    return nodes[OUTPUT]


@functools.cache
def _representatives(zeros: Zeros) -> dict[str, Cell]:
    chosen: dict[str, Cell] = {}
    for cell in sorted(all_cells()):
        chosen.setdefault(canonical_string(cell, zeros), cell)
    return chosen


def representative(cell: Cell, zeros: Zeros) -> Cell:
    """The one cell that stands for all that compute the same function."""
    return _representatives(zeros)[canonical_string(cell, zeros)]


def classes(zeros: Zeros) -> int:
    """The number of different functions in the space."""
    return len(_representatives(zeros))


def zero_nodes(cell: Cell, *, stepped: bool = False) -> frozenset[int]:
    """The nodes that are identically zero; with ``stepped``, also after optimiser steps."""
    zero: set[int] = set()
    for target in range(1, OUTPUT + 1):
        carries = [
            operation != NONE and (source not in zero or (stepped and operation in CONVOLUTIONS))
            for source, operation in _inputs(cell, target)
        ]
        if not any(carries):
            zero.add(target)
    return frozenset(zero)


def pruned(cell: Cell, *, stepped: bool = False) -> Cell:
    """The cell with ``none`` on every edge that does nothing: the same function, edge by edge.

    These are the edges that carry zero and those whose target never reaches the output. With
    ``stepped``, a convolution of a zero node stays, as batch norm's shift grows with steps.
    """
    zero = zero_nodes(cell, stepped=stepped)
    read = {OUTPUT}
    operations = list(cell.operations)
    for edge in sorted(range(len(EDGES)), key=lambda e: -EDGES[e][1]):
        source, target = EDGES[edge]
        operation = operations[edge]
        gives = source not in zero or (stepped and operation in CONVOLUTIONS)
        if operation == NONE or target not in read or not gives:
            operations[edge] = NONE
        else:
            read.add(source)
    return Cell(tuple(operations))
