"""The grouped ops: gradients in place, registration, bits, and the routes around them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from sigeo_ext.gather import grouped, grouped_op
from sigeo_ext.testing import assert_close, poison_empty, threads
from tests.grouped import COMPILED, mapped, op_call, outcome, problem
from tests.slices import WIDE, randn

pytestmark = pytest.mark.usefixtures("small_weights_through_ops")
NAMES = pytest.mark.parametrize("name", ["chunks", "some empty", "many rows"])
OPS = pytest.mark.parametrize("op", ["", "_backward", "_accumulate"])


@NAMES
@OPS
@WIDE
def test_opcheck(name, op, dtype, device):
    function, arguments = op_call(name, op, device)
    arguments = mapped(lambda t: t.to(dtype), arguments)
    torch.library.opcheck(function, tuple(arguments))
    if not op:
        for value in (*arguments[0], arguments[1], arguments[2]):
            value.requires_grad_()
        torch.library.opcheck(function, tuple(arguments))


@NAMES
@OPS
def test_strided_arguments(name, op, device):
    function, arguments = op_call(name, op, device, strided=True)
    dense = mapped(torch.Tensor.contiguous, arguments)
    for a, b in zip(outcome(function, arguments), outcome(function, dense), strict=True):
        assert_close(a, b)


@NAMES
@OPS
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision(name, op, dtype, device):
    function, arguments = op_call(name, op, device)
    half = mapped(lambda t: t.to(dtype), arguments)
    wide = mapped(torch.Tensor.double, half)
    for a, b in zip(outcome(function, half), outcome(function, wide), strict=True):
        assert a.dtype == dtype
        assert_close(a, b)


@pytest.mark.parametrize(
    ("op", "change", "text"),
    [
        ("", {3: [0, 2]}, "outputs and inputs must be a window each for 3 subnets, got 2 and 6"),
        ("", {3: [0, 3, 7, 3, 0, 4]}, "outputs[1] must be a window of 9 places"),
        ("", {3: [1, 9, 2, 3, 0, 4]}, "outputs[0] must be a window of 9 places"),
        ("", {3: [20, 3, 2, 3, 0, 4]}, "outputs[0] must be a window of 9 places"),
        ("", {4: [-3, 3, 1, 3, 0, 3]}, "inputs[0] must be a window of 6 places"),
        ("", {4: [-1, 3, 1, 3, 0, 3]}, "inputs[0] must be a window of 6 places"),
        ("_backward", {0: []}, "d must hold one tensor a subnet, 3, got 0"),
        ("_backward", {0: [randn(2, 4)] * 3}, "d[0] must have the selected 5 values in dimension"),
        ("_backward", {0: [randn(2, 5).float()] * 3}, "d[0] must be Double like x[0], got Float"),
        ("_accumulate", {0: [randn(7, 5)] * 3}, "d[0] must have the 2 rows of x[0], got 7"),
    ],
)
@pytest.mark.parametrize("compiled", [True, False])
def test_a_wrong_argument_of_an_op_is_named(op, change, text, compiled):
    function, arguments = op_call("chunks", op)
    arguments = [change.get(i, v) for i, v in enumerate(arguments)]
    if not compiled:
        function = getattr(grouped_op.reference, f"linear{op}")
    with pytest.raises(RuntimeError) as caught:
        function(*arguments)
    assert text in str(caught.value)


@COMPILED
@pytest.mark.parametrize("name", ["many rows", "several stacks"])
def test_bits_do_not_depend_on_threads_or_old_memory(name):
    def run():
        case = problem(name, torch.float32)
        y = grouped.linear(case.x, case.weight, case.bias, **case.given)
        return [*y, *torch.autograd.grad([(v**2).sum() for v in y], case.leaves)]

    with threads(1):
        first = run()
    with threads(2), poison_empty():
        again = run()
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("count", [1, 2])
def test_inference_mode(count):
    """Also where products run on threads that are not in it."""
    case = problem("many rows")
    with threads(count), torch.inference_mode():
        got = grouped.linear(case.x, case.weight, case.bias, **case.given)
        assert all(y.is_inference() for y in got)
        assert_close(got, case.expected)


@WIDE
@pytest.mark.parametrize("name", ["chunks", "many rows"])
def test_gradients_are_added_in_place_where_asked_for(name, dtype, device):
    case = problem(name, dtype, device)
    expected = torch.autograd.grad([(y**2).sum() for y in case.expected], case.weight)[0]
    kept = case.weight.grad = randn(*case.weight.shape, dtype=dtype, seed=8, device=device)
    expected, version = expected + kept, kept._version
    y = grouped.linear(case.x, case.weight, case.bias, **case.given, accumulate=True)
    torch.autograd.backward([(v**2).sum() for v in y])
    assert case.weight.grad is kept and kept._version > version
    assert_close(kept, expected)


def test_without_a_gradient_to_add_to_accumulation_makes_one(device):
    case = problem("nested", device=device)
    judge = torch.autograd.grad([y.sum() for y in case.expected], case.weight)[0]
    y = grouped.linear(case.x, case.weight, case.bias, **case.given, accumulate=True)
    torch.autograd.backward([v.sum() for v in y])
    assert_close(case.weight.grad, judge)


@pytest.mark.parametrize("name", ["chunks", "prefixes"])
def test_gradients_equal_finite_differences(name, device):
    case = problem(name, device=device)
    count = len(case.x)

    def run(*leaves):
        return tuple(grouped.linear(leaves[:count], *leaves[count:], **case.given))

    assert torch.autograd.gradcheck(run, case.leaves)
    assert torch.autograd.gradgradcheck(lambda *v: tuple(y**2 for y in run(*v)), case.leaves)


def test_inputs_without_gradients_have_none_under_create_graph(device):
    case = problem("nested", device=device)
    fixed = [v.detach() if s == 1 else v for s, v in enumerate(case.x)]
    y = grouped.linear(fixed, case.weight, **case.given)
    leaves = [fixed[0], *fixed[2:], case.weight]
    plain = torch.autograd.grad([v.sum() for v in y], leaves, retain_graph=True)
    graph = torch.autograd.grad([v.sum() for v in y], leaves, create_graph=True)
    assert_close(graph, plain)


def test_transforms_of_functions_see_through(device):
    case = problem("prefixes", device=device)
    x, weight = [v.detach() for v in case.x], case.weight.detach()

    def loss(weight, x):
        return sum((y**2).sum() for y in grouped.linear(x, weight, **case.given))

    leaf = weight.clone().requires_grad_()
    (expected,) = torch.autograd.grad(loss(leaf, x), leaf)
    assert_close(torch.func.grad(loss)(weight, x), expected)
    stacked = [torch.stack([v, 2 * v]) for v in x]
    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(weight, stacked)
    assert_close(each[0], expected)
    assert_close(each[1], 4 * expected)


def test_flops_of_the_parts_are_counted(device):
    case = problem("chunks", device=device)
    with FlopCounterMode(display=False) as counter:
        y = grouped.linear(case.x, case.weight, case.bias, **case.given)
        torch.autograd.grad([v.sum() for v in y], case.leaves)
    counts = {str(k): v for k, v in counter.get_flop_counts()["Global"].items()}
    forward = 2 * (2 * 5 * 3 + 3 * 3 * 3 + 4 * 4 * 3)
    assert counts["sigeo_ext.gather_grouped_linear"] == forward
    assert counts["sigeo_ext.gather_grouped_linear_backward"] == 2 * forward


class Watching(torch.overrides.TorchFunctionMode):
    """Counts calls of linear layers."""

    seen = 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        self.seen += function is F.linear
        return function(*args, **(kwargs or {}))


def test_who_watches_calls_sees_the_layers(device):
    case = problem("nested", device=device)
    with Watching() as watching:
        got = grouped.linear(case.x, case.weight, case.bias, **case.given)
    assert watching.seen == 4
    assert_close(got, case.expected)


def test_autocast_converts(device):
    case = problem("nested", torch.float32, device)
    with torch.autocast(device, torch.bfloat16):
        got = grouped.linear(case.x, case.weight, case.bias, **case.given)
    assert {y.dtype for y in got} == {torch.bfloat16}
    assert_close(got, case.expected, tolerance=2e-2)


@pytest.mark.slow
@pytest.mark.parametrize("dynamic", [False, True])
def test_fullgraph_compile(dynamic, device):
    case = problem("prefixes", device=device)

    def run(x, weight, bias):
        y = grouped.linear([2 * v for v in x], weight, bias, **case.given)
        return sum((v**2).sum() for v in y)

    got = torch.compile(run, fullgraph=True, dynamic=dynamic)(case.x, case.weight, case.bias)
    expected = run(case.x, case.weight, case.bias)
    assert_close(got, expected)
    assert_close(*(torch.autograd.grad(value, case.leaves) for value in (got, expected)))
