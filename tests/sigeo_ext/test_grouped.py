"""Layers of many subnets on one super-weight: against plain torch's slicing and its autograd."""

from __future__ import annotations

import pytest
import torch

from sigeo_ext.gather import grouped
from sigeo_ext.testing import assert_close, poison_empty
from tests.grouped import EACH, problem
from tests.slices import TOLERANCE, WIDE, randn

pytestmark = pytest.mark.usefixtures("small_weights_through_ops")


def gradients(outputs, leaves):
    """Of a sum with weights of its own for each output; zeros where there is none."""
    given = [
        randn(*y.shape, dtype=y.dtype, seed=50 + s, device=y.device) for s, y in enumerate(outputs)
    ]
    found = torch.autograd.grad(outputs, leaves, given, allow_unused=True)
    return [torch.zeros_like(v) if g is None else g for v, g in zip(leaves, found, strict=True)]


@EACH
@WIDE
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("strided", [True, False], ids=["strided", "dense"])
def test_linear_equals_slicing(name, dtype, bias, strided, device):
    case = problem(name, dtype, device, bias, strided)
    with poison_empty():
        got = grouped.linear(case.x, case.weight, case.bias, **case.given)
        found = gradients(got, case.leaves)
    assert_close(got, case.expected, tolerance=TOLERANCE[dtype])
    assert [y.shape for y in got] == [y.shape for y in case.expected]
    assert_close(found, gradients(case.expected, case.leaves), tolerance=TOLERANCE[dtype])


@WIDE
def test_inputs_whose_rows_do_not_lie_in_steps(dtype, device):
    weight = randn(7, 5, dtype=dtype, seed=1, device=device).requires_grad_()
    each = [randn(3, 2, 5, dtype=dtype, seed=2 + s, device=device) for s in range(4)]
    x = [rows.transpose(0, 1).requires_grad_() for rows in each]
    expected = [torch.nn.functional.linear(rows, weight) for rows in x]
    d = [randn(3, 2, 7, dtype=dtype, seed=9 + s, device=device).transpose(0, 1) for s in range(4)]
    got = grouped.linear(x, weight)
    assert_close(got, expected, tolerance=TOLERANCE[dtype])
    leaves = [*x, weight]
    found, judge = (torch.autograd.grad(y, leaves, d) for y in (got, expected))
    assert_close(found, judge, tolerance=TOLERANCE[dtype])


@pytest.mark.parametrize("name", ["nested", "many rows", "several stacks"])
def test_a_weight_in_another_memory_order_gets_a_gradient_in_its_own(name, device):
    case = problem(name, device=device)
    weight = case.weight.detach().t().contiguous().t().requires_grad_()
    got = grouped.linear(case.x, weight, case.bias, **case.given)
    found = gradients(got, [*case.x, weight, case.bias])
    assert_close(found, gradients(case.expected, case.leaves), tolerance=1e-10)
    assert found[len(case.x)].stride() == weight.stride()


def test_places_that_no_subnet_uses_get_zeros(device):
    weight = randn(6, 5, device=device).requires_grad_()
    x = [randn(3, 2, device=device), randn(2, 4, device=device)]
    with poison_empty():
        y = grouped.linear(x, weight, outputs=[5, 2], inputs=[2, 4])
        (found,) = torch.autograd.grad([v.sum() for v in y], weight)
    unused = torch.ones(6, 5, dtype=torch.bool)
    unused[:5, :2] = unused[:2, :4] = False
    assert (found.cpu()[unused] == 0).all() and (found.cpu()[~unused] != 0).all()


def test_what_a_subnet_does_not_use_is_not_read(device):
    weight = torch.full((4, 3), float("nan"), device=device)
    weight[:3, :2] = 1
    got = grouped.linear(
        [torch.ones(2, 2, device=device)] * 2, weight, outputs=[3, 1], inputs=[2, 2]
    )
    assert [y.tolist() for y in got] == [[[2.0] * 3] * 2, [[2.0]] * 2]


@pytest.mark.parametrize("name", ["nested", "many rows"])
@pytest.mark.parametrize("used", [[1], [0, 2], []], ids=str)
def test_outputs_that_nobody_uses_count_for_nothing(name, used, device):
    case = problem(name, device=device)
    got = grouped.linear(case.x, case.weight, case.bias, **case.given)
    total, judge = case.weight.sum(), case.weight.sum()
    for s in used:
        total, judge = total + (got[s] ** 2).sum(), judge + (case.expected[s] ** 2).sum()
    found = torch.autograd.grad(total, case.leaves, allow_unused=True)
    expected = torch.autograd.grad(judge, case.leaves, allow_unused=True)
    for s, (a, b) in enumerate(zip(found, expected, strict=True)):
        if b is None:
            assert a is None or not a.any()
            assert s >= len(case.x) or a is None
        else:
            assert_close(a, b, tolerance=1e-10)


@pytest.mark.parametrize("wanted", range(7))
def test_a_single_gradient_is_computed_alone(wanted, device):
    case = problem("many rows", device=device)
    judge = gradients(case.expected, case.leaves)[wanted]
    leaves = [v if i == wanted else v.detach() for i, v in enumerate(case.leaves)]
    got = grouped.linear(leaves[:5], *leaves[5:], **case.given)
    assert_close(gradients(got, leaves[wanted : wanted + 1])[0], judge, tolerance=1e-10)


@pytest.mark.parametrize("graph", [False, True])
def test_one_input_of_several_subnets_gets_the_sum_of_their_gradients(graph, device):
    x, weight = (randn(*s, device=device).requires_grad_() for s in ((3, 4), (6, 5)))
    got = grouped.linear([x] * 3, weight, outputs=[2, 6, 2], inputs=[4] * 3)
    expected = [x @ weight[:o, :4].T for o in (2, 6, 2)]
    loss, judge = (sum((y**2).sum() for y in ys) for ys in (got, expected))
    found = torch.autograd.grad(loss, [x, weight], create_graph=graph)
    assert_close(found, torch.autograd.grad(judge, [x, weight]), tolerance=1e-10)


def test_no_subnets_give_no_outputs(device):
    assert grouped.linear([], randn(3, 2, device=device)) == []


def test_small_weights_and_few_subnets_go_through_plain_slices(monkeypatch, device):
    monkeypatch.setattr(grouped, "SMALL", 1 << 18)
    monkeypatch.setattr(grouped, "FEW", 8)
    monkeypatch.setattr(grouped.op, "gather_grouped_linear", None)
    case = problem("prefixes", device=device)
    got = grouped.linear(case.x, case.weight, case.bias, **case.given)
    assert_close(got, case.expected)
    with torch.no_grad():
        assert_close(grouped.linear(case.x, case.weight, case.bias, **case.given), case.expected)


X, W, V = [randn(2, 3), randn(1, 2)], randn(4, 3), randn(3)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: grouped.linear(X, V), "weight must be [outputs, inputs], got [3]"),
        (lambda: grouped.linear(X, W, V, inputs=[3, 2]), "bias must be [4] of the weight's dtype"),
        (
            lambda: grouped.linear(X, W, outputs=[1]),
            "outputs must be a window for each of 2 subnets, got 1",
        ),
        (
            lambda: grouped.linear(X, W, inputs=[3, 2, 1]),
            "inputs must be a window for each of 2 subnets, got 3",
        ),
        (lambda: grouped.linear(X, W, inputs=[3, 4]), "inputs[1] must be from 0 to 3, got 4"),
        (lambda: grouped.linear(X, W, outputs=[-1, 4]), "outputs[0] must be from 0 to 4, got -1"),
        (
            lambda: grouped.linear(X, W, outputs=[4, slice(0, 4, 2)]),
            "outputs[1] must be a slice of step 1 from 0 to 4, got slice(0, 4, 2)",
        ),
        (
            lambda: grouped.linear(X, W, outputs=[torch.tensor([0, 2]), 4]),
            "outputs[0] must be None, an int or a slice of step 1, got a tensor; slices.linear",
        ),
        (lambda: grouped.linear(X, W, outputs=[True, 4]), "an int64 tensor, got bool"),
        (
            lambda: grouped.linear(X, W),
            "x[1] must have the selected 3 values in dimension -1, got 2",
        ),
        (
            lambda: grouped.linear([randn(())], W),
            "x[0] must have the selected 3 values in dimension -1, got none",
        ),
        (
            lambda: grouped.linear([X[0], X[0].float()], W),
            "x and the weight must be of one dtype, got Float and Double",
        ),
    ],
)
@pytest.mark.parametrize("few", [0, 8])
def test_a_wrong_argument_is_named(call, text, few, monkeypatch):
    monkeypatch.setattr(grouped, "FEW", few)
    with pytest.raises(RuntimeError) as caught:
        call()
    assert text in str(caught.value)
