"""Slices of super-weights: against plain torch's slicing and its autograd, and themselves."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from sigeo_ext.gather import slices, slices_op
from sigeo_ext.testing import assert_close, poison_empty, threads

WIDE = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}
MODES = pytest.mark.parametrize("masked", [False, True], ids=["clean", "masked"])
# By name: the selection of n places.
SELECTIONS = {
    "all": lambda n: None,
    "prefix": lambda n: (n + 1) // 2,
    "none": lambda n: 0,
    "chunk": lambda n: slice(n // 3, n),
    "list": lambda n: torch.randperm(n, generator=torch.Generator().manual_seed(n))[: n // 2 + 1],
}
OUTPUTS = pytest.mark.parametrize("outputs", list(SELECTIONS))
INPUTS = pytest.mark.parametrize("inputs", list(SELECTIONS))


@pytest.fixture(autouse=True)
def no_plain_torch(monkeypatch):
    """Small weights, too, go through the ops."""
    monkeypatch.setattr(slices, "SMALL", -1)
    monkeypatch.setattr(slices, "SMALL_TABLE", -1)


def randn(*shape, dtype=torch.float64, seed=0, device="cpu"):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator).to(device, dtype)


def chosen(name, size, device="cpu"):
    """A selection for the function under test, and the list of its places."""
    selection = SELECTIONS[name](size)
    places = torch.arange(size)
    if isinstance(selection, int):
        places = places[:selection]
    elif selection is not None:
        places = places[selection]
    if isinstance(selection, Tensor):
        selection = selection.to(device)
    return selection, places.to(device)


def hidden(y, dim, places):
    """Zeros where a place is not listed."""
    mask = torch.zeros(y.shape[dim], dtype=torch.bool, device=y.device)
    mask[places] = True
    shape = [1] * y.dim()
    shape[dim] = -1
    return torch.where(mask.view(shape), y, torch.zeros_like(y))


def agree(got, expected, leaves, dtype):
    """Outputs and gradients."""
    assert got.shape == expected.shape and got.dtype == dtype
    assert_close(got, expected, tolerance=TOLERANCE[dtype])
    d = randn(*expected.shape, dtype=dtype, seed=99, device=expected.device)
    found = torch.autograd.grad((got * d).sum(), leaves)
    judge = torch.autograd.grad((expected * d).sum(), leaves, allow_unused=True)
    for leaf, a, b in zip(leaves, found, judge, strict=True):
        assert a.shape == leaf.shape
        assert_close(a, torch.zeros_like(leaf) if b is None else b, tolerance=TOLERANCE[dtype])


def linear_case(outputs, inputs, masked, dtype, device, size=(7, 6), batch=(3, 4), bias=True):
    rows, o = chosen(outputs, size[0], device)
    columns, i = chosen(inputs, size[1], device)
    weight = randn(*size, dtype=dtype, seed=1, device=device).requires_grad_()
    shift = randn(size[0], dtype=dtype, seed=2, device=device).requires_grad_() if bias else None
    width = size[1] if masked else len(i)
    x = randn(*batch, width, dtype=dtype, seed=3, device=device).requires_grad_()
    if masked:
        whole = F.linear(hidden(x, -1, i), weight, shift)
        expected = hidden(whole, -1, o)
    else:
        expected = F.linear(x, weight[o][:, i], shift[o] if bias else None)
    leaves = [x, weight, shift] if bias else [x, weight]
    given = {"outputs": rows, "inputs": columns, "masked": masked}
    return leaves, given, expected


@OUTPUTS
@INPUTS
@MODES
@WIDE
def test_linear_equals_slicing(outputs, inputs, masked, dtype, device):
    leaves, given, expected = linear_case(outputs, inputs, masked, dtype, device)
    with poison_empty():
        agree(slices.linear(*leaves, **given), expected, leaves, dtype)


@pytest.mark.parametrize("size", [(1, 1), (130, 70), (300, 257)], ids=str)
@pytest.mark.parametrize("outputs", ["prefix", "chunk", "list"])
@pytest.mark.parametrize("inputs", ["all", "chunk", "list"])
@MODES
@WIDE
def test_linear_of_other_sizes(size, outputs, inputs, masked, dtype, device):
    case = {"size": size, "batch": (37,), "bias": False}
    leaves, given, expected = linear_case(outputs, inputs, masked, dtype, device, **case)
    with poison_empty():
        agree(slices.linear(*leaves, **given), expected, leaves, dtype)


@pytest.mark.parametrize("batch", [(), (0,), (2, 0, 3), (2, 3, 4, 1)], ids=str)
@pytest.mark.parametrize("outputs", ["prefix", "list"])
@MODES
def test_linear_of_any_batch(batch, outputs, masked, device):
    leaves, given, expected = linear_case(
        outputs, "chunk", masked, torch.float64, device, batch=batch
    )
    with poison_empty():
        agree(slices.linear(*leaves, **given), expected, leaves, torch.float64)


CONVOLUTIONS = {
    "1d": ((4, 6, 5), 1, {"padding": 1}),
    "2d": ((5, 4, 3, 3), 1, {"padding": 1, "stride": 2}),
    "2d, dilated": ((5, 4, 3, 3), 1, {"padding": (2, 1), "dilation": (2, 1)}),
    "3d": ((4, 3, 3, 1, 2), 1, {}),
    "depthwise": ((6, 1, 3, 3), 6, {"padding": 1}),
    "depthwise, doubled": ((12, 1, 3), 6, {}),
}


def convolution_case(
    name, outputs, inputs, masked, dtype, device, *, kernel=None, last=False, into=None
):
    shape, groups, options = CONVOLUTIONS[name] if into is None else into
    rows, o = chosen(outputs, shape[0], device)
    columns, i = chosen(inputs, shape[1] * groups, device)
    if groups > 1:
        each, rows = shape[0] // groups, None
        first = i[:: shape[1]] // shape[1] if len(i) else i
        o = (first[:, None] * each + torch.arange(each, device=device)).flatten()
    weight = randn(*shape, dtype=dtype, seed=1, device=device).requires_grad_()
    bias = randn(shape[0], dtype=dtype, seed=2, device=device).requires_grad_()
    size = [7, 6, 5][: len(shape) - 2]
    width = shape[1] * groups if masked else len(i)
    x = randn(2, width, *size, dtype=dtype, seed=3, device=device)
    if last:
        x = x.contiguous(memory_format=torch.channels_last)
        weight = weight.detach().contiguous(memory_format=torch.channels_last).requires_grad_()
    x.requires_grad_()
    function = (F.conv1d, F.conv2d, F.conv3d)[len(size) - 1]
    cut = weight
    if kernel is not None:
        for dim in range(2, len(shape)):
            cut = cut.narrow(dim, (shape[dim] - kernel) // 2, kernel)
    if masked:
        whole = function(hidden(x, 1, i), cut, bias, groups=groups, **options)
        expected = hidden(whole, 1, o)
    else:
        part = cut[o] if groups > 1 else cut[o][:, i]
        selected = len(i) // shape[1] if groups > 1 else 1
        if len(o) == 0:
            size = function(randn(2, shape[1] * groups, *size), cut.double(), None, groups=groups,
                            **options).shape[2:]  # fmt: skip
            expected = x.sum() * 0 + x.new_zeros(2, 0, *size)
        elif len(i) == 0:
            whole = function(x.new_zeros(2, shape[1], *size), cut[o], bias[o], **options)
            expected = whole
        else:
            expected = function(x, part, bias[o], groups=selected, **options)
    given = {"outputs": rows, "inputs": columns, "kernel": kernel, "groups": groups, **options}
    return [x, weight, bias], {**given, "masked": masked}, expected


@pytest.mark.parametrize("name", ["1d", "2d", "2d, dilated", "3d"])
@pytest.mark.parametrize("outputs", ["all", "prefix", "chunk", "list"])
@pytest.mark.parametrize("inputs", ["all", "prefix", "chunk", "list"])
@MODES
@WIDE
def test_convolution_equals_slicing(name, outputs, inputs, masked, dtype, device):
    leaves, given, expected = convolution_case(name, outputs, inputs, masked, dtype, device)
    agree(slices.convolution(*leaves, **given), expected, leaves, dtype)


@pytest.mark.parametrize("name", ["depthwise", "depthwise, doubled"])
@INPUTS
@MODES
@WIDE
def test_channels_of_a_depthwise_convolution_select_its_groups(name, inputs, masked, dtype, device):
    leaves, given, expected = convolution_case(name, "all", inputs, masked, dtype, device)
    agree(slices.convolution(*leaves, **given), expected, leaves, dtype)


@pytest.mark.parametrize("inputs", [slice(4), slice(2, 6), slice(None)], ids=str)
@MODES
def test_channels_select_whole_groups(inputs, masked, device):
    weight = randn(9, 2, 3, seed=1, device=device).requires_grad_()
    bias = randn(9, seed=2, device=device).requires_grad_()
    channels = torch.arange(6, device=device)[inputs]
    rows = torch.cat([torch.arange(3 * g, 3 * g + 3) for g in channels[::2].cpu() // 2])
    x = randn(2, 6 if masked else len(channels), 5, device=device).requires_grad_()
    if masked:
        expected = hidden(F.conv1d(hidden(x, 1, channels), weight, bias, groups=3), 1, rows)
    else:
        expected = F.conv1d(x, weight[rows], bias[rows], groups=len(channels) // 2)
    got = slices.convolution(x, weight, bias, inputs=inputs, groups=3, masked=masked)
    agree(got, expected, [x, weight, bias], torch.float64)


@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("inputs", ["all", "prefix", "list"])
@MODES
def test_a_kernel_is_cropped_around_its_centre(kernel, groups, inputs, masked, device):
    into = ((4, 4 // groups, 5, 5), groups, {"padding": kernel // 2})
    leaves, given, expected = convolution_case(
        "", "prefix", inputs, masked, torch.float64, device, kernel=kernel, into=into
    )
    agree(slices.convolution(*leaves, **given), expected, leaves, torch.float64)


@pytest.mark.parametrize("outputs", ["none", "prefix", "list"])
@pytest.mark.parametrize("inputs", ["none", "prefix", "list"])
@MODES
def test_convolutions_in_channels_last(outputs, inputs, masked, device):
    leaves, given, expected = convolution_case(
        "2d", outputs, inputs, masked, torch.float64, device, last=True
    )
    agree(slices.convolution(*leaves, **given), expected, leaves, torch.float64)


@INPUTS
@WIDE
@pytest.mark.parametrize("padding_idx", [None, 2, -1])
@pytest.mark.parametrize("kind", [torch.int64, torch.int32], ids=str)
def test_embedding_equals_slicing(inputs, dtype, padding_idx, kind, device):
    selection, columns = chosen(inputs, 6, device)
    weight = randn(9, 6, dtype=dtype, device=device).requires_grad_()
    tokens = torch.tensor([[1, 2, 2], [8, 1, 0]], dtype=kind, device=device)
    with poison_empty():
        got = slices.embedding(tokens, weight, columns=selection, padding_idx=padding_idx)
        expected = F.embedding(tokens, weight[:, columns], padding_idx)
        agree(got, expected, [weight], dtype)


@pytest.mark.parametrize("shape", [(), (0,), (500,)], ids=str)
@pytest.mark.parametrize("inputs", ["prefix", "list"])
def test_embedding_of_any_number_of_tokens(shape, inputs, device):
    selection, columns = chosen(inputs, 70, device)
    weight = randn(30, 70, device=device).requires_grad_()
    tokens = torch.randint(30, shape, generator=torch.Generator().manual_seed(0)).to(device)
    with poison_empty():
        got = slices.embedding(tokens, weight, columns=selection)
        agree(got, F.embedding(tokens, weight[:, columns]), [weight], torch.float64)


@pytest.mark.parametrize("selection", ["all", "prefix", "chunk", "list"])
@pytest.mark.parametrize("affine", [True, False])
@MODES
@WIDE
def test_layer_norm_equals_slicing(selection, affine, masked, dtype, device):
    features, places = chosen(selection, 7, device)
    weight, bias = (
        (randn(7, dtype=dtype, seed=s, device=device).requires_grad_() for s in (1, 2))
        if affine
        else (None, None)
    )
    width = 7 if masked else len(places)
    x = randn(3, 2, width, dtype=dtype, device=device).requires_grad_()
    if masked:
        expected = hidden(F.layer_norm(x, (7,), weight, bias), -1, places)
    else:
        parts = (weight[places], bias[places]) if affine else (None, None)
        expected = F.layer_norm(x, (width,), *parts)
    got = slices.layer_norm(x, weight, bias, features=features, size=7, masked=masked)
    agree(got, expected, [x, weight, bias] if affine else [x], dtype)


@pytest.mark.parametrize("channels", [slice(None), slice(4), slice(2, 6)], ids=str)
@MODES
def test_group_norm_equals_slicing(channels, masked, device):
    weight, bias = (randn(6, seed=s, device=device).requires_grad_() for s in (1, 2))
    places = torch.arange(6, device=device)[channels]
    x = randn(3, 6 if masked else len(places), 5, device=device).requires_grad_()
    if masked:
        expected = hidden(F.group_norm(x, 3, weight, bias), 1, places)
    else:
        expected = F.group_norm(x, len(places) // 2, weight[places], bias[places])
    got = slices.group_norm(x, 3, weight, bias, channels=channels, masked=masked)
    agree(got, expected, [x, weight, bias], torch.float64)


def test_group_norm_of_a_list_of_single_channels(device):
    places = torch.tensor([3, 0], device=device)
    weight, bias = (randn(4, seed=s, device=device).requires_grad_() for s in (1, 2))
    x = randn(3, 2, 5, device=device).requires_grad_()
    got = slices.group_norm(x, 4, weight, bias, channels=places)
    agree(got, F.group_norm(x, 2, weight[places], bias[places]), [x, weight, bias], torch.float64)


@pytest.mark.parametrize("selection", ["all", "prefix", "chunk", "list"])
@pytest.mark.parametrize("training", [True, False])
@MODES
@WIDE
def test_batch_norm_equals_slicing(selection, training, masked, dtype, device):
    channels, places = chosen(selection, 6, device)
    weight, bias = (randn(6, dtype=dtype, seed=s, device=device).requires_grad_() for s in (1, 2))
    mean = randn(6, dtype=dtype, seed=3, device=device)
    var = randn(6, dtype=dtype, seed=4, device=device) ** 2
    x = randn(4, 6 if masked else len(places), 3, dtype=dtype, device=device).requires_grad_()
    statistics, judged = (mean.clone(), var.clone()), (mean.clone(), var.clone())
    options = {"training": training, "momentum": 0.3}
    if masked:
        expected = hidden(F.batch_norm(x, *judged, weight, bias, **options), 1, places)
    else:
        parts = [v[places] for v in judged]
        expected = F.batch_norm(x, *parts, weight[places], bias[places], **options)
        for whole, part in zip(judged, parts, strict=True):
            whole[places] = part
    got = slices.batch_norm(
        x, *statistics, weight, bias, channels=channels, masked=masked, **options
    )
    agree(got, expected, [x, weight, bias], dtype)
    assert_close(statistics, judged, tolerance=TOLERANCE[dtype])


def test_norms_without_parameters_take_a_size(device):
    x = randn(4, 3, 5, device=device)
    got = slices.batch_norm(x, None, None, None, None, channels=3, size=6, training=True)
    assert_close(got, F.batch_norm(x, None, None, training=True))
    assert_close(slices.group_norm(x, 6, None, None, channels=3, size=6), F.group_norm(x, 3))


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


@pytest.mark.parametrize("outputs", ["prefix", "list"])
@MODES
def test_transforms_of_functions_see_through(outputs, masked, device):
    leaves, given, _ = linear_case(outputs, "prefix", masked, torch.float64, device)
    x, *rest = (v.detach() for v in leaves)

    def loss(weight, bias, x):
        return (slices.linear(x, weight, bias, **given) ** 2).sum()

    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, None, 0))(*rest, x)
    for row, got in zip(x, each, strict=True):
        weight = rest[0].clone().requires_grad_()
        (expected,) = torch.autograd.grad(loss(weight, rest[1], row), weight)
        assert_close(got, expected)


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


class Watching(torch.overrides.TorchFunctionMode):
    """Notes the functions that are called."""

    def __init__(self):
        self.seen = set()

    def __torch_function__(self, function, types, args=(), kwargs=None):
        self.seen.add(function)
        return function(*args, **(kwargs or {}))


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


@pytest.mark.parametrize("outputs", ["all", "prefix", "chunk"])
def test_small_weights_go_through_plain_slices_to_the_same_bits(outputs, monkeypatch, device):
    for case in (linear_case, partial(convolution_case, "2d")):
        function = slices.linear if case is linear_case else slices.convolution
        found = []
        for limit in (-1, 1 << 18):
            monkeypatch.setattr(slices, "SMALL", limit)
            leaves, given, _ = case(outputs, "chunk", False, torch.float64, device)
            y = function(*leaves, **given)
            found.append([y, *torch.autograd.grad((y**2).sum(), leaves)])
        for a, b in zip(*found, strict=True):
            assert_close(a, b)


@pytest.mark.parametrize("outputs", ["prefix", "list"])
@MODES
def test_autocast_converts(outputs, masked, device):
    leaves, given, expected = linear_case(outputs, "prefix", masked, torch.float32, device)
    with torch.autocast(device, torch.bfloat16):
        got = slices.linear(*leaves, **given)
    assert got.dtype == torch.bfloat16
    assert_close(got, expected, tolerance=2e-2)


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


X, W, K, G = randn(2, 3), randn(4, 3), randn(4, 3, 5, 5), randn(4, 2, 3)
IMAGE, V = randn(2, 3, 6, 6), randn(3)
TOKENS = torch.tensor([0, 3])


def listed(*places):
    return torch.tensor(places, dtype=torch.int64)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: slices.linear(X, V), "weight must be [outputs, inputs], got [3]"),
        (lambda: slices.linear(X, W, V), "bias must be [4], got [3]"),
        (
            lambda: slices.linear(X, W, randn(4).float()),
            "bias must be [4] of the weight's dtype, got Float [4]",
        ),
        (
            lambda: slices.convolution(IMAGE, K, randn(4).float()),
            "bias must be [4] of the weight's dtype, got Float [4]",
        ),
        (lambda: slices.linear(X, W.float()), "one dtype, got Double and Float"),
        (lambda: slices.linear(X, W, outputs=5), "outputs must be from 0 to 4, got 5"),
        (lambda: slices.linear(X, W, outputs=-1), "outputs must be from 0 to 4, got -1"),
        (lambda: slices.linear(X, W, outputs=2.0), "or an int64 tensor, got float"),
        (
            lambda: slices.linear(X, W, outputs=slice(0, 4, 2)),
            "outputs must be a slice of step 1 from 0 to 4, got slice(0, 4, 2)",
        ),
        (lambda: slices.linear(X, W, outputs=slice(1, 9)), "got slice(1, 9, None)"),
        (
            lambda: slices.linear(X, W, outputs=listed(0, 2, 0)),
            "outputs must be without repeats, got 1 repeats",
        ),
        (lambda: slices.linear(X, W, outputs=listed(0, 4)), "outputs must be from 0 to 3, got 4"),
        (lambda: slices.linear(X, W, outputs=listed(-1)), "outputs must be from 0 to 3, got -1"),
        (
            lambda: slices.linear(X, W, outputs=listed(0).int()),
            "outputs must be int64 [n], got Int [1]",
        ),
        (
            lambda: slices.linear(X, W, inputs=listed(1, 1)),
            "inputs must be without repeats, got 1 repeats",
        ),
        (lambda: slices.linear(X, W, inputs=2), "x must have the selected 2 values in dimension"),
        (
            lambda: slices.linear(X[:, :2], W, inputs=2, masked=True),
            "x must have all 3 values in dimension -1, got 2",
        ),
        (
            lambda: slices.convolution(IMAGE, X),
            "weight must be [outputs, inputs / groups, *kernel]",
        ),
        (lambda: slices.convolution(X, K), "x must be [B, inputs, *size]"),
        (lambda: slices.convolution(IMAGE, K, V), "bias must be [4], got [3]"),
        (
            lambda: slices.convolution(IMAGE, K, kernel=4),
            "kernel must be odd, at most the",
        ),
        (lambda: slices.convolution(IMAGE, K, kernel=7), "odd [5, 5], got 7"),
        (lambda: slices.convolution(IMAGE, K, stride=[1]), "stride must be an int or 2 of them"),
        (
            lambda: slices.convolution(IMAGE, K, inputs=2),
            "x must have the selected 2 values in dimension 1, got 3",
        ),
        (
            lambda: slices.convolution(IMAGE, G, groups=2, outputs=2),
            "outputs must be None where there are groups, got 2",
        ),
        (
            lambda: slices.convolution(IMAGE, G, groups=2, inputs=3),
            "inputs must be whole groups of 2 channels, got 3 from 0",
        ),
        (
            lambda: slices.convolution(IMAGE, G, groups=2, inputs=listed(0)),
            "inputs must be None, an int or a slice where groups have several input channels",
        ),
        (lambda: slices.embedding(TOKENS, V), "weight must be [rows, columns], got [3]"),
        (lambda: slices.embedding(TOKENS, W, columns=4), "columns must be from 0 to 3, got 4"),
        (lambda: slices.embedding(TOKENS.double(), W), "tokens must be int64 or int32, got Double"),
        (
            lambda: slices.embedding(TOKENS, W, columns=listed(1, 1)),
            "columns must be without repeats",
        ),
        (
            lambda: slices.embedding(TOKENS, W, padding_idx=4),
            "padding_idx must be a row below 4, got 4",
        ),
        (lambda: slices.layer_norm(X, V, V, features=2), "x must have 2 values in dimension -1"),
        (lambda: slices.layer_norm(X, None, None), "size must be given without weight and bias"),
        (
            lambda: slices.group_norm(IMAGE[:, :1], 1, V, V, channels=1),
            "channels must be whole groups of 3 channels, got 1 from 0",
        ),
        (
            lambda: slices.group_norm(IMAGE[:, :1], 1, V, V, channels=listed(0)),
            "channels must be whole groups of 3 channels, got a list of places",
        ),
        (
            lambda: slices.batch_norm(IMAGE, None, None, V, V, channels=2),
            "x must have 2 values in dimension 1, got 3",
        ),
    ],
)
def test_a_wrong_argument_is_named(call, text):
    with pytest.raises(RuntimeError) as caught:
        call()
    assert text in str(caught.value)


def test_a_token_that_the_table_does_not_have_is_refused():
    with pytest.raises((RuntimeError, IndexError), match="4|out of range"):
        slices.embedding(torch.tensor([4]), W, columns=2)
