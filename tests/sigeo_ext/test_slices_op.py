"""The slice ops: gradients in place, registration, bits, and the routes around them."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from sigeo_ext.gather import slices, slices_op
from sigeo_ext.gather import slices_reference as reference
from sigeo_ext.gather.selection import check_index
from sigeo_ext.testing import assert_close, poison_empty, threads
from tests.slices import (
    MODES,
    OUTPUTS,
    WIDE,
    agree,
    chosen,
    convolution_case,
    linear_case,
    randn,
)

pytestmark = pytest.mark.usefixtures("small_weights_through_ops")


def accumulation_cases(device="cpu"):
    """Functions of a super-weight, for two subnets that overlap."""
    x = randn(3, 4, device=device)
    image = randn(2, 3, 6, 5, device=device)
    tokens = torch.tensor([1, 0, 1, 4], device=device)
    some, others = torch.tensor([4, 0, 2], device=device), torch.tensor([0, 3], device=device)

    def linear(weight, outputs, inputs, **options):
        rows = x[:, : len(inputs) if isinstance(inputs, Tensor) else inputs]
        return slices.linear(rows, weight, outputs=outputs, inputs=inputs, **options)

    def convolution(weight, outputs, inputs, kernel, **options):
        rows = image[:, : len(inputs) if isinstance(inputs, Tensor) else inputs]
        return slices.convolution(
            rows, weight, outputs=outputs, inputs=inputs, kernel=kernel, **options
        )

    def embedding(weight, columns, **options):
        return slices.embedding(tokens, weight, columns=columns, **options)

    return {
        "linear": (linear, (5, 4), [(3, 2), (slice(1, 4), 4)]),
        "linear, lists": (linear, (5, 4), [(some, 2), (some, others), (4, others)]),
        "convolution": (convolution, (5, 3, 3, 3), [(3, 2, 1), (slice(1, 4), 3, 3)]),
        "convolution, lists": (
            convolution,
            (5, 3, 3, 3),
            [(some, 2, 3), (some, torch.tensor([2, 0], device=device), 1)],
        ),
        "embedding": (embedding, (6, 5), [(3,), (slice(1, 5),)]),
        "embedding, lists": (embedding, (6, 5), [(some,), (others,)]),
    }


ACCUMULATION = pytest.mark.parametrize("name", list(accumulation_cases()))


@ACCUMULATION
@WIDE
def test_gradients_are_added_in_place_where_asked_for(name, dtype, device):
    function, shape, subnets = accumulation_cases(device)[name]
    weight = randn(*shape, seed=7, device=device).requires_grad_()
    expected = torch.zeros_like(weight)
    for subnet in subnets:
        (grad,) = torch.autograd.grad((function(weight, *subnet) ** 2).sum(), weight)
        expected += grad
    weight.grad = randn(*shape, seed=8, device=device)
    expected += weight.grad
    kept, version = weight.grad, weight.grad._version
    for subnet in subnets:
        (function(weight, *subnet, accumulate=True) ** 2).sum().backward()
    assert weight.grad is kept and kept._version > version
    assert_close(kept, expected)


@ACCUMULATION
def test_without_a_gradient_to_add_to_accumulation_makes_one(name, device):
    function, shape, subnets = accumulation_cases(device)[name]
    weight = randn(*shape, seed=7, device=device).requires_grad_()
    function(weight, *subnets[0], accumulate=True).sum().backward()
    got, weight.grad = weight.grad, None
    function(weight, *subnets[0]).sum().backward()
    assert_close(got, weight.grad)


@ACCUMULATION
def test_a_weight_that_is_no_leaf_gets_its_gradient_as_ever(name, device):
    function, shape, subnets = accumulation_cases(device)[name]
    leaf = randn(*shape, seed=7, device=device).requires_grad_()
    function(2 * leaf, *subnets[0], accumulate=True).sum().backward()
    got = leaf.grad
    (expected,) = torch.autograd.grad(function(2 * leaf, *subnets[0]).sum(), leaf)
    assert_close(got, expected)


def calls(device="cpu"):
    """Arguments of each op, for windows and lists."""
    some, others = torch.tensor([4, 0, 2], device=device), torch.tensor([0, 3], device=device)
    x, d, weight, bias = (
        randn(*s, seed=i, device=device) for i, s in enumerate(((2, 3, 2), (2, 3, 3), (5, 4), (5,)))
    )
    image, wide = randn(2, 2, 4, 4, device=device), randn(5, 4, 3, 3, device=device)
    back = randn(2, 3, 4, 4, device=device)
    geometry = ([3, 3], [1, 1], [1, 1], [1, 1], 1)
    tokens = torch.tensor([[1, 0], [1, 3]], device=device)
    found = []
    need = [True, True, True]
    for window in (([1, 3], [0, 2], None, None), ([0, 0], [0, 0], some, others)):
        found += [
            ("gather_slice_linear", (x, weight, bias, *window, False, False)),
            ("gather_slice_linear_backward", (d, x, weight, *window, False, need)),
            ("gather_slice_linear_accumulate", (d, x, weight, *window, False)),
            ("gather_slice_convolution", (image, wide, bias, *window, *geometry, False, False)),
            (
                "gather_slice_convolution_backward",
                (back, image, wide, *window, *geometry, False, need),
            ),
            ("gather_slice_convolution_accumulate", (back, image, wide, *window, *geometry, False)),
        ]
    for columns in (([1, 3], None), ([0, 0], torch.tensor([3, 0, 1], device=device))):
        rows = randn(2, 2, 3, device=device)
        found += [
            ("gather_slice_embedding", (tokens, weight, *columns, 1, False)),
            ("gather_slice_embedding_backward", (rows, tokens, weight, *columns, 1)),
            ("gather_slice_embedding_accumulate", (rows, tokens, weight, *columns, 1)),
        ]
    return found


CALLS = pytest.mark.parametrize("number", range(len(calls())))


def is_real(value):
    return isinstance(value, Tensor) and value.is_floating_point()


def copied(arguments):
    return [v.clone() if isinstance(v, Tensor) else v for v in arguments]


def outcome(name, arguments):
    """Results, or what was written."""
    arguments = copied(arguments)
    result = getattr(slices_op, name)(*arguments)
    if result is None:
        return [arguments[2]]
    return [result] if isinstance(result, Tensor) else list(result)


@CALLS
@WIDE
def test_opcheck(number, dtype, device):
    name, arguments = calls(device)[number]
    arguments = [v.to(dtype) if is_real(v) else v for v in arguments]
    op = getattr(slices_op, name)
    torch.library.opcheck(op, tuple(arguments))
    if name.count("_") == 2:
        for value in arguments:
            if is_real(value):
                value.requires_grad_()
        torch.library.opcheck(op, tuple(arguments))


@CALLS
def test_strided_arguments(number, device):
    name, arguments = calls(device)[number]
    strided = [torch.stack([v, v], -1)[..., 0] if isinstance(v, Tensor) else v for v in arguments]
    got = getattr(slices_op, name)(*strided)
    got = [strided[2]] if got is None else [got] if isinstance(got, Tensor) else got
    for a, b in zip(got, outcome(name, arguments), strict=True):
        assert_close(a, b)


@pytest.mark.parametrize("wanted", [0, 1, 2])
@MODES
def test_a_single_gradient_is_computed_alone(wanted, masked, device):
    for case in (linear_case, partial(convolution_case, "2d", last=True)):
        function = slices.linear if case is linear_case else slices.convolution
        leaves, given, expected = case("list", "chunk", masked, torch.float64, device)
        (judge,) = torch.autograd.grad(expected.sum(), leaves[wanted])
        fixed = [v if i == wanted else v.detach() for i, v in enumerate(leaves)]
        (got,) = torch.autograd.grad(function(*fixed, **given).sum(), leaves[wanted])
        assert_close(got, judge, tolerance=1e-10)


@CALLS
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision(number, dtype, device):
    name, arguments = calls(device)[number]
    half = [
        v.to(dtype) if isinstance(v, Tensor) and v.is_floating_point() else v for v in arguments
    ]
    wide = [v.double() if isinstance(v, Tensor) and v.dtype == dtype else v for v in half]
    for a, b in zip(outcome(name, half), outcome(name, wide), strict=True):
        assert a.dtype == dtype
        assert_close(a, b)


@pytest.mark.parametrize("selection", ["prefix", "list"])
@MODES
def test_bits_do_not_depend_on_threads_or_old_memory(selection, masked):
    def run():
        leaves, given, _ = linear_case(
            selection, selection, masked, torch.float32, "cpu", size=(330, 270), batch=(64,)
        )
        y = slices.linear(*leaves, **given)
        columns, _ = chosen(selection, 270)
        table = leaves[1].detach().requires_grad_()
        tokens = torch.randint(330, (5000,), generator=torch.Generator().manual_seed(0))
        z = slices.embedding(tokens, table, columns=columns)
        grads = torch.autograd.grad((y**2).sum(), leaves)
        return [y, *grads, z, *torch.autograd.grad((z**2).sum(), table)]

    with threads(1):
        first = run()
    with threads(2), poison_empty():
        again = run()
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@MODES
def test_gradients_equal_finite_differences(masked, device):
    for outputs, inputs in (("chunk", "prefix"), ("list", "list")):
        leaves, given, _ = linear_case(outputs, inputs, masked, torch.float64, device, size=(5, 4))
        assert torch.autograd.gradcheck(lambda *v, g=given: slices.linear(*v, **g), leaves)
        leaves, given, _ = convolution_case("2d", outputs, inputs, masked, torch.float64, device)
        assert torch.autograd.gradcheck(lambda *v, g=given: slices.convolution(*v, **g), leaves)


@MODES
def test_second_derivatives_equal_finite_differences(masked, device):
    leaves, given, _ = linear_case("chunk", "list", masked, torch.float64, device, size=(4, 3))
    assert torch.autograd.gradgradcheck(lambda *v: slices.linear(*v, **given) ** 2, leaves)
    leaves, given, _ = convolution_case("1d", "list", "prefix", masked, torch.float64, device)
    leaves = [leaves[0][:, :, :3].detach().requires_grad_(), *leaves[1:]]
    assert torch.autograd.gradgradcheck(lambda *v: slices.convolution(*v, **given) ** 2, leaves)
    table = randn(4, 3, device=device).requires_grad_()
    tokens = torch.tensor([3, 0, 3], device=device)
    assert torch.autograd.gradgradcheck(
        lambda w: slices.embedding(tokens, w, columns=2) ** 2, [table]
    )


def test_what_is_not_selected_is_not_read(device):
    """A masked layer with NaN in the weights that it leaves out has zeros there, not NaN."""
    weight = torch.full((4, 3), float("nan"), device=device)
    weight[:2, :2] = 1
    x = torch.ones(2, 3, device=device)
    x[:, 2] = float("nan")
    got = slices.linear(x, weight, outputs=2, inputs=2, masked=True)
    assert got.tolist() == [[2, 2, 0, 0]] * 2


@pytest.mark.parametrize("masked", [False, True])
def test_flops_of_the_selected_part_are_counted(masked, device):
    leaves, given, _ = linear_case("list", "prefix", masked, torch.float64, device)
    with FlopCounterMode(display=False) as counter:
        slices.linear(*leaves, **given).sum().backward()
    counts = {str(k): v for k, v in counter.get_flop_counts()["Global"].items()}
    forward = 2 * 12 * 4 * 3
    assert counts["sigeo_ext.gather_slice_linear"] == forward
    assert counts["sigeo_ext.gather_slice_linear_backward"] == 2 * forward
    leaves, given, _ = convolution_case("depthwise", "all", "prefix", masked, torch.float64, device)
    with FlopCounterMode(display=False) as counter:
        slices.convolution(*leaves, **given).sum().backward()
    counts = {str(k): v for k, v in counter.get_flop_counts()["Global"].items()}
    forward = 2 * (2 * 7 * 6) * 3 * 9
    assert counts["sigeo_ext.gather_slice_convolution"] == forward
    assert counts["sigeo_ext.gather_slice_convolution_backward"] == 2 * forward


class Running(TorchDispatchMode):
    """Notes the operations that are run."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.seen.append(function)
        return function(*args, **(kwargs or {}))


class Watching(torch.overrides.TorchFunctionMode):
    """Notes the functions that are called."""

    def __init__(self):
        self.seen = set()

    def __torch_function__(self, function, types, args=(), kwargs=None):
        self.seen.add(function)
        return function(*args, **(kwargs or {}))


def test_a_list_is_looked_at_again_only_when_it_has_changed(device):
    index = torch.tensor([2, 0], device=device)
    with Running() as first:
        check_index("op", "outputs", index, 3)
    assert first.seen
    with Running() as again:
        check_index("op", "outputs", index, 3)
    assert not again.seen
    with pytest.raises(RuntimeError, match="outputs must be from 0 to 1, got 2"):
        check_index("op", "outputs", index, 2)
    index[1] = 2
    with pytest.raises(RuntimeError, match="outputs must be without repeats, got 1 repeats"):
        check_index("op", "outputs", index, 3)


@MODES
def test_the_reference_writes_the_gradient_of_windows_where_it_belongs(masked, device):
    leaves, _, _ = linear_case("chunk", "prefix", masked, torch.float64, device)
    x, weight, _ = (leaf.detach() for leaf in leaves)
    d = randn(*x.shape[:-1], 7 if masked else 5, device=device)
    with Running() as running:
        reference.linear_backward(
            d, x, weight, [2, 5], [0, 3], None, None, masked, [False, True, False]
        )
    assert torch.ops.aten.mm.out in running.seen
    assert torch.ops.aten.copy_.default not in running.seen


@OUTPUTS
@MODES
def test_who_watches_calls_sees_the_layers(outputs, masked, device):
    for case in (linear_case, partial(convolution_case, "2d")):
        leaves, given, expected = case(outputs, "prefix", masked, torch.float64, device)
        function = slices.linear if case is linear_case else slices.convolution
        with Watching() as watching:
            got = function(*leaves, **given)
        if outputs != "none":
            assert (F.linear if case is linear_case else torch.conv2d) in watching.seen
        agree(got, expected, leaves, torch.float64)
    table = randn(5, 4, device=device).requires_grad_()
    selection, columns = chosen(outputs, 4, device)
    tokens = torch.tensor([3, 3, 0], device=device)
    with Watching() as watching:
        got = slices.embedding(tokens, table, columns=selection, padding_idx=0)
    assert F.embedding in watching.seen
    agree(got, F.embedding(tokens, table[:, columns], 0), [table], torch.float64)


@pytest.mark.slow
def test_fullgraph_compile(device):
    weight, table = randn(6, 5, device=device).requires_grad_(), randn(7, 5, device=device)
    index = torch.tensor([3, 0], device=device)

    def run(weight):
        rows = slices.embedding(index, table, columns=3)
        hidden = slices.linear(rows, weight, outputs=slice(1, 5), inputs=3)
        return slices.linear(hidden[:, :2], weight, outputs=index, inputs=index).sum()

    got, expected = torch.compile(run, fullgraph=True)(weight), run(weight)
    assert_close(got, expected)
    assert_close(*(torch.autograd.grad(value, weight)[0] for value in (got, expected)))
