"""Cells of several subnets in one call: against their reference and autograd of plain torch."""

from __future__ import annotations

import itertools
import random

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from sigeo_ext import gather
from sigeo_ext.gather import IDENTITY, POOL, Edge, Norm, cell_reference, op
from sigeo_ext.testing import assert_close, poison_empty, threads
from tests.cases import needs_kernels

TOLERANCE = {torch.float32: 3e-5, torch.float64: 1e-11}
TYPES = pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
# (subnets, B, H, W, channels)
SIZES = pytest.mark.parametrize(
    "size", [(5, 2, 4, 5, 3), (1, 3, 8, 8, 16), (4, 2, 7, 3, 20), (2, 2, 1, 6, 4), (3, 4, 2, 1, 1)],
    ids=str,
)  # fmt: skip
NODES = 4


class Case:
    """Random cells: every operation, nodes that nothing leads to, a subnet without an edge."""

    def __init__(self, size, dtype=torch.float64, device="cpu", seed=0):
        generator = torch.Generator().manual_seed(seed)
        rng = random.Random(seed)
        subnets, *_, channels = size

        def randn(*shape):
            values = torch.randn(*shape, generator=generator, dtype=torch.float64)
            return values.to(device, dtype)

        rows: dict[tuple[int, int, int], int] = {}
        edges = []
        for subnet, target in itertools.product(range(subnets), range(1, NODES)):
            for source in range(target):
                choice = rng.choice(["none", IDENTITY, POOL, 1, 3])
                if choice == "none" or (subnet == 3 and subnets > 3):
                    continue
                if choice in (IDENTITY, POOL):
                    edges.append(Edge(subnet, source, target, choice, 0))
                else:
                    slot = (source, target, choice)
                    edges.append((subnet, source, target, slot, rows.setdefault(slot, 0)))
                    rows[slot] += 1
        slots = list(rows)
        self.edges = [
            Edge(*e[:3], slots.index(e[3]) if isinstance(e[3], tuple) else e[3], e[4])
            for e in edges
        ]
        self.x = randn(*size)
        self.weight = [randn(rows[s], channels, channels, s[2], s[2]) for s in slots]
        self.scale = [1 + 0.3 * randn(rows[s], channels) for s in slots]
        self.shift = [randn(rows[s], channels) for s in slots]

    def tensors(self):
        return [self.x, *self.weight, *self.scale, *self.shift]

    def flat(self):
        return [number for edge in self.edges for number in edge]

    def arguments(self):
        return self.x, self.weight, self.scale, self.shift, self.flat(), NODES, 1e-5

    def run(self):
        norms = [Norm(*pair) for pair in zip(self.scale, self.shift, strict=True)]
        return gather.cell(self.x, self.weight, norms, self.edges, nodes=NODES)

    def plain(self):
        """Operation by operation, as a network would be written."""
        results = []
        for subnet, start in enumerate(self.x):
            values = [start.movedim(-1, 1), *[torch.zeros_like(start.movedim(-1, 1))] * (NODES - 1)]
            for edge in (e for e in self.edges if e.subnet == subnet):
                source = values[edge.source]
                if edge.slot == POOL:
                    source = F.avg_pool2d(source, 3, 1, 1, count_include_pad=False)
                elif edge.convolves:
                    kernel = self.weight[edge.slot][edge.row]
                    source = F.conv2d(source.relu(), kernel, padding=kernel.shape[-1] // 2)
                    rows = (t[edge.slot][edge.row] for t in (self.scale, self.shift))
                    source = F.batch_norm(source, None, None, *rows, training=True)
                values[edge.target] = values[edge.target] + source
            results.append(values[-1].movedim(1, -1))
        return torch.stack(results)


@SIZES
@TYPES
@pytest.mark.parametrize("seed", range(3))
def test_a_cell_equals_its_operations(size, dtype, seed, device):
    case = Case(size, dtype, device, seed)
    leaves = [t.requires_grad_() for t in case.tensors()]
    got, expected = case.run(), case.plain()
    assert_close(got, expected, tolerance=TOLERANCE[dtype])
    d = torch.randn(got.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    d = d.to(device, dtype)
    found = torch.autograd.grad((got * d).sum(), leaves)
    judge = torch.autograd.grad((expected * d).sum(), leaves, allow_unused=True)
    for a, b in zip(found, judge, strict=True):
        b = torch.zeros_like(a) if b is None else b
        error = float((a - b).norm())
        assert error <= 100 * TOLERANCE[dtype] * max(1.0, float(b.norm()))


def flattened(values):
    return [t for v in values for t in ([v] if isinstance(v, Tensor) else v)]


@SIZES
@TYPES
def test_op_equals_reference(size, dtype, device):
    given = Case(size, dtype, device, seed=4).arguments()
    y, kept = op.gather_cell(*given)
    expected = cell_reference.cell(*given)
    for a, b in zip(flattened((y, kept)), flattened(expected), strict=True):
        assert a.shape == b.shape
        assert_close(a, b, tolerance=TOLERANCE[dtype])
    backward = (torch.ones_like(y), given[1], given[2], kept, given[4], NODES)
    got, judge = op.gather_cell_backward(*backward), cell_reference.cell_backward(*backward)
    for a, b in zip(flattened(got), flattened(judge), strict=True):
        assert float((a - b).norm()) <= 100 * TOLERANCE[dtype] * max(1.0, float(b.norm()))


def test_a_cell_without_edges_is_zero(device):
    x = torch.randn(2, 1, 3, 3, 4, device=device).requires_grad_()
    y = gather.cell(x, [], [], [], nodes=3)
    assert y.shape == x.shape and not y.any()
    (grad,) = torch.autograd.grad(y.sum(), x)
    assert not grad.any()


def test_no_subnets_or_no_samples(device):
    for size in ((0, 2, 3, 3, 4), (2, 0, 3, 3, 4)):
        x = torch.randn(size, device=device)
        edges = [Edge(s, 0, 1, IDENTITY, 0) for s in range(size[0])]
        assert gather.cell(x, [], [], edges, nodes=2).shape == size


def test_pooling_keeps_infinities_apart(device):
    x = torch.zeros(1, 1, 4, 4, 1, device=device)
    x[0, 0, 0, 0, 0] = float("inf")
    y = gather.cell(x, [], [], [Edge(0, 0, 1, POOL, 0)], nodes=2)[0, 0, ..., 0]
    expected = F.avg_pool2d(x[0, :, ..., 0], 3, 1, 1, count_include_pad=False)[0]
    assert torch.equal(y.isinf(), expected.isinf()) and not y.isnan().any()


def test_a_nan_in_a_cell_reaches_its_gradient(device):
    x = torch.ones(1, 2, 2, 2, 1, device=device)
    x[0, 0, 0, 0] = torch.nan
    x.requires_grad_()
    weight = torch.ones(1, 1, 1, 1, 1, device=device)
    norm = Norm(torch.ones(1, 1, device=device), torch.ones(1, 1, device=device))
    y = gather.cell(x, [weight], [norm], [Edge(0, 0, 1, 0, 0)], nodes=2)
    (grad,) = torch.autograd.grad(y.sum(), x)
    assert grad.isnan().all()


@needs_kernels
@pytest.mark.parametrize("count", [1, 2])
def test_the_same_bits_again(count):
    case = Case((4, 2, 9, 9, 8), torch.float32)
    with threads(count):
        first = flattened(op.gather_cell(*case.arguments()))
        with poison_empty():
            again = flattened(op.gather_cell(*case.arguments()))
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_shared_input_and_weights_and_strided_tensors(device):
    case = Case((3, 2, 5, 5, 4), device=device, seed=2)
    full = op.gather_cell(*case.arguments())[0]
    case.x = torch.stack([case.x, case.x], -1)[..., 0]
    case.scale = [torch.stack([t, t], -1)[..., 0] for t in case.scale]
    assert torch.equal(op.gather_cell(*case.arguments())[0], full)
    one = Case((1, 2, 5, 5, 4), device=device, seed=3)
    edges = [e._replace(subnet=s, row=s) for s in range(3) for e in one.edges]
    expanded = [
        [t.expand(3, *t.shape[1:]) for t in ts] for ts in (one.weight, one.scale, one.shift)
    ]
    norms = [Norm(*pair) for pair in zip(*expanded[1:], strict=True)]
    y = gather.cell(one.x.expand(3, *one.x.shape[1:]), expanded[0], norms, edges, nodes=NODES)
    for subnet in range(3):
        assert_close(y[subnet], one.run()[0])


@TYPES
def test_opcheck(dtype, device):
    case = Case((3, 2, 3, 4, 2), dtype, device, seed=1)
    for tensor in case.tensors():
        tensor.requires_grad_()
    torch.library.opcheck(op.gather_cell, case.arguments())
    still = Case((3, 2, 3, 4, 2), dtype, device, seed=1).arguments()
    y, kept = op.gather_cell(*still)
    backward = (y, still[1], still[2], kept, still[4], NODES)
    torch.library.opcheck(op.gather_cell_backward, backward)


def test_gradients_equal_finite_differences(device):
    case = Case((2, 2, 3, 3, 2), device=device, seed=1)
    slots = len(case.weight)

    def call(x, *rest):
        case.x, case.weight = x, rest[:slots]
        case.scale, case.shift = rest[slots : 2 * slots], rest[2 * slots :]
        return case.run()

    leaves = [t.detach().requires_grad_() for t in case.tensors()]
    assert torch.autograd.gradcheck(call, leaves)


def test_flops_are_those_of_the_convolutions(device):
    case = Case((3, 2, 4, 4, 3), device=device)
    convolutions = [case.weight[e.slot].shape[-1] ** 2 for e in case.edges if e.convolves]
    with FlopCounterMode(display=False) as counter:
        case.x.requires_grad_()
        case.run().sum().backward()
    counts = {str(k): v for k, v in counter.get_flop_counts()["Global"].items()}
    forward = sum(2 * 2 * 16 * 9 * taps for taps in convolutions)
    assert counts["sigeo_ext.gather_cell"] == forward
    assert counts["sigeo_ext.gather_cell_backward"] == 2 * forward


X = torch.randn(2, 1, 3, 3, 4)
BACKWARDS = (1, 0, 1, -1, 0, -1, -1, 0, 0, 1, -1, 0, -1, -1)
TWICE = (0, 0, 1, 0, 0, -1, -1, 1, 0, 1, 0, 0, -1, -1)
WEIGHT, ROWS = torch.randn(2, 4, 4, 3, 3), torch.randn(2, 4)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((X[0], [], [], [], [], 2), "[subnets, B, H, W, channels], got Float [1, 3, 3, 4]"),
        ((X, [], [], [], [0, 0, 1], 2), "edges must hold 7 numbers an edge, got 3"),
        ((X, [], [], [], [], 1), "nodes must be at least 2, got 1"),
        ((X, [], [], [], [0, 1, 1, -1, 0, -1, -1], 2), "edges[0] must be (subnet, source, target"),
        ((X, [], [], [], [0, 0, 1, 0, 0, -1, -1], 2), "of 2 subnets, 2 nodes and 0 slots"),
        ((X, [WEIGHT], [ROWS], [ROWS], [0, 0, 1, 0, 2, -1, -1], 2), "edges[0] must be"),
        ((X, [], [], [], [*BACKWARDS], 2), "sorted by subnet and target"),
        ((X, [WEIGHT], [ROWS], [ROWS], [*TWICE], 2), "each slot's row once"),
        ((X, [WEIGHT], [], [ROWS], [], 2), "scale and shift must hold one tensor a slot, 1, got 0"),
        ((X, [WEIGHT[..., :2]], [ROWS], [ROWS], [], 2), "got Float [2, 4, 4, 3, 2]"),
        (
            (X, [WEIGHT.double()], [ROWS], [ROWS], [], 2),
            "weight[0] must be Float [rows, 4, 4, k, k]",
        ),
        (
            (X, [WEIGHT], [ROWS[:1]], [ROWS], [], 2),
            "scale[0] must be Float [2, 4] like x, got Float [1",
        ),
        (
            (X, [WEIGHT], [ROWS], [ROWS.double()], [], 2),
            "shift[0] must be Float [2, 4] like x, got",
        ),
    ],
)
def test_a_wrong_argument_is_named(arguments, text):
    with pytest.raises(RuntimeError) as caught:
        op.gather_cell(*arguments, 1e-5)
    assert text in str(caught.value)


def test_a_negative_eps_is_refused():
    with pytest.raises(RuntimeError, match="^gather.cell: eps must be at least 0, got -1$"):
        gather.cell(X, [], [], [], nodes=2, eps=-1)


def test_equal_values_are_computed_once(device):
    """Three subnets that share a convolution and a node; the third goes another way behind it."""
    x = torch.randn(1, 2, 5, 5, 4, dtype=torch.float64, device=device).expand(3, 2, 5, 5, 4)
    weight = [torch.randn(1, 4, 4, 3, 3, dtype=torch.float64, device=device).expand(3, 4, 4, 3, 3)]
    weight.append(torch.randn(2, 4, 4, 1, 1, dtype=torch.float64, device=device))
    norms = [Norm(torch.ones(3, 4, dtype=torch.float64), torch.zeros(3, 4, dtype=torch.float64))]
    norms.append(Norm(*torch.rand(2, 2, 4, dtype=torch.float64)))
    norms = [Norm(*(t.to(device) for t in norm)) for norm in norms]
    shared = [
        *(Edge(k, 0, 1, 0, k, given=0, gives=1) for k in range(3)),
        *(Edge(k, 1, 2, 1, k, given=2) for k in range(2)),
        Edge(2, 1, 2, POOL, 0, given=2),
    ]
    shared.sort(key=lambda e: (e.subnet, e.target))
    alone = [edge._replace(given=-1, gives=-1) for edge in shared]
    _, images, rows = cell_reference.kept_places(shared)
    assert (images, rows) == (1 + 1 + 1 + 2, 1 + 2)
    assert cell_reference.kept_places(alone)[1:] == (3 + 3 + 2 + 2, 3 + 2)
    leaves = [t.detach().requires_grad_() for t in (weight[0], weight[1], *norms[0], *norms[1])]
    results = []
    for edges in (shared, alone):
        made = [Norm(*leaves[2:4]), Norm(*leaves[4:])]
        y = gather.cell(x, leaves[:2], made, edges, nodes=3)
        d = torch.arange(y.numel(), dtype=torch.float64, device=device).view(y.shape).sin()
        results.append([y, *torch.autograd.grad((y * d).sum(), leaves)])
    for a, b in zip(*results, strict=True):
        assert_close(a, b, tolerance=1e-12)


def test_a_second_derivative_is_refused(device):
    case = Case((2, 2, 3, 3, 2), device=device)
    case.x.requires_grad_()
    (grad,) = torch.autograd.grad(case.run().square().sum(), case.x, create_graph=True)
    with pytest.raises(RuntimeError, match="cannot be differentiated again"):
        grad.sum().backward()


@needs_kernels
def test_other_tensors_than_those_kept_are_refused():
    case = Case((2, 1, 3, 3, 2))
    y, kept = op.gather_cell(*case.arguments())
    for wrong in (kept[1:], [*kept[1:], kept[0]], [t.float() for t in kept]):
        with pytest.raises(RuntimeError, match="kept must be what gather_cell gave"):
            op.gather_cell_backward(y, case.weight, case.scale, wrong, case.flat(), NODES)
