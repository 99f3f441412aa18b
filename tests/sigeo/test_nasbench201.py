"""NAS-Bench-201: codec, index, classes of equal functions, networks, costs, shared weights."""

from __future__ import annotations

import collections
import itertools
import math
import random

import pytest
import torch
import torch.nn.functional as F

from sigeo import InputError, spaces
from sigeo.spaces.nasbench201 import (
    EDGES,
    OPERATIONS,
    Cell,
    Skeleton,
    Zeros,
    canonical_string,
    classes,
    networks,
)
from sigeo.spaces.nasbench201.canonical import network_key, pruned, representative, zero_nodes
from sigeo.spaces.nasbench201.cell import (
    CONV_1X1,
    CONVOLUTIONS,
    NONE,
    POOL,
    SKIP,
    all_cells,
    index_of,
)
from sigeo.spaces.nasbench201.cost import cost
from sigeo.spaces.nasbench201.network import Network, average_pool, standalone
from sigeo.tables import read_table
from tests.conftest import shared_file

EXAMPLE = (
    "|nor_conv_3x3~0|+|nor_conv_3x3~0|avg_pool_3x3~1|+"
    "|skip_connect~0|nor_conv_3x3~1|skip_connect~2|"
)
SMALL = spaces.InputShape(channels=3, size=8, classes=10)


def space(**sizes):
    return spaces.get("nasbench201", SMALL, **{"channels": 4, "cells": 1, **sizes})


def test_strings_round_trip_over_the_whole_space():
    cells = all_cells()
    assert len(set(cells)) == 15_625
    assert all(Cell.parse(str(cell)) == cell for cell in cells)
    assert str(Cell.parse(EXAMPLE)) == EXAMPLE


def test_index_is_the_official_one():
    table = read_table(shared_file("data/nasbench201.csv.gz"))
    for arch, index in zip(table.archs, table.values["index"], strict=True):
        assert index_of(Cell.parse(arch)) == index
    assert [index_of(cell) for cell in all_cells()] == list(range(15_625))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected 3 nodes joined by '\\+', got 1"),
        ("|none~0|+|none~0|none~1|", "expected 3 nodes"),
        (EXAMPLE + "+|none~0|", "expected 3 nodes joined by '\\+', got 4"),
        (EXAMPLE.replace("|nor_conv_3x3~0|+", "nor_conv_3x3~0+", 1), "must be wrapped in"),
        (EXAMPLE.replace("avg_pool_3x3~1", "avg_pool_3x3~0"), "must read 'operation~1'"),
        (EXAMPLE.replace("avg_pool_3x3~1", "avg_pool_3x3"), "must read 'operation~1'"),
        (EXAMPLE.replace("|avg_pool_3x3~1", ""), "node 2 must have 2 inputs, got 1"),
        (EXAMPLE.replace("avg_pool", "max_pool"), "operation must be one of none"),
    ],
)
def test_malformed_strings_say_where(text, message):
    with pytest.raises(InputError, match=message):
        space().parse(text)


def test_a_cell_has_six_known_operations():
    for operations in ((0,) * 5, (0,) * 7, (0, 0, 0, 0, 0, 5)):
        with pytest.raises(ValueError, match="expected 6 operations from 0 to 4"):
            Cell(operations)


def test_number_of_classes():
    assert classes(Zeros.KEPT) == 12_751
    assert classes(Zeros.OFFICIAL) == 6_466
    assert classes(Zeros.DROPPED) == 5_390
    zero = canonical_string(Cell((NONE,) * 6), Zeros.DROPPED)
    assert sum(canonical_string(cell, Zeros.DROPPED) == zero for cell in all_cells()) == 341
    assert sum(not space().connected(cell) for cell in all_cells()) == 341


def test_official_classes_are_those_of_the_published_table():
    table = read_table(shared_file("data/nasbench201.csv.gz"))
    names = collections.defaultdict(set)
    for arch, number in zip(table.archs, table.values["iso_class"], strict=True):
        names[number].add(canonical_string(Cell.parse(arch), Zeros.OFFICIAL))
    assert all(len(strings) == 1 for strings in names.values())
    assert len({string for strings in names.values() for string in strings}) == len(names)


SHIFT = 0.317


def function_of(operation: int, which: int, x: float) -> float:
    """One operation on a number; convolutions number ``which`` differ, and shift zero."""
    if operation == SKIP:
        return x
    if operation == POOL:
        return math.expm1(0.5 * x) + 0.11 * x * x
    if x == 0:
        return SHIFT
    if operation == CONV_1X1:
        return math.sin(1.3 * x + which) + 0.7 * x * x + SHIFT
    return math.tanh(0.9 * x + which) + 0.31 * x * x * x + SHIFT


def nodes_of(cell: Cell, which: dict[int, int] | None = None) -> list[float]:
    """The nodes' values; ``which`` numbers the convolutions by edge, all 0 if not given."""
    nodes = [0.737]
    for target in (1, 2, 3):
        total = 0.0
        for edge, (source, to) in enumerate(EDGES):
            operation = cell.operations[edge]
            if to == target and operation != NONE:
                total += function_of(operation, (which or {}).get(edge, 0), nodes[source])
        nodes.append(total)
    return nodes


def convolutions_of(cell: Cell) -> list[tuple[int, float, int]]:
    """The convolutions that run: operation (0 if on zero, for the shift alone), input, edge."""
    live, nodes = pruned(cell).operations, nodes_of(pruned(cell))
    return sorted(
        (o if nodes[source] else 0, round(nodes[source], 9), edge)
        for edge, ((source, _), o) in enumerate(zip(EDGES, live, strict=True))
        if o in CONVOLUTIONS
    )


def test_networks_are_told_apart_by_output_and_convolutions():
    by_value = collections.defaultdict(set)
    by_key = collections.defaultdict(set)
    for cell in all_cells():
        live = tuple((o, value) for o, value, _ in convolutions_of(cell))
        value = round(nodes_of(cell)[3], 9), live
        by_value[value].add(network_key(cell))
        by_key[network_key(cell)].add(value)
    assert all(len(values) == 1 for values in by_key.values())
    assert all(len(keys) == 1 for keys in by_value.values())
    assert len(by_key) == networks() == 5_485


def renamings(cell: Cell):
    """Every numbering of the convolutions that tells those of one operation on one input apart.

    Yields:
        The numbers by edge.
    """
    kinds = collections.defaultdict(list)
    for operation, value, edge in convolutions_of(cell):
        kinds[operation, value].append(edge)
    choices = [itertools.permutations(range(len(edges))) for edges in kinds.values()]
    for chosen in itertools.product(*choices):
        numbers = {}
        for edges, order in zip(kinds.values(), chosen, strict=True):
            numbers |= dict(zip(edges, order, strict=True))
        yield numbers


def test_equal_networks_are_equal_whatever_their_convolutions_are():
    for cell in random.Random(0).sample(all_cells(), 3000):
        one = representative(cell)
        outputs = [
            {round(nodes_of(c, numbers)[3], 9) for numbers in renamings(c)}
            for c in (pruned(cell), pruned(one))
        ]
        assert outputs[0] == outputs[1], (str(cell), str(one))
        assert representative(one) == one


def test_a_convolution_read_twice_is_not_two_convolutions():
    twice = Cell.parse(
        "|nor_conv_3x3~0|+|none~0|skip_connect~1|+|none~0|skip_connect~1|skip_connect~2|"
    )
    two = Cell.parse("|skip_connect~0|+|none~0|none~1|+|nor_conv_3x3~0|nor_conv_3x3~1|none~2|")
    assert canonical_string(twice, Zeros.DROPPED) == canonical_string(two, Zeros.DROPPED)
    assert representative(twice) != representative(two)


def test_pruning_keeps_the_function_and_only_what_matters():
    for cell in all_cells():
        kept = pruned(cell)
        numbers = {edge: edge for edge in range(len(EDGES))}
        expected = nodes_of(cell, numbers)[3]
        assert nodes_of(kept, numbers)[3] == pytest.approx(expected, abs=1e-12)
        assert pruned(kept) == kept
        assert all(o in (NONE, p) for o, p in zip(kept.operations, cell.operations, strict=True))
    assert zero_nodes(Cell((NONE, NONE, 3, NONE, NONE, 3))) == {1, 2, 3}


@pytest.mark.parametrize(
    ("name", "labels", "size"), [("cifar10", 10, 32), ("cifar100", 100, 32), ("in16", 120, 16)]
)
def test_costs_equal_the_published_columns(name, labels, size):
    table = read_table(shared_file("data/nasbench201.csv.gz"))
    skeleton = Skeleton(classes=labels)
    flops, parameters = table.values[f"flops_{name}"], table.values[f"params_{name}"]
    for arch, f, p in zip(table.archs, flops, parameters, strict=True):
        counted = cost(Cell.parse(arch), skeleton, image_size=size)
        assert round(f * 1e6) == counted.flops and round(p * 1e6) == counted.parameters


@pytest.mark.parametrize("seed", range(12))
def test_modules_have_the_counted_parameters(seed):
    rng = random.Random(seed)
    one = spaces.get(
        "nasbench201",
        spaces.InputShape(rng.choice((1, 3)), 9, 7),
        channels=rng.randint(1, 5),
        cells=rng.randint(1, 2),
    )
    cell = one.sample(rng)
    network = one.build(cell)
    assert sum(p.numel() for p in network.parameters()) == one.cost(cell).parameters
    assert network.train()(torch.randn(2, one.shape.channels, 9, 9)).shape == (2, 7)


class PublishedCell(torch.nn.Module):
    """Every edge run, in the published order, zeros included."""

    def __init__(self, block):
        super().__init__()
        self.cell, self.edges = block.cell, block.edges

    def forward(self, x):
        nodes = [x]
        for target in (1, 2, 3):
            total = torch.zeros_like(x)
            for edge, ((source, to), operation) in enumerate(
                zip(EDGES, self.cell.operations, strict=True)
            ):
                if to != target:
                    continue
                value = nodes[source]
                if operation in CONVOLUTIONS:
                    total = total + self.edges[str(edge)](F.relu(value))
                elif operation == POOL:
                    total = total + F.avg_pool2d(value, 3, 1, 1, count_include_pad=False)
                else:
                    total = total + (value if operation == SKIP else value.mul(0.0))
            nodes.append(total)
        return nodes[3]


def published(network: Network) -> Network:
    """The same weights, run as published."""
    blocks = [PublishedCell(b) if hasattr(b, "edges") else b for b in network.blocks]
    return Network(network.stem, blocks, network.head)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_networks_compute_what_is_published_also_after_steps(memory_format):
    rng = random.Random(1)
    images, labels = torch.randn(8, 3, 8, 8, dtype=torch.float64), torch.arange(8)
    images = images.contiguous(memory_format=memory_format)
    cells = [Cell((NONE, NONE, 3, NONE, NONE, 3)), Cell((NONE, 2, 3, 1, 4, 0)), Cell((NONE,) * 6)]
    for cell in [*cells, *rng.sample(all_cells(), 12)]:
        ours = (
            standalone(cell, Skeleton(channels=4, cells=2))
            .double()
            .to(memory_format=memory_format)
            .train()
        )
        judge = published(standalone(cell, Skeleton(channels=4, cells=2)).double().train())
        for _ in range(3):
            outputs = []
            for network in (ours, judge):
                output = network(images)
                F.cross_entropy(output, labels).backward()
                with torch.no_grad():
                    for p in network.parameters():
                        p -= 0.5 * p.grad if p.grad is not None else 0
                        p.grad = None
                outputs.append(output)
            torch.testing.assert_close(*outputs, rtol=1e-9, atol=1e-10)


def test_cells_that_run_in_full_compute_what_is_published():
    images, rng = torch.randn(4, 3, 8, 8, dtype=torch.float64), random.Random(3)
    for cell in [Cell((NONE, 2, 3, 1, 4, 0)), Cell((NONE,) * 6), *rng.sample(all_cells(), 6)]:
        network = standalone(cell, Skeleton(channels=4, cells=1)).double().train()
        judge = published(network)(images)
        torch.testing.assert_close(network(images), judge, rtol=1e-9, atol=1e-10)
        for block in network.blocks:
            if hasattr(block, "abridged"):
                block.abridged = False
        torch.testing.assert_close(network(images), judge, rtol=1e-9, atol=1e-10)


def test_subnets_are_the_standalone_networks():
    one = space(cells=2)
    supernet = one.supernet(seed=5)
    rng = random.Random(2)
    images = torch.randn(8, 3, 8, 8)
    for cell in [Cell((NONE,) * 6), *rng.sample(all_cells(), 15)]:
        alone = one.build(cell, seed=5).train()(images)
        torch.testing.assert_close(supernet.subnet(cell)(images), alone, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(supernet(images, cell), alone, rtol=1e-4, atol=1e-5)
        whole = supernet.subnet(cell, whole=True)
        assert sum(p.numel() for p in whole.parameters()) == one.cost(cell).parameters


def test_weights_follow_from_seed_and_place_alone():
    one = space()
    names = dict(one.build(Cell((3, 3, 3, 3, 3, 3)), seed=1).named_parameters())
    for name, parameter in one.build(Cell((3, 0, 3, 1, 3, 3)), seed=1).named_parameters():
        assert torch.equal(parameter, names[name])
    kernels = dict(one.build(Cell((2, 2, 2, 2, 2, 2)), seed=1).named_parameters())
    first = "blocks.0.edges.0.conv.weight"
    assert names[first].shape != kernels[first].shape
    assert not torch.equal(
        names["head.linear.weight"],
        dict(one.build(Cell((3,) * 6), seed=2).named_parameters())["head.linear.weight"],
    )


@pytest.mark.parametrize(("channels", "size"), [(16, 8), (3, 5), (1, 4), (8, 1)])
def test_pooling_in_channels_last_is_average_pooling(channels, size):
    x = torch.randn(4, channels, size, size, dtype=torch.float64)
    expected = F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
    ours = x.contiguous(memory_format=torch.channels_last).requires_grad_()
    torch.testing.assert_close(average_pool(ours), expected)
    weight = torch.randn_like(expected)
    (got,) = torch.autograd.grad((average_pool(ours) * weight).sum(), ours)
    judge = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(
        (F.avg_pool2d(judge, 3, 1, 1, count_include_pad=False) * weight).sum(), judge
    )
    torch.testing.assert_close(got, grad)


def test_moves_through_the_space():
    one, rng = space(), random.Random(3)
    cell = one.sample(rng)
    around = list(one.neighbours(cell))
    assert len(set(around)) == 24
    assert all(
        sum(a != b for a, b in zip(n.operations, cell.operations, strict=True)) == 1 for n in around
    )
    assert {one.mutate(cell, rng) for _ in range(600)} == set(around)
    child = one.crossover(cell, around[0], rng)
    assert all(
        o in pair
        for o, pair in zip(
            child.operations, zip(cell.operations, around[0].operations, strict=True), strict=True
        )
    )
    drawn = spaces.distinct(one, 200, random.Random(0))
    assert len(set(drawn)) == 200 and drawn[:50] == spaces.distinct(one, 50, random.Random(0))
    assert len(set(spaces.distinct(one, 15_625, rng))) == 15_625
    counts = collections.Counter(one.sample(rng).operations[2] for _ in range(5000))
    assert len(counts) == len(OPERATIONS) and min(counts.values()) > 800


def test_bad_sizes_are_refused():
    with pytest.raises(InputError, match="space must be one of .*nasbench201.*, got 'darts'"):
        spaces.get("darts", SMALL)
    with pytest.raises(InputError, match="images must be at least 4 x 4, got 2"):
        spaces.get("nasbench201", spaces.InputShape(3, 2, 10))
    with pytest.raises(InputError, match="cells must be a whole number of at least 1, got 0"):
        space(cells=0)
    with pytest.raises(InputError, match="index must be a whole number from 0 to 15624, got 15625"):
        space().at(15_625)
