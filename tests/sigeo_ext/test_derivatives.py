"""Every op with a gradient in every mode of differentiation: right, or refused."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils._pytree import tree_flatten, tree_unflatten

from sigeo_ext import _op, gather
from sigeo_ext.testing import assert_close
from tests import grouped
from tests.cases import tensors
from tests.sigeo_ext import test_gather_op, test_moments_op, test_saliency_op, test_slices_op
from tests.sigeo_ext.test_gather_cell import Case

OPS = [name for name in _op.names() if _op.has_kernel(name, "Autograd")]
# Their gradients are ops that have none.
ONCE = {"gather_dispatch", "gather_combine", "gather_cell"}
REFUSED = "gather: its gradients cannot be differentiated again"


def arguments(name: str) -> tuple[object, ...]:
    """Of one op, in float64."""
    if name.startswith("moments"):
        given = list(test_moments_op.arguments(name, "cpu", torch.float64))
        if name == "moments_update":
            given[3] = tensors(test_moments_op.LAYERS, torch.float64, seed=3)
        return tuple(given)
    if name == "saliency_sums":
        # log_abs_product of a layer without values is -inf.
        return *test_saliency_op.arguments("cpu", layers=[(3, 4), (), (5,)]), test_saliency_op.EVERY
    if name == "gather_slice_embedding":
        given = next(given for called, given in test_slices_op.calls() if called == name)
        return *given[:-2], -1, False  # forward mode sees a padding's row, as F.embedding's does
    if name.startswith("gather_slice"):
        return next(given for called, given in test_slices_op.calls() if called == name)
    if name == "gather_grouped_linear":
        return grouped.op_call("prefixes", "")[1]
    if name.startswith("gather_cell"):
        case = Case((2, 2, 3, 3, 2), seed=1)
        if name == "gather_cell":
            return case.arguments()
        _, kept = gather.op.gather_cell(*case.arguments())
        return random_like([case.x], 9)[0], case.weight, case.scale, kept, case.flat(), 4
    return test_gather_op.arguments((4, 3))[name]


def flat_call(name: str):
    """The op as a function of its real tensors, and these."""
    given = arguments(name)
    leaves, spec = tree_flatten(given)
    real = [i for i, v in enumerate(leaves) if isinstance(v, Tensor) and v.is_floating_point()]
    if name == "gather_cell_backward":
        real = real[: 1 + 2 * len(given[1])]  # what was kept ends at zeros of a ReLU
    op = getattr(torch.ops.sigeo_ext, name).default

    def call(*changed: Tensor) -> tuple[Tensor, ...]:
        values = list(leaves)
        for place, value in zip(real, changed, strict=True):
            values[place] = value
        result, _ = tree_flatten(op(*tree_unflatten(values, spec)))
        # What autograd is given to differentiate: a kept statistic is a constant to it.
        return tuple(result[:1] if name in ONCE - {"gather_dispatch"} else result)

    return call, [leaves[i].clone() for i in real]


def random_like(values, seed):
    return tensors([value.shape for value in values], torch.float64, seed=seed)


def total(call, given):
    """A function to a number that depends on each result in a way of its own."""
    weights = random_like(call(*given), 9)
    return lambda *v: sum((w * y).sum() for w, y in zip(weights, call(*v), strict=True))


def graphed(values):
    return [value.clone().requires_grad_() for value in values]


@pytest.mark.parametrize("name", OPS)
def test_forward_mode_equals_finite_differences(name):
    call, given = flat_call(name)
    torch.autograd.gradcheck(
        call, graphed(given), check_forward_ad=True, check_backward_ad=False, fast_mode=True
    )
    direction = random_like(given, 50)
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(*pair) for pair in zip(given, direction, strict=True)]
        plain = [forward_ad.unpack_dual(y).tangent for y in call(*duals)]
    results, functional = torch.func.jvp(call, tuple(given), tuple(direction))
    assert_close(results, call(*given), tolerance=1e-10)
    assert_close(functional, plain, tolerance=1e-10)


@pytest.mark.parametrize("name", [name for name in OPS if not name.endswith("_backward")])
def test_torch_func_gradients_equal_those_of_backward(name):
    call, given = flat_call(name)
    leaves, loss, every = graphed(given), total(call, given), tuple(range(len(given)))
    expected = torch.autograd.grad(loss(*leaves), leaves)
    for transform in (torch.func.grad, torch.func.jacrev, torch.func.jacfwd):
        assert_close(transform(loss, every)(*given), expected, tolerance=1e-10)


@pytest.mark.parametrize("zeros", [slice(1), slice(None)], ids=["some", "every"])
@pytest.mark.parametrize("side", ["weights", "gradients"])
def test_saliency_at_zeros(side, zeros):
    call, given = flat_call("saliency_sums")
    for value in given[:3] if side == "weights" else given[3:]:
        value.view(-1)[zeros] = 0
    leaves, every = graphed(given), tuple(range(len(given)))
    loss = total(call, given)
    first = torch.autograd.grad(loss(*leaves), leaves, create_graph=True)
    assert_close(torch.func.grad(loss, every)(*given), [g.detach() for g in first])
    direction = tuple(random_like(given, 50))
    _, slope = torch.func.jvp(loss, tuple(given), direction)
    expected = sum((g * d).sum() for g, d in zip(first, direction, strict=True))
    assert_close(slope, expected.detach())
    second = torch.autograd.grad(expected, leaves)
    assert all(g.isfinite().all() for g in (*first, *second))


@pytest.mark.parametrize("name", [name for name in OPS if not name.endswith("_backward")])
def test_second_derivatives_are_right_or_refused(name):
    call, given = flat_call(name)
    loss, leaves = total(lambda *v: [y.square() for y in call(*v)], given), graphed(given)
    first = torch.autograd.grad(loss(*leaves), leaves, create_graph=True)
    if name in ONCE:
        with pytest.raises(RuntimeError, match=REFUSED):
            sum(g.square().sum() for g in first).backward()
    else:
        torch.autograd.gradgradcheck(call, graphed(given), fast_mode=True)
    # Forward over reverse, which torch.func.hessian is.
    every, eps = tuple(range(len(given))), 1e-6
    direction = random_like(given, 70)
    gradient = torch.func.grad(loss, every)
    _, product = torch.func.jvp(gradient, tuple(given), tuple(direction))
    ahead, behind = (
        gradient(*[v + sign * eps * d for v, d in zip(given, direction, strict=True)])
        for sign in (1, -1)
    )
    for got, a, b in zip(product, ahead, behind, strict=True):
        assert_close(got, (a - b) / (2 * eps), tolerance=1e-6)


@pytest.mark.parametrize("name", [name for name in OPS if not name.endswith("_backward")])
def test_autocast_changes_no_op(name):
    call, wide = flat_call(name)
    given = [value.float() for value in wide]
    expected = call(*given)
    with torch.autocast("cpu", torch.bfloat16):
        plain, graph = call(*given), call(*graphed(given))
        with forward_ad.dual_level():
            duals = [forward_ad.make_dual(*pair) for pair in zip(given, given, strict=True)]
            forward = [forward_ad.unpack_dual(y).primal for y in call(*duals)]
    for got in (plain, graph, forward):
        assert [y.dtype for y in got] == [y.dtype for y in expected]
        assert_close(got, expected)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_forward_mode(backend):
    call, given = flat_call("moments_dot")
    direction, loss = tuple(random_like(given, 70)), total(call, given)

    def both(*values):
        # Tangents that reach the result by another way too must not hide that the op's are lost.
        return loss(*values) + values[0].sum()

    def slope(*values):
        return torch.func.jvp(both, values, direction)[1]

    for derivative in (slope, torch.func.jacfwd(both)):
        torch._dynamo.reset()
        compiled = torch.compile(derivative, backend=backend, fullgraph=True)
        assert_close(compiled(*given), derivative(*given), tolerance=1e-10)


@pytest.mark.parametrize("name", [name for name in OPS if not name.endswith("_backward")])
def test_forward_mode_that_meets_a_backward_pass(name):
    """Right, or refused, where nothing but the gradient that comes in has a tangent."""
    call, given = flat_call(name)
    leaves = graphed(given)
    results = call(*leaves)
    d = random_like(results, 8)
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(value, 2 * value) for value in d]
        try:
            got = torch.autograd.grad(results, leaves, duals, retain_graph=True)
        except NotImplementedError as error:
            assert name.startswith(("gather_slice", "gather_grouped"))
            assert "forward mode does not go through its backward pass" in str(error)
            return
        tangents = [forward_ad.unpack_dual(g).tangent for g in got]
    expected = torch.autograd.grad(results, leaves, [2 * value for value in d])
    for tangent, judge in zip(tangents, expected, strict=True):
        got = torch.zeros_like(judge) if tangent is None else tangent
        assert_close(got, judge, tolerance=1e-10)
