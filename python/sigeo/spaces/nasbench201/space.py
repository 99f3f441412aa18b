"""NAS-Bench-201 as a search space."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

from sigeo.errors import InputError
from sigeo.kinds import named_arguments
from sigeo.space_sizes import checked
from sigeo.spaces.base import Choice, Cost, InputShape, checked_index
from sigeo.spaces.nasbench201.canonical import pruned, representative, zero_nodes
from sigeo.spaces.nasbench201.cell import (
    EDGES,
    OPERATIONS,
    OUTPUT,
    SIZE,
    Cell,
    all_cells,
    expect_cell,
    index_of,
)
from sigeo.spaces.nasbench201.cost import cost
from sigeo.spaces.nasbench201.network import Network, Skeleton, standalone
from sigeo.spaces.nasbench201.supernet import NASBench201Supernet


class NASBench201:
    """The 15,625 cells of Dong and Yang (ICLR 2020) in networks of a chosen size."""

    name = "nasbench201"
    size = SIZE
    choices = tuple(Choice(f"{source}->{target}", OPERATIONS) for source, target in EDGES)

    def __init__(self, shape: InputShape, *, channels: int = 16, cells: int = 5):
        """Fix the sizes around the cell.

        Args:
            shape: Of the images and classes.
            channels: C, the width of the first stage (published: 16).
            cells: N, cells of each stage (published: 5).

        Raises:
            InputError: Images smaller than 4 pixels, which the two reductions would use up, or a
                size that is no whole number from 1.
        """
        if shape.size < 4:
            raise InputError(f"{self.name}: images must be at least 4 x 4, got {shape.size}")
        self.shape = shape
        kept = checked(NASBench201.name, channels=channels, cells=cells)
        try:
            self.skeleton = Skeleton(**kept, classes=shape.classes, in_channels=shape.channels)
        except ValueError as error:
            raise InputError(f"{self.name}: {error}") from None

    def narrowed(self, share: float) -> NASBench201:
        """The same architectures in networks of a share of the channels, rounded, at least one."""
        channels = max(1, round(share * self.skeleton.channels))
        return NASBench201(self.shape, channels=channels, cells=self.skeleton.cells)

    @named_arguments("space")
    def parse(self, text: str) -> Cell:
        """The cell of an official architecture string.

        Raises:
            InputError: The string is malformed; the message says where.
        """
        try:
            return Cell.parse(text)
        except ValueError as error:
            raise InputError(str(error)) from None

    def index(self, arch: Cell) -> int:
        """The official index, 0 to 15,624."""
        return index_of(expect_cell(arch))

    def at(self, index: int) -> Cell:
        """The cell of an official index.

        Raises:
            InputError: The index is not from 0 to below `size`.
        """
        return all_cells()[checked_index(self.name, index, SIZE)]

    def encode(self, arch: Cell) -> tuple[int, ...]:
        """The operation of each edge.

        Raises:
            InputError: It is no architecture of this space.
        """
        return expect_cell(arch).operations

    def decode(self, codes: Sequence[int]) -> Cell:
        """The cell of six operations.

        Raises:
            InputError: Another number of them, or one that does not exist.
        """
        try:
            return Cell(tuple(codes))
        except ValueError as error:
            raise InputError(str(error)) from None

    def sample(self, rng: random.Random) -> Cell:
        """A cell, all equally likely."""
        return all_cells()[rng.randrange(SIZE)]

    def mutate(self, arch: Cell, rng: random.Random) -> Cell:
        """Another operation on one edge, all 24 neighbours equally likely."""
        edge = rng.randrange(len(EDGES))
        other = rng.randrange(len(OPERATIONS) - 1)
        return _with(arch, edge, other + (other >= self.encode(arch)[edge]))

    def crossover(self, first: Cell, second: Cell, rng: random.Random) -> Cell:
        """Each edge from either parent."""
        pairs = zip(self.encode(first), self.encode(second), strict=True)
        return Cell(tuple(rng.choice(pair) for pair in pairs))

    def neighbours(self, arch: Cell) -> Iterator[Cell]:
        """The 24 cells that differ on one edge.

        Yields:
            Each once.
        """
        for edge, current in enumerate(self.encode(arch)):
            for operation in range(len(OPERATIONS)):
                if operation != current:
                    yield _with(arch, edge, operation)

    def representative(self, arch: Cell) -> Cell:
        """The cell that stands for all that are the same network."""
        return representative(expect_cell(arch))

    def pruned(self, arch: Cell) -> Cell:
        """The cell with ``none`` on every edge that does nothing."""
        return pruned(expect_cell(arch))

    def connected(self, arch: Cell) -> bool:
        """Whether a path without ``none`` leads to the output (all but 341 cells)."""
        return OUTPUT not in zero_nodes(expect_cell(arch))

    def cost(self, arch: Cell) -> Cost:
        """Parameters and FLOPs as the published tables count them."""
        return cost(expect_cell(arch), self.skeleton, image_size=self.shape.size)

    def build(self, arch: Cell, *, seed: int = 0) -> Network:
        """The published network, with running statistics in its norms."""
        return standalone(expect_cell(arch), self.skeleton, seed=seed)

    def supernet(
        self,
        *,
        seed: int = 0,
        affine: bool = True,
        track: bool = False,
        path_dropout: float = 0.0,
        dropout: float = 0.0,
    ) -> NASBench201Supernet:
        """Single-path shared weights; see `NASBench201Supernet` for the options."""
        return NASBench201Supernet(
            self.skeleton,
            seed=seed,
            affine=affine,
            track=track,
            path_dropout=path_dropout,
            dropout=dropout,
        )

    def describe(self) -> dict[str, Any]:
        """Name and sizes."""
        return {
            "name": self.name,
            "channels": self.skeleton.channels,
            "cells": self.skeleton.cells,
            "classes": self.skeleton.classes,
            "in_channels": self.skeleton.in_channels,
            "image_size": self.shape.size,
        }


def _with(arch: Cell, edge: int, operation: int) -> Cell:
    operations = list(arch.operations)
    operations[edge] = operation
    return Cell(tuple(operations))
