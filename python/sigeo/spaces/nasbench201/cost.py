"""Parameters and FLOPs of a NAS-Bench-201 network as the published tables count them.

A FLOP is a multiply-add. Counted with it, an output value each: 2 for batch norm, 1 for ReLU, the
window's size for pooling; the global pooling as if its window were one larger each way. Biases and
sums are free. The whole published network counts, also what cannot reach its output.
"""

from __future__ import annotations

from sigeo.spaces.base import Cost
from sigeo.spaces.nasbench201.cell import CONV_1X1, CONV_3X3, POOL, Cell
from sigeo.spaces.nasbench201.network import Skeleton


def cost(cell: Cell, skeleton: Skeleton, *, image_size: int = 32) -> Cost:
    """The network's cost for one image of ``image_size`` x ``image_size`` pixels."""
    count = {op: cell.operations.count(op) for op in (CONV_1X1, CONV_3X3, POOL)}
    width, size = skeleton.channels, image_size
    parameters = (9 * skeleton.in_channels + 2) * width
    flops = (9 * skeleton.in_channels + 2) * width * size**2
    for kind, outputs in skeleton.blocks():
        if kind == "cell":
            values = outputs * size**2
            for operation, taps in ((CONV_1X1, 1), (CONV_3X3, 9)):
                parameters += count[operation] * (taps * outputs + 2) * outputs
                flops += count[operation] * (taps * outputs + 3) * values
            flops += count[POOL] * 9 * values
            continue
        half = (size + 1) // 2
        values = outputs * half**2
        parameters += (9 * width + 2 + 9 * outputs + 2 + width) * outputs
        flops += width * size**2 + (9 * width + 2) * values  # ReLU; convolution, norm
        flops += (1 + 9 * outputs + 2) * values  # ReLU, convolution, norm
        flops += (4 * width + width * outputs) * half**2  # pooling, convolution
        width, size = outputs, half
    parameters += 2 * width + (width + 1) * skeleton.classes
    flops += 3 * width * size**2 + width * (size + 1) ** 2 + width * skeleton.classes
    return Cost(parameters=parameters, flops=flops)
