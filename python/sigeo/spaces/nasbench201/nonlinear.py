"""How nonlinear a cell is: functions on its longest way, convolutions in all.

Oh et al., "Efficient Few-Shot NAS" (arXiv 2412.14678), divide the space by the first number.
"""

from __future__ import annotations

from sigeo.spaces.nasbench201.cell import CONVOLUTIONS, EDGES, NONE, Cell

# Places in `EDGES` of each way from node 0 to node 3.
_PATHS = tuple(
    tuple(EDGES.index(edge) for edge in path)
    for path in (
        ((0, 3),),
        ((0, 1), (1, 3)),
        ((0, 2), (2, 3)),
        ((0, 1), (1, 2), (2, 3)),
    )
)


def nonlinear_depth(cell: Cell) -> int:
    """The effective number of nonlinear functions, 0 to 3.

    Every convolution holds one ReLU. Each way from the input to the output counts its convolutions,
    a way with ``none`` on it counts 0, and the largest count is the cell's.
    """
    return max(_nonlinear(tuple(cell.operations[edge] for edge in path)) for path in _PATHS)


def convolution_count(cell: Cell) -> int:
    """Convolutions of the cell, 0 to 6, those that do nothing included."""
    return sum(operation in CONVOLUTIONS for operation in cell.operations)


def _nonlinear(operations: tuple[int, ...]) -> int:
    if NONE in operations:
        return 0
    return sum(operation in CONVOLUTIONS for operation in operations)
