"""The moments ops as citizens of torch: opcheck, compile, autograd, vmap, FLOP counts."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from sigeo_ext import implementations, moments
from sigeo_ext.moments import op
from sigeo_ext.testing import assert_close
from tests.cases import tensors

LAYERS = [(3, 4), (), (5,), (0,)]
OPS = [name for name in implementations() if name.startswith("moments_")]


def arguments(name: str, device: str, dtype: torch.dtype = torch.float32):
    """Sample arguments of one op."""
    lists = [tensors(LAYERS, dtype, seed=i, device=device) for i in range(6)]
    holed = [lists[3][0], None, *lists[3][2:]]
    rows = [*lists[0], *holed, *lists[2]]
    lists[2] = [t.abs() for t in lists[2]]
    return {
        "moments_update": (*lists[:3], holed, 3),
        "moments_update_": (*lists[:3], holed, 1),
        "moments_fold_rows_": tuple(lists[:3]),
        "moments_summary": (*lists[:3], holed, lists[4], 3, 1),
        "moments_rows_summary": (rows, lists[4], 3, 0),
        "moments_dot": (lists[0], lists[1]),
        "moments_row_dots": tuple(tensors([(6, 3)] * 2, dtype, device=device)),
    }[name]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", OPS)
def test_opcheck(name, dtype, device):
    torch.library.opcheck(
        getattr(torch.ops.sigeo_ext, name).default, arguments(name, device, dtype)
    )


@pytest.mark.parametrize("name", ["moments_update", "moments_dot", "moments_row_dots"])
def test_opcheck_with_gradients(name, device):
    given = [
        list(values) if isinstance(values, list) else values
        for values in arguments(name, device, torch.float64)
    ]
    if name == "moments_update":
        given[3] = tensors(LAYERS, torch.float64, seed=3, device=device)
    for values in given:
        for value in values if isinstance(values, list) else [values]:
            if isinstance(value, torch.Tensor):
                value.requires_grad_()
    torch.library.opcheck(getattr(torch.ops.sigeo_ext, name).default, given)


def test_a_gradient_through_a_list_with_holes_is_refused(device):
    state = [tensors(LAYERS, seed=i, device=device) for i in range(3)]
    grads = [tensors(LAYERS, device=device)[0].requires_grad_(), None, None, None]
    assert not moments.update(*state, grads, count=2)[1][0].requires_grad
    state[1][0].requires_grad_()
    with pytest.raises(RuntimeError, match="grads that require gradients must all be there"):
        moments.update(*state, grads, count=2)


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_update_gradients_equal_finite_differences(count, device):
    lists = [tensors([(4,), (2, 3)], torch.float64, seed=i, device=device) for i in range(4)]
    flat = [t.requires_grad_() for values in lists for t in values]

    def call(*flat):
        results = moments.update(flat[0:2], flat[2:4], flat[4:6], flat[6:8], count=count)
        return tuple(t for values in results for t in values)

    assert torch.autograd.gradcheck(call, flat)


def test_a_state_that_means_nothing_does_not_reach_the_gradient(device):
    state = [[torch.full((3,), torch.nan, device=device)] for _ in range(3)]
    grad = torch.ones(3, device=device, requires_grad=True)
    total = sum(values[0].sum() for values in moments.update(*state, [grad], count=0))
    (got,) = torch.autograd.grad(total, grad)
    assert torch.equal(got, torch.full_like(got, 2.0))


def test_what_is_written_in_place_is_not_used_by_a_later_backward(device):
    weight = torch.ones(3, device=device, requires_grad=True)
    state = [[torch.ones(3, device=device)] for _ in range(3)]
    loss = moments.dot(state[1], [weight]).sum()
    version = state[1][0]._version
    moments.update_(*state, [torch.ones(3, device=device)], count=2)
    assert state[1][0]._version > version
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_results_are_not_tied_to_the_graph_of_the_gradients(device):
    grads = [(torch.ones(3, device=device, requires_grad=True) * 2) for _ in range(4)]
    assert not moments.rows_summary([[g] for g in grads]).ratio.requires_grad
    state = [[torch.ones(3, device=device)] for _ in range(3)]
    moments.update_(*state, [grads[0]], count=3)
    assert not any(values[0].requires_grad for values in state)
    assert not moments.summary(*state, grads=[grads[1]], count=4).ratio.requires_grad


def test_dot_gradients_equal_finite_differences(device):
    flat = [
        t.requires_grad_()
        for i in (0, 1)
        for t in tensors([(4,), (2, 3)], torch.float64, seed=i, device=device)
    ]
    assert torch.autograd.gradcheck(lambda *f: moments.dot(f[:2], f[2:]), flat)


def test_row_dots_gradients_equal_finite_differences(device):
    a, b = (t.requires_grad_() for t in tensors([(3, 2, 2)] * 2, torch.float64, device=device))
    assert torch.autograd.gradcheck(moments.row_dots, (a, b))
    assert torch.autograd.gradgradcheck(moments.row_dots, (a, b))


@pytest.mark.parametrize("dims", [(0, 0), (1, None), (None, 2)], ids=str)
def test_row_dots_under_vmap_equals_a_loop(dims, device):
    pair = tensors([(3, 3, 3)] * 2, device=device)
    whole = [t[0] if d is None else t for t, d in zip(pair, dims, strict=True)]
    batched = torch.vmap(moments.row_dots, dims)(*whole)
    for index, row in enumerate(batched):
        parts = [t if d is None else t.select(d, index) for t, d in zip(whole, dims, strict=True)]
        assert_close(row, moments.row_dots(*parts), tolerance=1e-12)
    nothing = torch.empty(0, 3, 4, device=device)
    assert torch.vmap(moments.row_dots)(nothing, nothing).shape == (0, 3)


def test_row_dots_gives_only_the_gradient_that_is_needed(device):
    a, b = tensors([(3, 4)] * 2, device=device)
    a.requires_grad_()
    moments.row_dots(a, b).sum().backward()
    assert_close(a.grad, b)
    assert b.grad is None


def test_row_dots_of_other_shapes_are_refused_before_they_are_run():
    with FakeTensorMode(), pytest.raises(RuntimeError, match="b must have the shape of a"):
        moments.row_dots(torch.empty(3, 4), torch.empty(5, 4))


def test_summaries_do_not_follow_weights(device):
    weights = [t.requires_grad_() for t in tensors(LAYERS, device=device)]
    rows = [tensors(LAYERS, seed=i, device=device) for i in range(2)]
    assert not moments.rows_summary(rows, weights=weights).inner.requires_grad


def test_update_under_vmap_equals_a_loop(device):
    members = 3
    lists = [tensors([(members, 4), (members, 2, 3)], seed=i, device=device) for i in range(4)]

    def one(abs_sum, mean, m2, grads):
        return moments.update(abs_sum, mean, m2, grads, count=2)

    batched = torch.vmap(one)(*lists)
    shared_mean = [t[0] for t in lists[1]]
    mixed = torch.vmap(one, in_dims=(0, None, 0, 0))(lists[0], shared_mean, lists[2], lists[3])
    for m in range(members):
        alone = one(*([t[m] for t in values] for values in lists))
        other = one(*([t[m] for t in v] if i != 1 else shared_mean for i, v in enumerate(lists)))
        for k in range(3):
            assert_close([t[m] for t in batched[k]], alone[k])
            assert_close([t[m] for t in mixed[k]], other[k])


def test_summaries_and_dot_under_vmap_equal_a_loop(device):
    members = 3
    lists = [tensors([(members, 4), (members, 2, 3)], seed=i, device=device) for i in range(5)]

    def summaries(a, b, c, g, w):
        rows = op.moments_rows_summary([*a, *b, *c], w, 3, 0)
        return rows, op.moments_summary(a, b, [x.abs() for x in c], g, w, 4, 1), moments.dot(a, b)

    batched = torch.vmap(summaries)(*lists)
    for m in range(members):
        alone = summaries(*([t[m] for t in values] for values in lists))
        for got, expected in zip(batched, alone, strict=True):
            assert_close(got[m], expected)


def test_update_under_vmap_takes_any_batch_dimension(device):
    lists = [tensors([(3, 4)], seed=i, device=device) for i in range(4)]
    moved = [lists[0], [t.t().contiguous() for t in lists[1]], lists[2], lists[3]]

    def one(a, b, c, g):
        return moments.update(a, b, c, g, count=2)

    expected = torch.vmap(one)(*lists)
    got = torch.vmap(one, in_dims=(0, 1, 0, 0))(*moved)
    for values, judge in zip(got, expected, strict=True):
        assert_close(values, judge)


@pytest.mark.slow
def test_fullgraph_compile(device):
    def run(state, grads, weights, count):
        moments.update_(*state, grads, count=count)
        pending = moments.summary(*state, count=count + 1, grads=grads, weights=weights)
        rows = moments.rows_summary([*state, grads], weights=weights, ddof=1)
        new = moments.update(*state, grads, count=count + 1)
        return pending.ratio, rows.inner, new, moments.dot(grads, weights)

    compiled = torch.compile(run, fullgraph=True)
    for count in (2, 3, 4):
        lists = [tensors(LAYERS, seed=i, device=device) for i in range(5)]
        copies = [[t.clone() for t in values] for values in lists]
        eager = run(lists[:3], lists[3], lists[4], count)
        traced = compiled(copies[:3], copies[3], copies[4], count)
        for values, expected in zip(copies, lists, strict=True):
            assert_close(values, expected)
        for got, expected in zip(
            torch.utils._pytree.tree_leaves(traced),
            torch.utils._pytree.tree_leaves(eager),
            strict=True,
        ):
            assert_close(got, expected)


@pytest.mark.slow
def test_fullgraph_compile_of_a_backward(device):
    def loss(a, b):
        new = moments.update(a, a, a, b, count=1)
        return moments.dot(new[1], b).sum()

    a, b = (tensors([(6,), (2, 3)], torch.float64, seed=i, device=device) for i in range(2))
    leaves = [t.requires_grad_() for t in (*a, *b)]
    expected = torch.autograd.grad(loss(a, b), leaves)
    got = torch.autograd.grad(torch.compile(loss, fullgraph=True)(a, b), leaves)
    assert_close(got, expected)


@pytest.mark.parametrize("name", OPS)
def test_flops_are_counted(name, device):
    with FlopCounterMode(display=False) as counter:
        getattr(torch.ops.sigeo_ext, name)(*arguments(name, device))
    coordinates = 12 + 1 + 5
    assert 2 * coordinates <= counter.get_total_flops() <= 60 * coordinates
