"""What the cell ops mean, in plain PyTorch: their fallback on any device, and their judge.

Kept from the forward pass are, for each subnet, the rectified sources of its convolutions in order
of first use and the convolutions' outputs, [B, H, W, C], empty where the source is a node that no
edge leads to; then all norms' means and 1/deviations, [convolutions, C].
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from sigeo_ext import _check

IDENTITY, POOL = -1, -2
aten = torch.ops.aten


class Edge(NamedTuple):
    """One operation of one subnet, between two nodes."""

    subnet: int
    source: int
    target: int
    slot: int
    """A convolution's place in the lists of weights, or `IDENTITY` or `POOL`."""
    row: int
    """The subnet's row of those weights."""

    @property
    def convolves(self) -> bool:
        """Whether it is a convolution."""
        return self.slot >= 0


def edges_of(flat: Sequence[int]) -> list[Edge]:
    """Edges from five numbers each."""
    return [Edge(*flat[i : i + 5]) for i in range(0, len(flat), 5)]


def reached(edges: Sequence[Edge]) -> list[Edge]:
    """The edges whose source has a value; others start from zero, and give their norm's shift."""
    values: set[tuple[int, int]] = set()
    found = []
    for edge in edges:
        if edge.source == 0 or (edge.subnet, edge.source) in values:
            found.append(edge)
        values.add((edge.subnet, edge.target))
    return found


def cell(
    x: Tensor,
    weight: Sequence[Tensor],
    scale: Sequence[Tensor],
    shift: Sequence[Tensor],
    edges: Sequence[int],
    nodes: int,
    eps: float,
) -> tuple[Tensor, list[Tensor]]:
    """The last node of each subnet's cell [K, B, H, W, C], and what the backward pass needs."""
    _check_arguments("gather_cell", x, weight, scale, shift)
    checked = _checked("gather_cell", edges, len(x), nodes, weight)
    results, kept, means, rstds = [], [], [], []
    for subnet, start in enumerate(x):
        values: dict[int, Tensor] = {0: start.contiguous()}
        rectified: dict[int, Tensor] = {}
        outputs = []
        for edge in (e for e in checked if e.subnet == subnet):
            source = values.get(edge.source)
            if source is None and edge.convolves:
                term = shift[edge.slot][edge.row].expand_as(values[0])
                outputs.append(x.new_empty(0))
                means.append(torch.zeros_like(shift[edge.slot][edge.row]))
                rstds.append(torch.full_like(means[-1], eps**-0.5))
            elif source is None:
                term = torch.zeros_like(values[0])
            elif edge.convolves:
                if edge.source not in rectified:
                    rectified[edge.source] = source.relu()
                kernel = weight[edge.slot][edge.row]
                y = _last(F.conv2d(_first(rectified[edge.source]), kernel, padding="same"))
                mean = y.mean((0, 1, 2))
                rstd = ((y - mean).square().mean((0, 1, 2)) + eps).rsqrt()
                term = (y - mean) * (rstd * scale[edge.slot][edge.row])
                term = term + shift[edge.slot][edge.row]
                outputs.append(y)
                means.append(mean)
                rstds.append(rstd)
            elif edge.slot == POOL:
                pooled = F.avg_pool2d(_first(source), 3, 1, 1, count_include_pad=False)
                term = _last(pooled)
            else:
                term = source
            held = values.get(edge.target)
            values[edge.target] = term if held is None else held + term
        last = values.get(nodes - 1)
        results.append(torch.zeros_like(values[0]) if last is None else last)
        kept += [*rectified.values(), *outputs]
    empty = x.new_empty(0, x.shape[-1])
    statistics = [torch.stack(rows) if rows else empty.clone() for rows in (means, rstds)]
    y = torch.stack(results) if results else torch.zeros_like(x)
    return y, [*kept, *statistics]


def cell_backward(
    d: Tensor,
    weight: Sequence[Tensor],
    scale: Sequence[Tensor],
    kept: Sequence[Tensor],
    edges: Sequence[int],
    nodes: int,
) -> tuple[Tensor, list[Tensor], list[Tensor], list[Tensor]]:
    """Gradients of the first node and of each slot's rows."""
    _check_arguments("gather_cell_backward", d, weight, scale, scale)
    checked = _checked("gather_cell_backward", edges, len(d), nodes, weight)
    *held, means, rstds = kept
    into_x = torch.zeros(d.shape, dtype=d.dtype, device=d.device)
    into_weight = [torch.zeros(w.shape, dtype=w.dtype, device=w.device) for w in weight]
    into_scale = [torch.zeros(s.shape, dtype=s.dtype, device=s.device) for s in scale]
    into_shift = [torch.zeros_like(s) for s in into_scale]
    number = taken = 0
    for subnet in range(len(d)):
        mine = [e for e in checked if e.subnet == subnet]
        convolved = [e for e in mine if e.convolves]
        live = set(reached(mine))
        sources = list(dict.fromkeys(e.source for e in convolved if e in live))
        rectified = dict(zip(sources, held[taken:], strict=False))
        taken += len(sources)
        outputs = dict(zip(convolved, held[taken : taken + len(convolved)], strict=True))
        taken += len(convolved)
        rows = dict(zip(convolved, range(number, number + len(convolved)), strict=True))
        number += len(convolved)
        through_relu: dict[int, Tensor] = {}
        plain = {nodes - 1: d[subnet]}

        def add(sums: dict[int, Tensor], node: int, value: Tensor) -> None:
            sums[node] = sums[node] + value if node in sums else value

        for target in range(nodes - 1, -1, -1):
            total = plain.pop(target, torch.zeros_like(into_x[subnet]))
            if target in through_relu:
                total = total + through_relu.pop(target) * (rectified[target] > 0)
            if target == 0:
                into_x[subnet] = total
            for edge in (e for e in mine if e.target == target):
                if edge.slot == IDENTITY:
                    add(plain, edge.source, total)
                elif edge.slot == POOL:
                    add(plain, edge.source, _pool_backward(total))
                elif edge not in live:
                    into_shift[edge.slot][edge.row] = total.sum((0, 1, 2))
                else:
                    y, mean, rstd = outputs[edge], means[rows[edge]], rstds[rows[edge]]
                    xhat = (y - mean) * rstd
                    shift, inner = total.sum((0, 1, 2)), (total * xhat).sum((0, 1, 2))
                    count = total[..., 0].numel()
                    before = (total - shift / count - xhat * (inner / count)) * rstd
                    before = before * scale[edge.slot][edge.row]
                    kernel = weight[edge.slot][edge.row]
                    pad = [kernel.shape[-1] // 2] * 2
                    into, into_kernel, _ = aten.convolution_backward(
                        _first(before), _first(rectified[edge.source]), kernel, None,
                        [1, 1], pad, [1, 1], False, [0, 0], 1, [True, True, False],
                    )  # fmt: skip
                    add(through_relu, edge.source, _last(into))
                    into_weight[edge.slot][edge.row] = into_kernel
                    into_scale[edge.slot][edge.row] = inner
                    into_shift[edge.slot][edge.row] = shift
    return into_x, into_weight, into_scale, into_shift


def _pool_backward(d: Tensor) -> Tensor:
    images = _first(d)
    pixels = torch.ones_like(images[:1, :1])
    ones = torch.ones(1, 1, 3, 3, dtype=d.dtype, device=d.device)
    share = images / F.conv2d(pixels, ones, padding=1)
    channels = images.shape[1]
    return _last(F.conv2d(share, ones.expand(channels, 1, 3, 3), padding=1, groups=channels))


def _first(x: Tensor) -> Tensor:
    return x.movedim(-1, 1)


def _last(images: Tensor) -> Tensor:
    return images.movedim(1, -1).contiguous()


def _checked(
    op: str, flat: Sequence[int], subnets: int, nodes: int, weight: Sequence[Tensor]
) -> list[Edge]:
    message = f"edges must hold 5 numbers an edge, got {len(flat)}"
    _check.require(len(flat) % 5 == 0, op, message)
    _check.require(nodes > 1, op, f"nodes must be at least 2, got {nodes}")
    edges = edges_of(flat)
    for place, edge in enumerate(edges):
        inside = 0 <= edge.subnet < subnets and 0 <= edge.source < edge.target < nodes
        known = POOL <= edge.slot < len(weight)
        held = known and (not edge.convolves or 0 <= edge.row < len(weight[edge.slot]))
        before = edges[place - 1] if place else edge
        ordered = (before.subnet, before.target) <= (edge.subnet, edge.target)
        message = (
            f"edges[{place}] must be (subnet, source, target, slot, row), of {subnets} subnets, "
            f"{nodes} nodes and {len(weight)} slots, sorted by subnet and target"
        )
        _check.require(inside and held and ordered, op, message)
    return edges


def _check_arguments(
    op: str, x: Tensor, weight: Sequence[Tensor], scale: Sequence[Tensor], shift: Sequence[Tensor]
) -> None:
    wide = x.dim() == 5 and x.dtype in (torch.float32, torch.float64)
    _check.require(wide, op, "x must be float32 or float64 [subnets, B, H, W, channels]")
    message = f"scale and shift must hold one tensor a slot, {len(weight)}"
    equal = len(scale) == len(shift) == len(weight)
    _check.require(equal, op, f"{message}, got {len(scale)} and {len(shift)}")
    channels = x.shape[4]
    for slot, (w, *rows) in enumerate(zip(weight, scale, shift, strict=True)):
        square = w.dim() == 5 and list(w.shape[1:3]) == [channels] * 2
        square = square and w.shape[3] == w.shape[4] and w.shape[3] % 2 == 1
        expected = f"[rows, {channels}, {channels}, k, k] like x, k odd"
        message = f"weight[{slot}] must be {expected}"
        _check.require(square and w.dtype == x.dtype, op, message)
        for values in rows:
            fits = list(values.shape) == [len(w), channels] and values.dtype == x.dtype
            expected = f"[{len(w)}, {channels}] like x"
            _check.require(fits, op, f"scale[{slot}] and shift[{slot}] must be {expected}")
