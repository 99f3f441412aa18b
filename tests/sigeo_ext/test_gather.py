"""Blocks sent and added up: against plain torch and its autograd."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from sigeo_ext import gather
from sigeo_ext.gather import Norm, Term
from sigeo_ext.testing import assert_close
from tests.sigeo_ext.gather_blocks import SHAPES, TOLERANCE, leaves_of, lists, places, some_terms
from tests.slices import WIDE, randn


def dispatched(x, rectified, plain):
    return [x[i].relu() for i in rectified] + [x[i] for i in plain]


@SHAPES
@WIDE
def test_dispatch_equals_indexing(shape, dtype, device):
    x = randn(5, *shape, dtype=dtype, device=device).requires_grad_()
    rectified, plain = lists(device)
    first, second = gather.dispatch(x, rectified, plain)
    got = [*first, *second]
    expected = dispatched(x, rectified, plain)
    assert len(got) == len(expected) == 4
    for a, b in zip(got, expected, strict=True):
        assert torch.equal(a, b)
    weights = [randn(*b.shape, dtype=dtype, seed=i, device=device) for i, b in enumerate(expected)]
    total = [sum((a * w).sum() for a, w in zip(o, weights, strict=True)) for o in (got, expected)]
    assert_close(*(torch.autograd.grad(t, x)[0] for t in total), tolerance=TOLERANCE[dtype])


def test_dispatch_of_unused_copies_has_a_gradient_of_zero(device):
    x = randn(5, 3, 2, device=device).requires_grad_()
    rectified, plain = lists(device)
    _, (copy, _) = gather.dispatch(x, rectified, plain)
    (grad,) = torch.autograd.grad(copy.sum(), x)
    assert torch.equal(grad, torch.ones_like(x))


def test_dispatch_keeps_a_nan(device):
    x = torch.tensor([[[float("nan"), -1.0, 2.0]]], device=device)
    ((copy,), _) = gather.dispatch(x, [places(0, device=device)])
    assert copy[0, 0].isnan().tolist() == [True, False, False] and copy[0, 0, 1] == 0


def test_gradients_go_through_a_relu_as_in_torch(device):
    values = [torch.nan, -1.0, 2.0, 0.0, torch.inf]
    x = torch.tensor([[values]], device=device, requires_grad=True)
    ((copy,), _) = gather.dispatch(x, [places(0, device=device)])
    for slope in (1.0, torch.inf):
        got, expected = (
            torch.autograd.grad(y, x, torch.full_like(y, slope), retain_graph=True)[0]
            for y in (copy, x.relu())
        )
        assert torch.equal(got, expected) and got.flatten().tolist() == [slope, 0, slope, 0, slope]


def batch_normed(x: Tensor, norm: Norm, eps: float = 1e-5) -> Tensor:
    """Each block by torch's batch norm, positions as samples."""
    blocks = [
        F.batch_norm(b, None, None, w, s, training=True, eps=eps)
        for b, w, s in zip(x, *norm, strict=True)
    ]
    return torch.stack(blocks) if blocks else x


def sum_of(terms, blocks):
    like = terms[0].x
    total = like.new_zeros(blocks, *like.shape[1:])
    for term in terms:
        value = term.x if term.norm is None else batch_normed(term.x, term.norm)
        total = total.index_add(0, term.target, value)
    return total


@SHAPES
@WIDE
def test_combine_equals_batch_norm_and_sums(shape, dtype, device):
    if shape[0] == 1:
        pytest.skip("torch's batch norm refuses one value a channel")
    terms = some_terms(shape, dtype, device)
    got, expected = gather.combine(terms, 6), sum_of(terms, 6)
    assert not got[5].any()
    assert_close(got, expected, tolerance=TOLERANCE[dtype])
    weight = randn(*got.shape, dtype=dtype, seed=77, device=device)
    leaves = leaves_of(terms)
    found = torch.autograd.grad((got * weight).sum(), leaves)
    judge = torch.autograd.grad((expected * weight).sum(), leaves, allow_unused=True)
    for a, b in zip(found, judge, strict=True):
        if b is None:  # of the term without blocks
            assert a.numel() == 0
            continue
        assert_close(a, b, tolerance=20 * TOLERANCE[dtype])


def test_combined_gives_the_statistics_of_the_normed_terms(device):
    terms = some_terms((4, 3), torch.float64, device)
    y, means, rstds = gather.combined(terms, 6)
    assert torch.equal(y, gather.combine(terms, 6))
    normed = [term.x for term in terms if term.norm is not None]
    for x, mean, rstd in zip(normed, means, rstds, strict=True):
        assert not mean.requires_grad and not rstd.requires_grad
        assert_close(mean, x.mean(1), tolerance=1e-12)
        assert_close(rstd, (x.var(1, correction=0) + 1e-5).rsqrt(), tolerance=1e-12)


def test_combine_of_a_large_mean_keeps_the_variance(device):
    x = (1e4 + randn(2, 4096, 3, device=device)).float()
    norm = Norm(torch.ones(2, 3, device=device), torch.zeros(2, 3, device=device))
    got = gather.combine([Term(x, places(0, 1, device=device), norm)], 2)
    assert_close(got, batch_normed(x.double(), Norm(*(v.double() for v in norm))), tolerance=1e-3)


def test_one_value_a_channel_is_normalised_to_the_shift(device):
    x, norm = randn(2, 1, 3, device=device), Norm(*randn(2, 2, 3, seed=1, device=device))
    got = gather.combine([Term(x, places(1, 0, device=device), norm)], 2)
    assert_close(got[[1, 0], 0], norm.bias)


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize(
    ("dims", "options"),
    [
        (2, {"padding": 1}),
        (2, {"stride": 2, "padding": 1, "dilation": 2}),
        (2, {"groups": 2}),
        (1, {"padding": 2}),
        (3, {}),
    ],
)
@WIDE
def test_convolutions_equal_a_loop(dims, options, own, dtype, device):
    size = [7, 6, 5][:dims]
    x = randn(3, 2, *size, 4, dtype=dtype, device=device).requires_grad_()
    shape = (6, 4 // options.get("groups", 1), *[3] * dims)
    weight = randn(3 if own else 1, *shape, dtype=dtype, seed=1, device=device)
    weight = weight.expand(3, *shape).detach().requires_grad_()
    function = (F.conv1d, F.conv2d, F.conv3d)[dims - 1]

    def plain():
        blocks = [
            function(b.movedim(-1, 1), w, **options).movedim(1, -1)
            for b, w in zip(x, weight, strict=True)
        ]
        return torch.stack(blocks)

    got, expected = gather.convolution(x, weight, **options), plain()
    assert_close(got, expected, tolerance=TOLERANCE[dtype])
    d = randn(*got.shape, dtype=dtype, seed=2, device=device)
    for a, b in zip(
        torch.autograd.grad((got * d).sum(), [x, weight]),
        torch.autograd.grad((expected * d).sum(), [x, weight]),
        strict=True,
    ):
        assert_close(a, b, tolerance=TOLERANCE[dtype])


def test_linear_equals_a_loop(device):
    x, weight, bias = (randn(*s, device=device) for s in ((3, 2, 4), (3, 5, 4), (3, 5)))
    got = gather.linear(x, weight, bias)
    for k in range(3):
        assert_close(got[k], F.linear(x[k], weight[k], bias[k]))
        assert_close(gather.linear(x, weight)[k], F.linear(x[k], weight[k]))


def test_one_block_for_all_is_computed_once(device):
    """From an input that all blocks share to a sum over several terms, with full gradients."""
    x = randn(1, 2, 5, 5, 3, device=device).expand(3, 2, 5, 5, 3)
    weight = randn(1, 4, 3, 3, 3, seed=1, device=device).expand(3, 4, 3, 3, 3)
    weight = weight.detach().requires_grad_()
    norm = Norm(*(v.expand(3, 4).detach().requires_grad_() for v in randn(2, 1, 4, device=device)))
    everyone = places(0, 1, 2, device=device)

    def run(x, weight, norm):
        y = gather.convolution(x, weight, padding=1)
        z = gather.combine([Term(y.flatten(1, -2), everyone, norm)], 3)
        (first,), (second,) = gather.dispatch(z, [everyone[:2]], [everyone[1:]])
        return y, z, first, second

    shared = run(x, weight, norm)
    full = run(x.contiguous(), weight.contiguous(), Norm(*(v.contiguous() for v in norm)))
    d = [randn(*t.shape, seed=i, device=device) for i, t in enumerate(full)]
    for a, b in zip(shared, full, strict=True):
        assert a.stride(0) == 0 and b.stride(0) != 0
        assert_close(a, b)
    leaves = [weight, *norm]
    for a, b in zip(
        torch.autograd.grad(sum((t * w).sum() for t, w in zip(shared, d, strict=True)), leaves),
        torch.autograd.grad(sum((t * w).sum() for t, w in zip(full, d, strict=True)), leaves),
        strict=True,
    ):
        assert a.shape == b.shape
        assert_close(a, b)


def test_one_block_with_shifts_of_their_own(device):
    x = randn(1, 10, 4, device=device).expand(3, 10, 4)
    weight, bias = randn(1, 4, device=device).expand(3, 4), randn(3, 4, seed=1, device=device)
    terms = [Term(x, places(2, 0, 1, device=device), Norm(weight, bias))]
    assert_close(gather.combine(terms, 3), sum_of(terms, 3))
    shared = [terms[0]._replace(norm=Norm(weight, bias[:1].expand(3, 4)))]
    assert_close(gather.combine(shared, 3), sum_of(shared, 3))


@pytest.mark.parametrize("normed", [False, True])
def test_a_second_derivative_is_refused(normed, device):
    x = randn(2, 5, 3, device=device).requires_grad_()
    everyone = places(0, 1, device=device)
    if normed:
        y = gather.combine([Term(x, everyone, Norm(*randn(2, 2, 3, device=device)))], 2)
    else:
        y = gather.dispatch(x, [everyone])[0][0]
    (grad,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="cannot be differentiated again"):
        grad.sum().backward()


def test_flops_of_convolutions_are_counted(device):
    x, weight = randn(2, 3, 5, 5, 4, device=device), randn(2, 6, 4, 3, 3, device=device)
    with FlopCounterMode(display=False) as counter:
        gather.convolution(x, weight.requires_grad_()).sum().backward()
    forward = 2 * (2 * 3 * 3 * 3 * 6) * (4 * 3 * 3)
    # The weight's gradient alone: x asks for none.
    assert counter.get_total_flops() == 2 * forward


X = randn(3, 2, 4)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: gather.dispatch(X[0], [places(0)]), "x must be float32 or float64 [blocks, pos"),
        (lambda: gather.dispatch(X, [places(3)]), "must be blocks below 3, got 3"),
        (lambda: gather.dispatch(X, [places(0).int()]), "index[0] must be int64 [1], got Int"),
        (lambda: gather.combine([], 3), "expected at least one term, got none"),
        (lambda: gather.combine([Term(X, places(0))], 3), "must be int64 [3]"),
        (lambda: gather.combine([Term(X, places(0, 1, 5))], 3), "must be blocks below 3, got 5"),
        (
            lambda: gather.combine([Term(X, places(0, 1, 2)), Term(X[:, :1], places(0, 1, 2))], 3),
            "plain[1] must be blocks like the other terms', Double [3, 2, 4], got Double [3, 1, 4]",
        ),
        (
            lambda: gather.combine([Term(X, places(0, 1, 2), Norm(X[:, 0, :3], X[:, 0]))], 3),
            "weight must be Double [3, 4] like its term, got Double [3, 3]",
        ),
        (
            lambda: gather.combine([Term(X, places(0, 1, 2)), Term(X.float(), places(0))], 3),
            "plain[1] must be blocks like the other terms', Double [3, 2, 4], got Float [3, 2, 4]",
        ),
        (
            lambda: gather.combine([Term(X, places(0, 1, 2))], 3, eps=-1.0),
            "gather.combine: eps must be at least 0, got -1.0",
        ),
        (
            lambda: gather.convolution(X[:, :, None], randn(2, 5, 4, 3)),
            "weight must be [blocks, outputs, inputs, *kernel]",
        ),
        (
            lambda: gather.convolution(X, randn(3, 5, 4)),
            "weight must be [blocks, outputs, inputs, *kernel]",
        ),
        (
            lambda: gather.convolution(X[:, :, None], randn(3, 5, 3, 1)),
            "gather.convolution: weight must have the inputs, and outputs, of whole groups of x's",
        ),
        (
            lambda: gather.convolution(X[:, :, None], randn(3, 5, 2, 1), groups=2),
            "got [3, 5, 2, 1] for [3, 2, 1, 4] and groups 2",
        ),
        (
            lambda: gather.convolution(X[:, :, None], randn(3, 5, 4, 4), padding=1),
            "gather.convolution: weight must have a kernel that fits into x with its padding",
        ),
        (
            lambda: gather.convolution(X[:, :, None], randn(3, 5, 4, 1), stride=0),
            "gather.convolution: stride must be at least 1, got 0",
        ),
        (
            lambda: gather.convolution(X[:, :, None], randn(3, 5, 4, 1).float()),
            "gather.convolution: weight must have the dtype of x, Double, got Float",
        ),
        (
            lambda: gather.linear(X, randn(3, 5, 3)),
            "gather.linear: weight must be [3, outputs, 4] like x, got [3, 5, 3]",
        ),
        (
            lambda: gather.linear(X[0], randn(3, 5, 4)),
            "gather.linear: x must be [blocks, B, inputs], got [2, 4]",
        ),
        (
            lambda: gather.linear(X, randn(3, 5, 4), randn(5)),
            "gather.linear: bias must be [3, 5] like the weight, got [5]",
        ),
        (
            lambda: gather.linear(X, randn(3, 5, 4).float()),
            "gather.linear: weight must have the dtype of x, Double, got Float",
        ),
    ],
)
def test_a_wrong_argument_is_named(call, text):
    with pytest.raises(RuntimeError) as caught:
        call()
    assert text in str(caught.value)


def test_autocast_brings_a_linear_layer_to_its_own_dtype(device):
    x, weight = X.to(device).bfloat16(), randn(3, 5, 4, device=device).float()
    with torch.autocast(device, torch.bfloat16):
        assert gather.linear(x, weight).dtype == torch.bfloat16
