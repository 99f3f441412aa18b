"""Many subnets of the NAS-Bench-201 supernet in one pass.

At every place of the network a tensor holds one block a subnet, [K, positions, channels]. On a GPU
an edge sends the blocks of the subnets that chose an operation through it together, and a node adds
up what comes back; on a CPU a cell goes subnet by subnet in one call, which keeps to the cache.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sigeo.spaces.base import Watch
from sigeo.spaces.nasbench201.cell import CONVOLUTIONS, EDGES, OUTPUT, POOL, SKIP, Cell, expect_cell
from sigeo.spaces.nasbench201.network import ConvNorm, Reduction, average_pool, plan_of
from sigeo_ext import gather
from sigeo_ext.gather import Edge, Norm, Term

if TYPE_CHECKING:
    from sigeo.spaces.nasbench201.supernet import NASBench201Supernet

Groups = dict[int, dict[int, tuple[int, ...]]]


class Part(NamedTuple):
    """What an operation contributes to a node."""

    blocks: Tensor
    """[n, B, H, W, C]."""
    subnets: Tensor
    """Whose they are, int64 [n]."""
    norm: str | None = None
    """The norm behind it, if there is one."""


class Stack:
    """K subnets as one function of a batch; see `sigeo.spaces.Stack`."""

    apart = False
    random = None
    watch: Watch | None = None

    def __init__(self, supernet: NASBench201Supernet, archs: Sequence[Cell], *, own: bool):
        """Gather the weights that any of them uses.

        Args:
            supernet: The shared weights.
            archs: The subnets.
            own: Whether each subnet gets weights of its own to move, copied; else all read the
                supernet's.
        """
        self.archs = tuple(map(expect_cell, archs))
        self.weights: dict[str, nn.Parameter] = {}
        self.members: dict[str, tuple[int, ...]] = {}
        self._own, self._supernet = own, supernet
        self._groups = _groups(self.archs)
        everyone = tuple(range(len(self.archs)))
        self._plain_norms: dict[str, Norm] = {}
        for name, module, members in self._used(everyone):
            for parameter_name, parameter in module.named_parameters(prefix=name):
                self._take(parameter_name, parameter, members)
            for part_name, part in module.named_modules(prefix=name):
                if isinstance(part, nn.BatchNorm2d) and not part.affine:
                    like = supernet.stem.conv.weight.detach()
                    ones = like.new_ones(()).expand(len(members), part.num_features)
                    self._plain_norms[part_name] = Norm(ones, torch.zeros_like(ones))
        # Norms and biases have one dimension behind the rows, weights of layers more.
        self.layers = frozenset(name for name, rows in self.weights.items() if rows.dim() > 2)
        device = supernet.head.linear.weight.device
        self._everyone = torch.tensor(everyone, device=device)
        self._index = {
            (edge, operation): torch.tensor(members, device=device)
            for edge, by_operation in self._groups.items()
            for operation, members in by_operation.items()
        }
        self._slots = [place for place in self._index if place[1] in CONVOLUTIONS]
        self._edges_of: dict[str, list[Edge]] = {}
        self._fed: set[str] = set()  # convolutions that some subnet gives more than zeros
        values = _Values()
        # Weights of a subnet's own make all that is behind them its own.
        entries = [values.number(subnet if own else "all") for subnet in everyone]
        for place, block in enumerate(supernet.blocks):
            name = f"blocks.{place}"
            if isinstance(block, Reduction):
                entries = [values.number((name, entry)) for entry in entries]
            else:
                slots = f"{name}.slots"
                self._edges_of[slots], entries = self._edges_of_cell(slots, entries, values)

    def _edges_of_cell(
        self, name: str, entries: Sequence[int], values: _Values
    ) -> tuple[list[Edge], list[int]]:
        """The edges of all subnets in one cell, and the number of each subnet's result."""
        edges, results = [], []
        for subnet, (arch, entry) in enumerate(zip(self.archs, entries, strict=True)):
            nodes = {0: entry}
            for node, inputs in plan_of(arch):
                terms = []
                for source, operation, edge in inputs:
                    given = nodes.get(source, -1)  # of a node that is zero, only a shift comes
                    where = (given, entry if given < 0 else None)
                    term = values.number((name, where, operation, edge))
                    slot, row = gather.POOL if operation == POOL else gather.IDENTITY, 0
                    if operation in CONVOLUTIONS:
                        slot = self._slots.index((edge, operation))
                        row = self._groups[edge][operation].index(subnet)
                        self._fed |= {f"{name}.{edge}_{operation}"} if given >= 0 else set()
                    edges.append(Edge(subnet, source, node, slot, row, given, term))
                    terms.append(given if operation == SKIP else term)
                nodes[node] = values.number((name, "sum", *terms))
            results.append(nodes.get(OUTPUT, values.number((name, "zero", entry))))
        return edges, results

    def _used(self, everyone: tuple[int, ...]) -> Iterator[tuple[str, nn.Module, tuple[int, ...]]]:
        """The modules that some subnet uses.

        Yields:
            Name, module and the subnets.
        """
        yield "stem", self._supernet.stem, everyone
        for place, block in enumerate(self._supernet.blocks):
            name = f"blocks.{place}"
            if isinstance(block, Reduction):
                yield name, block, everyone
                continue
            for edge, by_operation in self._groups.items():
                for operation, members in by_operation.items():
                    if operation in CONVOLUTIONS:
                        slot: nn.Module = block.slot(edge, operation)  # type: ignore[operator]
                        yield f"{name}.slots.{edge}_{operation}", slot, members
        yield "head", self._supernet.head, everyone

    def _take(self, name: str, parameter: nn.Parameter, members: tuple[int, ...]) -> None:
        one = parameter.detach()
        rows = one.expand(len(members), *one.shape)
        if self._own:  # each in the memory order of the one
            size, strides = rows.shape, (one.numel(), *one.stride())
            rows = one.new_empty_strided(size, strides).copy_(rows)
        self.weights[name] = nn.Parameter(rows, requires_grad=parameter.requires_grad)
        self.members[name] = members

    def __call__(self, images: Tensor) -> Tensor:
        """Images [B, in_channels, H, W] to logits [K, B, classes]."""
        count = len(self.archs)
        x = images.movedim(1, -1).contiguous()[None].expand(count, *[-1] * images.dim())
        x = self._sum([self._normed("stem", x, self._everyone, self._supernet.stem)])
        for place, block in enumerate(self._supernet.blocks):
            name = f"blocks.{place}"
            if isinstance(block, Reduction):
                x = self._reduction(name, block, x)
            else:
                x = self._cell(f"{name}.slots", block, x)
        x = self._sum([Part(x, self._everyone, "head.norm")]).relu()
        pooled = x.mean((2, 3))
        y = gather.linear(
            pooled, self.weights["head.linear.weight"], self.weights["head.linear.bias"]
        )
        if self.watch is not None:
            self.watch.linear("head.linear", pooled, y)
        return y

    def each(self, images: Tensor) -> Iterator[Tensor]:
        """The logits [B, classes] of one subnet after another.

        Yields:
            One of each subnet; they have one graph.
        """
        yield from self(images)

    def gradient(self, name: str) -> Tensor | None:
        """The sum of the rows' gradients; None if there is none.

        Of convolutions of zeros only the norm's shift has one: none is not zero to an optimiser
        with momentum or weight decay.
        """
        rows = self.weights[name].grad
        slot, weight = name.rsplit(".", 2)[0], not name.endswith(".bias")
        if rows is None or (weight and ".slots." in name and slot not in self._fed):
            return None
        return rows.sum(0)

    def _norm(self, name: str) -> Norm:
        if name in self._plain_norms:
            return self._plain_norms[name]
        return Norm(self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def _normed(self, name: str, x: Tensor, subnets: Tensor, module: ConvNorm) -> Part:
        """A convolution of blocks [n, B, H, W, C], and the term that it is with its norm."""
        return Part(self._convolve(f"{name}.conv", x, module.conv), subnets, f"{name}.norm")

    def _convolve(self, name: str, x: Tensor, module: nn.Conv2d) -> Tensor:
        weight, padding = f"{name}.weight", int(module.padding[0])
        stride = module.stride[0]
        y = gather.convolution(x, self.weights[weight], stride=stride, padding=padding)
        if self.watch is not None:
            self.watch.convolution(weight, x, y, stride=stride, padding=padding)
        return y

    def _sum(self, parts: Sequence[Part]) -> Tensor:
        """The sum at a node [K, B, H, W, C]."""
        terms = [
            Term(x.flatten(1, -2), subnets, None if norm is None else self._norm(norm))
            for x, subnets, norm in parts
        ]
        y, means, rstds = gather.combined(terms, len(self.archs))
        if self.watch is not None:
            normed = [(x, subnets, norm) for x, subnets, norm in parts if norm is not None]
            for (x, subnets, norm), mean, rstd in zip(normed, means, rstds, strict=True):
                self.watch.norm(norm, x, y, subnets, mean, rstd)
        blocks: Tensor = y.unflatten(1, parts[0].blocks.shape[1:-1])
        return blocks

    def _reduction(self, name: str, block: Reduction, x: Tensor) -> Tensor:
        first = self._sum([self._normed(f"{name}.first", x.relu(), self._everyone, block.first)])
        second = self._normed(f"{name}.second", first.relu(), self._everyone, block.second)
        pooled = F.avg_pool2d(_images(x), 2, 2, ceil_mode=True)
        short = self._convolve(f"{name}.shortcut", _blocks(pooled, len(x)), block.shortcut)
        return self._sum([second, Part(short, self._everyone)])

    def _cell(self, name: str, block: nn.Module, x: Tensor) -> Tensor:
        if not x.is_cpu or self.watch is not None:
            return self._cell_by_operation(name, block, x)
        slots = [f"{name}.{edge}_{operation}" for edge, operation in self._slots]
        return gather.cell(
            x,
            [self.weights[f"{slot}.conv.weight"] for slot in slots],
            [self._norm(f"{slot}.norm") for slot in slots],
            self._edges_of[name],
            nodes=OUTPUT + 1,
        )

    def _cell_by_operation(self, name: str, block: nn.Module, x: Tensor) -> Tensor:
        parts: dict[int, list[Part]] = {node: [] for node in range(OUTPUT + 1)}
        for node in range(OUTPUT):
            leaving = [place for place in self._index if EDGES[place[0]][0] == node]
            if leaving:
                value = x if node == 0 else self._node(parts[node], x)
                for edge, part in self._sent(name, block, value, leaving):
                    parts[EDGES[edge][1]].append(part)
        return self._node(parts[OUTPUT], x)

    def _node(self, parts: Sequence[Part], like: Tensor) -> Tensor:
        return self._sum(parts) if parts else torch.zeros_like(like)

    def _sent(
        self, name: str, block: nn.Module, value: Tensor, leaving: Sequence[tuple[int, int]]
    ) -> Iterator[tuple[int, Part]]:
        """A node's blocks through the operations on edges that leave it.

        Yields:
            The edge, and what comes of the operation.
        """
        convolved = [place for place in leaving if place[1] in CONVOLUTIONS]
        others = [place for place in leaving if place[1] not in CONVOLUTIONS]
        rectified, plain = gather.dispatch(
            value.flatten(1, -2), *([self._index[p] for p in some] for some in (convolved, others))
        )
        for (edge, operation), blocks in zip(convolved, rectified, strict=True):
            slot: ConvNorm = block.slot(edge, operation)  # type: ignore[operator]
            x = blocks.unflatten(1, value.shape[1:-1])
            subnets = self._index[edge, operation]
            yield edge, self._normed(f"{name}.{edge}_{operation}", x, subnets, slot)
        for (edge, operation), blocks in zip(others, plain, strict=True):
            x = blocks.unflatten(1, value.shape[1:-1])
            if operation == POOL:
                x = _blocks(average_pool(_images(x)), len(x))
            yield edge, Part(x, self._index[edge, operation])


class _Values:
    """Numbers what subnets compute: equal operations on equal values have one number."""

    def __init__(self) -> None:
        self._numbers: dict[Hashable, int] = {}

    def number(self, made: Hashable) -> int:
        """The number of a value, by what it is made of."""
        return self._numbers.setdefault(made, len(self._numbers))


def _groups(archs: Sequence[Cell]) -> Groups:
    """The subnets that run an operation on an edge: {edge: {operation: subnets}}."""
    found: dict[int, dict[int, list[int]]] = {}
    for subnet, arch in enumerate(archs):
        for _, inputs in plan_of(arch):
            for _, operation, edge in inputs:
                found.setdefault(edge, {}).setdefault(operation, []).append(subnet)
    return {
        edge: {operation: tuple(members) for operation, members in sorted(by_operation.items())}
        for edge, by_operation in sorted(found.items())
    }


def _images(x: Tensor) -> Tensor:
    """Blocks [n, B, H, W, C] as images [n B, C, H, W]."""
    return x.flatten(0, 1).movedim(-1, 1)


def _blocks(images: Tensor, count: int) -> Tensor:
    """Images [n B, C, H, W] as blocks [n, B, H, W, C]."""
    blocks: Tensor = images.movedim(1, -1).contiguous().unflatten(0, (count, -1))
    return blocks
