"""The gram ops: against gradients that are formed one by one in float64, and themselves."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from sigeo_ext import gram
from sigeo_ext.gram import op, reference
from sigeo_ext.testing import TOLERANCE, assert_close, poison_empty, threads
from tests.cases import CONVOLUTIONS, DTYPES, LAYERS, needs_kernels, tensors

FLOATS = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
ROUTES = pytest.mark.parametrize("route", ["gram", "direct", "auto"])
FUNCTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def by_loop(function, x, d, weight, unit=1):
    """The Gram matrix of units' gradients of a layer's weight, by autograd in float64."""
    rows = []
    for begin in range(0, len(x), unit):
        w = weight.double().detach().requires_grad_()
        y = function(x[begin : begin + unit].double(), w)
        (g,) = torch.autograd.grad(y, w, d[begin : begin + unit].double())
        rows.append(g.flatten())
    jacobian = torch.stack(rows)
    return jacobian @ jacobian.t()


@pytest.mark.parametrize("case", CONVOLUTIONS)
@FLOATS
@ROUTES
@pytest.mark.parametrize("memory", ["contiguous", "channels_last", "strided"])
def test_convolutions_equal_the_loop(case, dtype, route, memory):
    shape, kernel, options = CONVOLUTIONS[case]
    dims = len(kernel) - 2
    function = FUNCTIONS[dims]
    x, weight = torch.randn(shape).to(dtype), torch.randn(kernel)
    d = torch.randn_like(function(x, weight.to(dtype), **options))
    expected = by_loop(lambda a, w: function(a, w, **options), x, d, weight)
    if memory == "channels_last" and dims > 1:
        order = torch.channels_last if dims == 2 else torch.channels_last_3d
        x, d = x.contiguous(memory_format=order), d.contiguous(memory_format=order)
    if memory == "strided":
        x = torch.stack([x, x], -1)[..., 0]
    got = gram.convolution(x, d, kernel[2:], route=route, **options)
    assert got.dtype == torch.float64
    assert_close(got, expected, tolerance=TOLERANCE[dtype])


@FLOATS
@ROUTES
@pytest.mark.parametrize(("dilation", "extended"), [(1, 1), (3, 2)])
def test_transposed_convolutions_equal_the_loop(dilation, extended, dtype, route):
    x, weight = torch.randn(4, 6, 3, 3).to(dtype), torch.randn(6, 4, 3, 3)
    options = {"stride": 2, "padding": 1, "dilation": dilation}

    def run(a, w):
        return F.conv_transpose2d(a, w, output_padding=extended, **options)

    d = torch.randn_like(run(x, weight.to(dtype)))
    expected = by_loop(run, x, d, weight)
    got = gram.convolution(x, d, (3, 3), transposed=True, route=route, **options)
    assert_close(got, expected, tolerance=TOLERANCE[dtype])


@pytest.mark.parametrize("positions", [None, 1, 7, 64])
@pytest.mark.parametrize("unit", [1, 2])
@FLOATS
@ROUTES
def test_linear_layers_equal_the_loop(positions, unit, dtype, route):
    shape = (6,) if positions is None else (6, positions)
    x, d = torch.randn(*shape, 20).to(dtype), torch.randn(*shape, 35).to(dtype)
    expected = by_loop(F.linear, x, d, torch.randn(35, 20), unit)
    assert_close(gram.linear(x, d, unit=unit, route=route), expected, tolerance=TOLERANCE[dtype])


@ROUTES
def test_units_of_several_samples(route):
    x, d = torch.randn(12, 5, 4, 4), torch.randn(12, 9, 4, 4)
    expected = by_loop(lambda a, w: F.conv2d(a, w, padding=1), x, d, torch.randn(9, 5, 3, 3), 3)
    got = gram.convolution(x, d, (3, 3), padding=1, unit=3, route=route)
    assert_close(got, expected, tolerance=1e-5)
    with pytest.raises(RuntimeError, match="unit must divide the 12 samples, got 5"):
        gram.convolution(x, d, (3, 3), padding=1, unit=5, route=route)


@ROUTES
def test_linear_layers_read_samples_and_positions_in_either_order(route):
    x, d = torch.randn(7, 5, 70).transpose(0, 1), torch.randn(7, 5, 20).transpose(0, 1)
    expected = gram.linear(x.contiguous(), d.contiguous(), route=route)
    assert_close(gram.linear(x, d, route=route), expected, tolerance=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@ROUTES
def test_narrow_inputs_are_widened(dtype, route):
    x, d = torch.randn(5, 4, 4, 4).to(dtype), torch.randn(5, 8, 4, 4).to(dtype)
    expected = by_loop(lambda a, w: F.conv2d(a, w, padding=1), x, d, torch.randn(8, 4, 3, 3))
    assert_close(gram.convolution(x, d, (3, 3), padding=1, route=route), expected, tolerance=1e-5)


@settings(max_examples=60, deadline=None)
@given(
    batch=st.integers(1, 9),
    inputs=st.integers(1, 9),
    outputs=st.integers(1, 40),
    size=st.integers(1, 6),
    kernel=st.integers(1, 4),
    stride=st.integers(1, 3),
    padding=st.integers(0, 3),
    dilation=st.integers(1, 2),
)
def test_both_routes_equal_the_reference_on_any_shapes(
    batch, inputs, outputs, size, kernel, stride, padding, dilation
):
    out = (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
    if out < 1:
        return
    x, d = torch.randn(batch, inputs, size, size), torch.randn(batch, outputs, out, out)
    lists = [[n, n] for n in (kernel, stride, padding, dilation)]
    expected = reference.convolution(x.movedim(1, -1), d.movedim(1, -1), *lists, 1, 1)
    for route in ("gram", "direct"):
        got = gram.convolution(
            x, d, lists[0], stride=stride, padding=padding, dilation=dilation, route=route
        )
        assert_close(got, expected, tolerance=1e-5)


def test_route_counts_multiply_adds():
    assert gram.route(32, 1, 64 * 9, 64) == "gram"
    assert gram.route(32, 49, 64 * 9, 64) == "direct"
    assert gram.route(32, 16, 512 * 9, 512) == "direct"
    assert gram.route(32, 4, 512 * 9, 512) == "gram"
    assert gram.route(32, 64, 128, 128) == "direct"


def test_the_reference_works_in_blocks_of_units(monkeypatch):
    x, d = torch.randn(7, 5, 5, 3), torch.randn(7, 5, 5, 4)
    geometry = ([3, 3], [1, 1], [1, 1], [1, 1], 1, 1)
    whole = reference.convolution(x, d, *geometry)
    monkeypatch.setattr(reference, "_AT_ONCE", 80)
    assert_close(reference.convolution(x, d, *geometry), whole, tolerance=1e-12)


@pytest.mark.parametrize("entries", [0, 1, 40, 700])
@FLOATS
def test_embeddings_equal_the_dense_product(entries, dtype):
    units, rows, width = 5, 11, 6
    row, unit = torch.randint(0, rows, (entries,)), torch.randint(0, units, (entries, 2))[:, 0]
    gradients = torch.randn(entries, width, dtype=dtype)
    dense = torch.zeros(units, rows, width, dtype=torch.float64)
    kept = row != 3
    dense.index_put_((unit[kept], row[kept]), gradients[kept].double(), accumulate=True)
    got = gram.embedding(row, gradients, units=unit, count=units, skipped=3)
    flat = dense.flatten(1)
    assert_close(got, flat @ flat.t(), tolerance=TOLERANCE[dtype])


@pytest.mark.parametrize("layers", LAYERS.values(), ids=LAYERS.keys())
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("count", [1, 2, 5])
def test_lists_equal_flattened_vectors(layers, dtype, count, device):
    vectors = [tensors(layers, dtype, seed=i, device=device) for i in range(count)]
    flat = torch.stack(
        [torch.cat([t.double().flatten() for t in v] or [torch.zeros(0)]) for v in vectors]
    ).double()
    tolerance = 1e-12 if dtype == torch.float64 else 1e-6
    assert_close(gram.dot(vectors).cpu(), (flat @ flat.t()).cpu(), tolerance=tolerance)
    distances = (flat[:, None] - flat[None]).square().sum(2)
    assert_close(gram.sq_distance(vectors).cpu(), distances.cpu(), tolerance=tolerance)


def test_lists_take_holes_and_strided_tensors():
    a, b = torch.randn(40, 30), torch.randn(30, 40).t()
    got = gram.dot([[a, None], [b, torch.ones(3)], [None, torch.ones(3)]])
    flat = torch.zeros(3, 1203, dtype=torch.float64)
    flat[0, :1200], flat[1, :1200] = a.double().flatten(), b.double().flatten()
    flat[1:, 1200:] = 1
    assert_close(got, flat @ flat.t(), tolerance=1e-6)


@FLOATS
def test_the_reference_of_embeddings_works_in_blocks_of_rows(dtype, monkeypatch):
    row, unit = torch.randint(0, 11, (40,)), torch.randint(0, 5, (40,))
    arguments = (row, unit, torch.randn(40, 6, dtype=dtype), 5, 1, 3)
    whole = reference.embedding(*arguments)
    assert_close(whole, op.gram_embedding(*arguments), tolerance=TOLERANCE[dtype])
    monkeypatch.setattr(reference, "_AT_ONCE", 90)  # three rows of the table
    assert_close(reference.embedding(*arguments), whole, tolerance=1e-12)


class Products(TorchDispatchMode):
    """Notes the dtypes that matrix products and convolutions are given."""

    def __init__(self):
        super().__init__()
        self.dtypes = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket.__name__ in ("mm", "bmm", "addmm", "convolution_backward"):
            self.dtypes += [a.dtype for a in args if isinstance(a, torch.Tensor)]
        return func(*args, **(kwargs or {}))


def test_references_multiply_in_float64_which_tf32_does_not_touch():
    x, d = torch.randn(4, 3, 5, 5), torch.randn(4, 6, 5, 5)
    geometry = ([3, 3], [1, 1], [1, 1], [1, 1], 1, 1)
    with Products() as seen:
        gram.convolution(x, d, (3, 3), padding=1, route="gram")
        gram.linear(x.flatten(1), d.flatten(1), route="gram")
        gram.rows(x)
        reference.convolution(x.movedim(1, -1), d.movedim(1, -1), *geometry)
        reference.lists([x, x + 1], 2, False)
        reference.embedding(torch.arange(4), None, d.flatten(1), 4, 1, -1)
        reference.hamming(gram.pack_signs(x))
    assert len(seen.dtypes) > 14
    assert set(seen.dtypes) == {torch.float64}


def test_cosines():
    vectors = torch.randn(4, 100)
    got = gram.cosine(list(vectors))
    expected = F.cosine_similarity(vectors[:, None], vectors[None], dim=2)
    assert_close(got, expected, tolerance=1e-6)
    assert gram.cosine([torch.ones(3), torch.zeros(3)]).isnan().tolist() == [
        [False, True],
        [True, True],
    ]


def test_small_distances_keep_their_digits():
    center = torch.randn(1000, dtype=torch.float64) * 1e4
    step = torch.randn(1000, dtype=torch.float64) * 1e-4
    got = gram.sq_distance([center, center + step])[0, 1]
    assert got.item() == pytest.approx(((center + step) - center).square().sum().item(), rel=1e-12)


@pytest.mark.parametrize("size", [1, 7, 8, 64, 1000])
def test_hamming_counts_different_signs(size, device):
    values = torch.randn(9, size, device=device)
    codes = gram.pack_signs(values)
    assert codes.shape == (9, math.ceil(size / 8))
    signs = values > 0
    expected = (signs[:, None] != signs[None]).sum(2)
    assert torch.equal(gram.hamming(codes), expected)
    assert torch.equal(reference.hamming(codes), expected)


def test_hamming_gives_the_kernel_of_naswot():
    codes = (torch.randn(6, 50) > 0).double()
    agreeing = codes @ codes.t() + (1 - codes) @ (1 - codes).t()
    assert torch.equal(50 - gram.hamming(gram.pack_signs(codes)), agreeing.long())


def test_results_are_symmetric_and_positive():
    x, d = torch.randn(9, 16, 8, 8), torch.randn(9, 40, 8, 8)
    got = gram.convolution(x, d, (3, 3), padding=1, route="direct")
    assert torch.equal(got, got.t())
    assert torch.linalg.eigvalsh(got)[0] > 0


@needs_kernels
@pytest.mark.parametrize("channels", [16, 96])
def test_same_bits_for_any_number_of_threads(channels):
    x, d = torch.randn(9, channels, 6, 6), torch.randn(9, channels, 6, 6)
    vectors = [tensors(LAYERS["chunks"], seed=i) for i in range(3)]

    def run():
        convolution = gram.convolution(x, d, (3, 3), padding=1, route="direct")
        return [convolution, gram.dot(vectors), gram.sq_distance(vectors)]

    with threads(1):
        first = run()
    for count in (1, 2, 3, 4):
        with threads(count):
            assert all(torch.equal(a, b) for a, b in zip(first, run(), strict=True))


def test_every_entry_is_written_and_nan_is_kept():
    x, d = torch.randn(3, 4, 2, 2), torch.randn(3, 5, 2, 2)
    d[1, 0, 0, 0] = torch.nan
    with poison_empty():
        got = gram.convolution(x, d, (5, 5), padding=2, route="direct")
        empty = gram.dot([[torch.zeros(0)], [torch.zeros(0)]])
    assert got.isnan().tolist() == [[False, True, False], [True] * 3, [False, True, False]]
    assert (empty == 0).all()


def test_no_samples():
    x, d = torch.randn(0, 4, 5, 5), torch.randn(0, 6, 5, 5)
    for route in ("auto", "direct"):
        assert gram.convolution(x, d, (3, 3), padding=1, route=route).shape == (0, 0)


@pytest.mark.parametrize("route", ["auto", "gram", "direct"])
def test_samples_without_positions_have_products_of_zero(route):
    found = gram.linear(torch.randn(4, 0, 3), torch.randn(4, 0, 5), route=route)
    assert found.shape == (4, 4) and not found.any()
    for layer in (gram.convolution, gram.linear):
        geometry = [[1]] if layer is gram.convolution else []
        with pytest.raises(RuntimeError, match="samples"):
            layer(torch.randn(4, 2, 3), torch.randn(3, 2, 3), *geometry, route=route)


def test_spectrum_says_what_is_resolved():
    jacobian = torch.randn(6, 50, dtype=torch.float64)
    k = jacobian @ jacobian.t()
    values = torch.linalg.eigvalsh(k)
    found = gram.spectrum(k)
    assert found.resolved
    assert found.smallest == pytest.approx(values[0].item())
    assert found.condition == pytest.approx((values[-1] / values[0]).item())
    assert found.trace == pytest.approx(k.trace().item())
    jacobian[5] = jacobian[4]
    k = jacobian @ jacobian.t()
    found = gram.spectrum(k)
    assert not found.resolved
    bound = 6 * torch.finfo(torch.float32).eps * found.largest
    assert found.smallest == pytest.approx(bound)
    assert math.isnan(gram.spectrum(k * torch.nan).smallest)
    assert gram.spectrum(torch.zeros(2, 2)).condition == math.inf
    with pytest.raises(ValueError, match=r"^gram.spectrum: gram must be \[count, count\]"):
        gram.spectrum(torch.zeros(2, 3))


SAMPLES = {
    "gram_lists": lambda dtype: (
        [torch.randn(4, dtype=dtype), None, torch.randn(4, dtype=dtype), torch.ones(2)],
        2,
        False,
    ),
    "gram_convolution": lambda dtype: (
        torch.randn(4, 5, 6, 3, dtype=dtype),
        torch.randn(4, 5, 6, 7, dtype=dtype),
        *([3, 3], [1, 1], [1, 1], [1, 1], 1, 2),
    ),
    "gram_embedding": lambda dtype: (
        torch.tensor([3, 1, 3, 3, 0, 7]),
        torch.tensor([0, 1, 0, 2, 1, 2]),
        torch.randn(6, 4, dtype=dtype),
        *(3, 1, 7),
    ),
    "gram_hamming": lambda dtype: (torch.randint(0, 256, (4, 9), dtype=torch.uint8),),
}


@pytest.mark.parametrize("name", SAMPLES)
@FLOATS
def test_opcheck(name, dtype):
    torch.library.opcheck(getattr(torch.ops.sigeo_ext, name).default, SAMPLES[name](dtype))


@pytest.mark.parametrize(("kernel", "units"), [(5, 128), (7, 96), (3, 200)])
def test_depthwise_kernels_whose_taps_do_not_fit_at_once(kernel, units):
    x, d = torch.randn(units, 40, 8, 8), torch.randn(units, 40, 8, 8)
    pad = kernel // 2
    lists = [[kernel] * 2, [1, 1], [pad] * 2, [1, 1]]
    expected = reference.convolution(x.movedim(1, -1), d.movedim(1, -1), *lists, 40, 1)
    got = gram.convolution(x, d, (kernel, kernel), padding=pad, groups=40)
    assert_close(got, expected, tolerance=1e-5)


def test_many_units_take_fewer_partial_results():
    x, d = torch.randn(700, 3), torch.randn(700, 5)
    got = gram.linear(x, d, route="direct")
    assert_close(got, (x @ x.t()).double() * (d @ d.t()).double(), tolerance=1e-5)
