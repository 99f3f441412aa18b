"""What the cell ops mean, in plain PyTorch: their fallback on any device, and their judge."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from sigeo_ext import _check

IDENTITY, POOL = -1, -2
aten = torch.ops.aten


class Edge(NamedTuple):
    """One operation of one subnet, between two nodes.

    Attributes:
        subnet: Its place among the subnets.
        source: The node it starts from.
        target: The node it leads to, a later one.
        slot: A convolution's place in the lists of weights, or ``gather.IDENTITY`` or
            ``gather.POOL``.
        row: The subnet's row of that slot's weights; 0 for the other two.
        given: Edges whose sources are known to hold equal values carry one number of 0 or more;
            -1 where nothing is known.
        gives: The same of results: convolutions of equal sources whose weights are one in memory.
    """

    subnet: int
    source: int
    target: int
    slot: int
    row: int
    given: int = -1
    gives: int = -1

    @property
    def convolves(self) -> bool:
        """Whether it is a convolution."""
        return self.slot >= 0


def edges_of(flat: Sequence[int]) -> list[Edge]:
    """Edges from seven numbers each."""
    width = len(Edge._fields)
    return [Edge(*flat[i : i + width]) for i in range(0, len(flat), width)]


class Kept(NamedTuple):
    """Where the forward pass keeps what an edge's backward pass needs; None where it needs nothing.

    Kept are, in order of the edges and each once, sources behind their ReLU and outputs of the
    convolutions, [B, H, W, C]; then all norms' means and 1/deviations, [rows, C]. A convolution of
    a node that no edge leads to keeps nothing: it gives its norm's shift.
    """

    rectified: int
    output: int
    row: int


def kept_places(edges: Sequence[Edge]) -> tuple[list[Kept | None], int, int]:
    """Each edge's places, and how many images and rows there are."""
    valued: set[tuple[int, int]] = set()
    sources: dict[Any, int] = {}
    outputs: dict[Any, tuple[int, int]] = {}
    found: list[Kept | None] = []
    images = 0
    for number, edge in enumerate(edges):
        reached = edge.source == 0 or (edge.subnet, edge.source) in valued
        valued.add((edge.subnet, edge.target))
        if not edge.convolves or not reached:
            found.append(None)
            continue
        source = edge.given if edge.given >= 0 else (edge.subnet, edge.source)
        if source not in sources:
            sources[source] = images
            images += 1
        result = edge.gives if edge.gives >= 0 else (number,)
        if result not in outputs:
            outputs[result] = (images, len(outputs))
            images += 1
        found.append(Kept(sources[source], *outputs[result]))
    return found, images, len(outputs)


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
    places, images, rows = kept_places(checked)
    kept: list[Tensor] = [x] * images
    means, rstds = ([x.new_empty(x.shape[-1])] * rows for _ in range(2))
    results = []
    for subnet, start in enumerate(x):
        values: dict[int, Tensor] = {0: start.contiguous()}
        for edge, place in zip(checked, places, strict=True):
            if edge.subnet != subnet:
                continue
            source = values.get(edge.source)
            if source is None and edge.convolves:
                term = shift[edge.slot][edge.row].expand_as(values[0])
            elif source is None:
                term = torch.zeros_like(values[0])
            elif place is not None:
                rectified = source.relu()
                kernel = weight[edge.slot][edge.row]
                y = _last(F.conv2d(_first(rectified), kernel, padding="same"))
                mean = y.mean((0, 1, 2))
                rstd = ((y - mean).square().mean((0, 1, 2)) + eps).rsqrt()
                term = (y - mean) * (rstd * scale[edge.slot][edge.row])
                term = term + shift[edge.slot][edge.row]
                kept[place.rectified], kept[place.output] = rectified, y
                means[place.row], rstds[place.row] = mean, rstd
            elif edge.slot == POOL:
                pooled = F.avg_pool2d(_first(source), 3, 1, 1, count_include_pad=False)
                term = _last(pooled)
            else:
                term = source
            held = values.get(edge.target)
            values[edge.target] = term if held is None else held + term
        last = values.get(nodes - 1)
        results.append(torch.zeros_like(values[0]) if last is None else last.clone())
    empty = x.new_empty(0, x.shape[-1])
    statistics = [torch.stack(t) if t else empty.clone() for t in (means, rstds)]
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
    places = kept_places(checked)[0]
    means, rstds = kept[-2:]
    into_x = torch.zeros(d.shape, dtype=d.dtype, device=d.device)
    into_weight = [torch.zeros(w.shape, dtype=w.dtype, device=w.device) for w in weight]
    into_scale = [torch.zeros(s.shape, dtype=s.dtype, device=s.device) for s in scale]
    into_shift = [torch.zeros_like(s) for s in into_scale]
    for subnet in range(len(d)):
        mine = [(e, p) for e, p in zip(checked, places, strict=True) if e.subnet == subnet]
        rectified = {e.source: kept[p.rectified] for e, p in mine if p is not None}
        through_relu: dict[int, Tensor] = {}
        plain = {nodes - 1: d[subnet]}

        def add(sums: dict[int, Tensor], node: int, value: Tensor) -> None:
            sums[node] = sums[node] + value if node in sums else value

        for target in range(nodes - 1, -1, -1):
            total = plain.pop(target, torch.zeros_like(into_x[subnet]))
            if target in through_relu:
                total = total + through_relu.pop(target).masked_fill(rectified[target] <= 0, 0)
            if target == 0:
                into_x[subnet] = total
            for edge, place in mine:
                if edge.target != target:
                    continue
                if edge.slot == IDENTITY:
                    add(plain, edge.source, total)
                elif edge.slot == POOL:
                    add(plain, edge.source, _pool_backward(total))
                elif place is None:
                    into_shift[edge.slot][edge.row] = total.sum((0, 1, 2))
                else:
                    y, mean, rstd = kept[place.output], means[place.row], rstds[place.row]
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
    width = len(Edge._fields)
    message = f"edges must hold {width} numbers an edge, got {len(flat)}"
    _check.require(len(flat) % width == 0, op, message)
    _check.require(nodes > 1, op, f"nodes must be at least 2, got {nodes}")
    edges = edges_of(flat)
    rows: set[tuple[int, int]] = set()
    for place, edge in enumerate(edges):
        inside = 0 <= edge.subnet < subnets and 0 <= edge.source < edge.target < nodes
        known = POOL <= edge.slot < len(weight)
        held = known and (not edge.convolves or 0 <= edge.row < len(weight[edge.slot]))
        held = held and not (edge.convolves and (edge.slot, edge.row) in rows)
        rows.add((edge.slot, edge.row))
        before = edges[place - 1] if place else edge
        ordered = (before.subnet, before.target) <= (edge.subnet, edge.target)
        message = (
            f"edges[{place}] must be (subnet, source, target, slot, row, given, gives), of "
            f"{subnets} subnets, {nodes} nodes and {len(weight)} slots, sorted by subnet and "
            "target, each slot's row once"
        )
        _check.require(inside and held and ordered, op, message)
    return edges


def _check_arguments(
    op: str, x: Tensor, weight: Sequence[Tensor], scale: Sequence[Tensor], shift: Sequence[Tensor]
) -> None:
    wide = x.dim() == 5 and x.dtype in (torch.float32, torch.float64)
    expected = "x must be float32 or float64 [subnets, B, H, W, channels]"
    _check.require(wide, op, f"{expected}, got {_check.form_of(x)}")
    message = f"scale and shift must hold one tensor a slot, {len(weight)}"
    equal = len(scale) == len(shift) == len(weight)
    _check.require(equal, op, f"{message}, got {len(scale)} and {len(shift)}")
    channels, dtype = x.shape[4], _check.dtype_of(x)
    for slot, (w, *rows) in enumerate(zip(weight, scale, shift, strict=True)):
        square = w.dim() == 5 and list(w.shape[1:3]) == [channels] * 2
        square = square and w.shape[3] == w.shape[4] and w.shape[3] % 2 == 1
        expected = f"{dtype} [rows, {channels}, {channels}, k, k] like x, k odd"
        message = f"weight[{slot}] must be {expected}, got {_check.form_of(w)}"
        _check.require(square and w.dtype == x.dtype, op, message)
        for name, values in zip(("scale", "shift"), rows, strict=True):
            fits = list(values.shape) == [len(w), channels] and values.dtype == x.dtype
            expected = f"{dtype} [{len(w)}, {channels}] like x"
            message = f"{name}[{slot}] must be {expected}, got {_check.form_of(values)}"
            _check.require(fits, op, message)
