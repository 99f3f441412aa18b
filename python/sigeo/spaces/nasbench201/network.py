"""The networks of NAS-Bench-201: the published macro skeleton around one cell.

Skeleton: 3x3 convolution to C channels with batch norm; N cells; a residual block to 2C at half the
resolution; N cells; a residual block to 4C; N cells; batch norm, ReLU, global average pooling, a
linear layer. Published with C = 16, N = 5.

Every module has a name that depends on its place alone, and its initial weights are drawn from the
seed and that name: the convolution of one operation on one edge of one block starts the same in
every network of equal width, whatever else is in it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sigeo.spaces.initial import draw_weights
from sigeo.spaces.nasbench201.canonical import pruned
from sigeo.spaces.nasbench201.cell import (
    CONV_3X3,
    CONVOLUTIONS,
    EDGES,
    NONE,
    OUTPUT,
    POOL,
    SKIP,
    Cell,
)


@dataclass(frozen=True)
class Skeleton:
    """What surrounds the cell.

    Attributes:
        channels: C, the width of the first stage; the others have 2C and 4C.
        cells: N, cells of each of the three stages.
        classes: Outputs of the last layer.
        in_channels: Channels of the images.
    """

    channels: int = 16
    cells: int = 5
    classes: int = 10
    in_channels: int = 3

    def __post_init__(self) -> None:
        """Check the sizes.

        Raises:
            ValueError: One is below 1.
        """
        for name in ("channels", "cells", "classes", "in_channels"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")

    def blocks(self) -> list[tuple[str, int]]:
        """("cell" or "reduction", channels out) of each block, from the stem to the head."""
        plan: list[tuple[str, int]] = []
        for stage in range(3):
            width = self.channels << stage
            plan += [("reduction", width)] if stage else []
            plan += [("cell", width)] * self.cells
        return plan


class ConvNorm(nn.Module):
    """Convolution without bias, then batch norm."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        *,
        stride: int = 1,
        track: bool,
        affine: bool = True,
    ):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
        self.norm = nn.BatchNorm2d(outputs, affine=affine, track_running_stats=track)

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, H, W] to [B, outputs, H/stride, W/stride]."""
        y: Tensor = self.norm(self.conv(x))
        return y


class Reduction(nn.Module):
    """Residual block of stride 2: ReLU-convolution-norm twice, beside pooling and convolution."""

    def __init__(self, inputs: int, outputs: int, *, track: bool, affine: bool = True):
        super().__init__()
        self.first = ConvNorm(inputs, outputs, 3, stride=2, track=track, affine=affine)
        self.second = ConvNorm(outputs, outputs, 3, track=track, affine=affine)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, H, W] to [B, outputs, H/2, W/2], halves rounded up."""
        main = self.second(F.relu(self.first(F.relu(x))))
        y: Tensor = self.shortcut(F.avg_pool2d(x, 2, 2, ceil_mode=True)) + main
        return y


def average_pool(x: Tensor) -> Tensor:
    """3x3 average pooling of stride 1 over the pixels that are there: ``count_include_pad=False``.

    On a CPU in channels_last memory it is a depthwise convolution with ones and a scale, which runs
    4 times as fast forward and backward as the pooling operator, and rounds differently.
    """
    channels_last = torch.channels_last
    if x.is_cpu and x.is_contiguous(memory_format=channels_last) and not x.is_contiguous():
        ones, scale = _pooling(x.shape[1], x.shape[2], x.shape[3], x.dtype)
        return F.conv2d(x, ones, padding=1, groups=x.shape[1]) * scale
    return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)


@functools.lru_cache(maxsize=64)
def _pooling(channels: int, height: int, width: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The weight of ones, and 1 / (number of pixels under the window) for each place."""
    # Kept for later calls, so made as plain CPU tensors whatever modes are on now.
    with torch.inference_mode(False), torch.no_grad():
        ones = torch.ones(channels, 1, 3, 3, dtype=dtype, device="cpu")
        pixels = torch.ones(1, 1, height, width, dtype=dtype, device="cpu")
        return ones, 1 / F.conv2d(pixels, ones[:1], padding=1)


Plan = tuple[tuple[int, tuple[tuple[int, int, int], ...]], ...]


@functools.cache
def plan_of(cell: Cell) -> Plan:
    """The edges to run as (node, ((source, operation, edge), ...)), nodes in order."""
    live = pruned(cell)
    plan = []
    for node in range(1, OUTPUT + 1):
        inputs = tuple(
            (source, operation, edge)
            for edge, ((source, target), operation) in enumerate(
                zip(EDGES, live.operations, strict=True)
            )
            if target == node and operation != NONE
        )
        if inputs:
            plan.append((node, inputs))
    return tuple(plan)


def run_cell(
    plan: Plan,
    convolutions: Callable[[int, int], ConvNorm],
    x: Tensor,
    *,
    drop: Callable[[Tensor], Tensor] | None = None,
    norm_zeros: bool = False,
) -> Tensor:
    """Run the edges of a plan on x [B, C, H, W]; ReLU and pooling of a node are computed once.

    Args:
        plan: What `plan_of` gave.
        convolutions: The module for (edge, operation).
        x: Node 0.
        drop: Path dropout, of every edge but skip connections.
        norm_zeros: Whether zeros go through norms, for running statistics that other paths share.
    """
    nodes: dict[int, Tensor] = {0: x}
    rectified: dict[int, Tensor] = {}
    pooled: dict[int, Tensor] = {}
    for node, inputs in plan:
        terms: list[Tensor] = []
        for source, operation, edge in inputs:
            if operation in CONVOLUTIONS and source not in nodes:
                terms.append(_of_zeros(convolutions(edge, operation).norm, x, norm_zeros))
            elif operation in CONVOLUTIONS:
                if source not in rectified:
                    rectified[source] = F.relu(nodes[source])
                terms.append(convolutions(edge, operation)(rectified[source]))
            elif operation == POOL:
                if source not in pooled:
                    pooled[source] = average_pool(nodes[source])
                terms.append(pooled[source])
            else:
                terms.append(nodes[source])
            if drop is not None and operation != SKIP:
                terms[-1] = drop(terms[-1])
        total = terms[0]
        for term in terms[1:]:
            total = total + term
        nodes[node] = total
    return nodes[OUTPUT] if OUTPUT in nodes else torch.zeros_like(x)


def _of_zeros(norm: nn.BatchNorm2d, x: Tensor, run: bool) -> Tensor:
    """What a convolution of zeros, which is zero, is behind its norm."""
    zeros = torch.zeros_like(x)
    if run:
        y: Tensor = norm(zeros)
        return y
    return zeros if norm.bias is None else zeros + norm.bias.view(1, -1, 1, 1)


def run_whole_cell(cell: Cell, convolutions: Callable[[int, int], ConvNorm], x: Tensor) -> Tensor:
    """Run every edge on x [B, C, H, W], also those without effect, each with a ReLU of its own.

    So does the published network, on which rectifiers are counted.

    Args:
        cell: The architecture.
        convolutions: The module for (edge, operation).
        x: Node 0.
    """
    nodes = [x]
    for node in range(1, OUTPUT + 1):
        total = torch.zeros_like(x)
        for edge, ((source, target), operation) in enumerate(
            zip(EDGES, cell.operations, strict=True)
        ):
            if target != node or operation == NONE:
                continue
            term = nodes[source]
            if operation in CONVOLUTIONS:
                term = convolutions(edge, operation)(F.relu(term))
            elif operation == POOL:
                term = average_pool(term)
            total = total + term
        nodes.append(total)
    return nodes[OUTPUT]


class CellBlock(nn.Module):
    """One cell of a network.

    Attributes:
        abridged: Whether only the edges that matter run, see `canonical.pruned`, and what they
            share is computed once; else all that the published network runs.
    """

    def __init__(self, cell: Cell, convolutions: Mapping[int, ConvNorm]):
        """Make a cell of given convolutions.

        Args:
            cell: The architecture.
            convolutions: The module of each edge that is a convolution.
        """
        super().__init__()
        self.abridged = True
        self.cell = cell
        self.edges = nn.ModuleDict({str(edge): module for edge, module in convolutions.items()})
        self._plan = plan_of(cell)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to the same shape."""
        if self.abridged:
            return run_cell(self._plan, self._convolution, x)
        return run_whole_cell(self.cell, self._convolution, x)

    def _convolution(self, edge: int, operation: int) -> ConvNorm:
        return self.edges[str(edge)]  # type: ignore[return-value]


class Head(nn.Module):
    """Batch norm, ReLU, global average pooling, linear layer."""

    def __init__(self, channels: int, classes: int, *, track: bool, affine: bool = True):
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, affine=affine, track_running_stats=track)
        self.linear = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to [B, classes]."""
        y: Tensor = self.linear(self.features(x))
        return y

    def features(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to what goes into the linear layer, [B, C]."""
        return F.relu(self.norm(x)).mean((2, 3))


class Network(nn.Module):
    """Stem, blocks, head."""

    def __init__(self, stem: nn.Module, blocks: list[nn.Module], head: nn.Module):
        super().__init__()
        self.stem = stem
        self.blocks = nn.ModuleList(blocks)
        self.head = head

    def forward(self, x: Tensor) -> Tensor:
        """Images [B, in_channels, H, W] to logits [B, classes]."""
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        y: Tensor = self.head(x)
        return y


def convolution(width: int, operation: int, *, track: bool, affine: bool = True) -> ConvNorm:
    """The module of a convolution on an edge of a cell of ``width`` channels."""
    return ConvNorm(width, width, 3 if operation == CONV_3X3 else 1, track=track, affine=affine)


def standalone(cell: Cell, skeleton: Skeleton, *, seed: int = 0) -> Network:
    """The published network of one cell, with its own weights.

    Args:
        cell: The architecture.
        skeleton: The sizes around it.
        seed: The initial weights follow from it and from each module's place.
    """
    blocks: list[nn.Module] = []
    inputs = skeleton.channels
    for kind, width in skeleton.blocks():
        if kind == "reduction":
            blocks.append(Reduction(inputs, width, track=True))
        else:
            modules = {
                edge: convolution(width, operation, track=True)
                for edge, operation in enumerate(cell.operations)
                if operation in CONVOLUTIONS
            }
            blocks.append(CellBlock(cell, modules))
        inputs = width
    stem = ConvNorm(skeleton.in_channels, skeleton.channels, 3, track=True)
    network = Network(stem, blocks, Head(inputs, skeleton.classes, track=True))
    for name, module in network.named_modules():
        draw_weights(module, f"{name}.{kernel_of(module)}", seed)
    return network


def kernel_of(module: nn.Module) -> int:
    """The kernel size of a convolution, 0 for any other module."""
    return module.kernel_size[0] if isinstance(module, nn.Conv2d) else 0
