"""The sample_moments ops: against one-sample-at-a-time autograd in float64, and themselves."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from sigeo_ext import sample_moments as sm
from sigeo_ext.sample_moments import op, positions, reference
from sigeo_ext.testing import TOLERANCE, assert_close, poison_empty, threads
from tests.cases import CONVOLUTIONS, needs_kernels

FLOATS = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
EVERYTHING = sm.STATISTICS


def by_loop(gradients, unit=1, segments=None):
    """The statistics of [samples, *shape] gradients, spelled out in float64."""
    g = gradients.double().unflatten(0, (-1, unit)).sum(1)
    parts = g.unflatten(0, (segments or 1, -1))
    result = {
        "sum": parts.sum(1),
        "abs_sum": parts.abs().sum(1),
        "sq_sum": (parts**2).sum(1),
        "m2": ((parts - parts.mean(1, keepdim=True)) ** 2).sum(1),
        "sign_sum": parts.sign().sum(1),
    }
    result = {name: v if segments else v[0] for name, v in result.items()}
    return result | {"sq_norm": (g**2).flatten(1).sum(1)}


def assert_statistics(got, expected, tolerance):
    for name, value in expected.items():
        assert_close(getattr(got, name), value, tolerance=0 if name == "sign_sum" else tolerance)


def weight_gradients(x, d, weight, function):
    """Each sample's gradient of a layer's weight, by autograd."""
    rows = []
    for b in range(len(x)):
        w = weight.double().detach().requires_grad_()
        y = function(x[b : b + 1].double(), w)
        (g,) = torch.autograd.grad(y, w, d[b : b + 1].double())
        rows.append(g)
    return torch.stack(rows)


def tolerance_of(dtype):
    return 1e-10 if dtype == torch.float64 else TOLERANCE[dtype]


FUNCTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


@pytest.mark.parametrize("case", CONVOLUTIONS)
@FLOATS
@pytest.mark.parametrize("memory", ["contiguous", "channels_last", "strided"])
def test_convolutions_equal_the_loop(case, dtype, memory):
    generator = torch.Generator().manual_seed(0)
    shape, kernel, options = CONVOLUTIONS[case]
    dims = len(kernel) - 2
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    weight = torch.randn(kernel, generator=generator, dtype=torch.float64)
    y = FUNCTIONS[dims](x, weight, **options)
    d = torch.randn(y.shape, generator=generator, dtype=torch.float64)
    expected = by_loop(
        weight_gradients(x, d, weight, lambda a, w: FUNCTIONS[dims](a, w, **options))
    )
    x, d = x.to(dtype), d.to(dtype)
    if memory == "channels_last" and dims > 1:
        order = torch.channels_last if dims == 2 else torch.channels_last_3d
        x, d = x.contiguous(memory_format=order), d.contiguous(memory_format=order)
    if memory == "strided":
        x = torch.stack([x, x], -1)[..., 0]
    got = sm.convolution(x, d, kernel[2:], want=EVERYTHING, **options)
    assert_statistics(got, expected, tolerance_of(dtype))


@FLOATS
@pytest.mark.parametrize(("dilation", "extended"), [(1, 1), (3, 2)])
def test_transposed_convolutions_equal_the_loop(dilation, extended, dtype):
    x = torch.randn(4, 6, 5, 5, dtype=torch.float64)
    weight = torch.randn(6, 4, 3, 3, dtype=torch.float64)
    options = {"stride": 2, "padding": 1, "groups": 2, "dilation": dilation}

    def run(a, w):
        return F.conv_transpose2d(a, w, output_padding=extended, **options)

    d = torch.randn_like(run(x, weight))
    expected = by_loop(weight_gradients(x, d, weight, run))
    x, d = x.to(dtype), d.to(dtype)
    got = sm.convolution(x, d, (3, 3), transposed=True, want=EVERYTHING, **options)
    assert_statistics(got, expected, tolerance_of(dtype))


@pytest.mark.parametrize("positions", [None, 1, 7, 64, 5000])
@FLOATS
def test_linear_layers_equal_the_loop(positions, dtype):
    shape = (6,) if positions is None else (6, positions)
    x, d = torch.randn(*shape, 20).to(dtype), torch.randn(*shape, 35).to(dtype)
    weight = torch.randn(35, 20)
    expected = by_loop(weight_gradients(x, d, weight, F.linear))
    assert_statistics(sm.linear(x, d, want=EVERYTHING), expected, tolerance_of(dtype))


@pytest.mark.parametrize(("unit", "segments"), [(2, None), (3, None), (1, 4), (2, 3), (12, None)])
@FLOATS
def test_units_and_segments(unit, segments, dtype):
    x, d = torch.randn(12, 5, 6, 6).to(dtype), torch.randn(12, 9, 6, 6).to(dtype)
    weight = torch.randn(9, 5, 3, 3)
    gradients = weight_gradients(x, d, weight, lambda a, w: F.conv2d(a, w, padding=1))
    got = sm.convolution(x, d, (3, 3), padding=1, unit=unit, segments=segments, want=EVERYTHING)
    assert_statistics(got, by_loop(gradients, unit, segments), tolerance_of(dtype))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_narrow_inputs_give_wide_statistics(dtype):
    x, d = torch.randn(5, 4, 6, 6).to(dtype), torch.randn(5, 8, 6, 6).to(dtype)
    weight = torch.randn(8, 4, 3, 3)
    expected = by_loop(weight_gradients(x, d, weight, lambda a, w: F.conv2d(a, w, padding=1)))
    got = sm.convolution(x, d, (3, 3), padding=1, want=EVERYTHING)
    assert got.abs_sum.dtype == torch.float32
    assert_statistics(got, expected, 1e-5)


@settings(max_examples=60, deadline=None)
@given(
    batch=st.integers(1, 9),
    inputs=st.integers(1, 9),
    outputs=st.integers(1, 40),
    size=st.integers(1, 7),
    kernel=st.integers(1, 4),
    stride=st.integers(1, 3),
    padding=st.integers(0, 3),
    dilation=st.integers(1, 2),
    want=st.integers(1, 63),
)
def test_compiled_equals_reference_on_any_shapes(
    batch, inputs, outputs, size, kernel, stride, padding, dilation, want
):
    out = (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
    if out < 1:
        return
    # Whole numbers, whose sums are exact: of a few random ones nothing but rounding may be left.
    x, d = (
        torch.randint(-4, 5, shape).float()
        for shape in ((batch, size, inputs), (batch, out, outputs))
    )
    given_ = (x, d, [kernel], [stride], [padding], [dilation], 1, 1, 1, want, 0.5)
    got = op.sample_moments_convolution(*given_)
    assert_close(got, reference.convolution(*given_), tolerance=1e-5)


@pytest.mark.parametrize(("unit", "segments"), [(1, None), (2, 3), (4, None)])
@FLOATS
def test_rows_equal_the_loop(unit, segments, dtype):
    gradients = torch.randn(12, 3, 7).to(dtype)
    got = sm.rows(gradients, unit=unit, segments=segments, want=EVERYTHING)
    assert_statistics(got, by_loop(gradients, unit, segments), tolerance_of(dtype))


def test_a_factor_scales_all_but_the_sum():
    x, d = torch.randn(7, 6, 5, 5), torch.randn(7, 20, 5, 5)
    options = {"padding": 1, "want": EVERYTHING}
    plain = sm.convolution(x, d, (3, 3), **options)
    scaled = sm.convolution(x, d, (3, 3), factor=4.0, **options)
    power = {"sum": 1, "abs_sum": 4, "sq_sum": 16, "m2": 16, "sign_sum": 1, "sq_norm": 16}
    for name, value in plain._asdict().items():
        assert torch.equal(getattr(scaled, name), value * power[name])


def test_a_subset_of_statistics_has_the_bits_of_all():
    x, d = torch.randn(7, 6, 5, 5), torch.randn(7, 20, 5, 5)
    everything = sm.convolution(x, d, (3, 3), padding=1, want=EVERYTHING)
    for name in EVERYTHING:
        alone = sm.convolution(x, d, (3, 3), padding=1, want=[name])
        assert torch.equal(getattr(alone, name), getattr(everything, name))
        assert sum(value is not None for value in alone) == 1


@needs_kernels
@pytest.mark.parametrize("channels", [16, 96])
def test_same_bits_for_any_number_of_threads(channels):
    x, d = torch.randn(9, channels, 6, 6), torch.randn(9, channels, 6, 6)

    def run():
        return sm.convolution(x, d, (3, 3), padding=1, want=EVERYTHING)

    with threads(1):
        first = run()
    for count in (1, 2, 3, 4):
        with threads(count):
            assert all(torch.equal(a, b) for a, b in zip(first, run(), strict=True))


def test_every_entry_is_written():
    x, d = torch.randn(3, 4, 2, 2), torch.randn(3, 5, 2, 2)
    with poison_empty():
        got = sm.convolution(x, d, (5, 5), padding=2, want=EVERYTHING)
        scaled = sm.scale(x.flatten(2), d[:, :4].flatten(2), channels_last=False)
    assert all(torch.isfinite(value).all() for value in got)
    assert torch.isfinite(scaled.shift).all()


def test_what_is_not_finite_reaches_the_statistics():
    x, d = torch.randn(3, 4, 5, 5), torch.randn(3, 6, 5, 5)
    d[1, 2, 0, 0] = torch.nan
    got = sm.convolution(x, d, (3, 3), padding=1, want=EVERYTHING)
    for name, value in got._asdict().items():
        assert value.isnan().any(), name
    assert got.sq_norm.isnan().tolist() == [False, True, False]


def test_no_samples_give_zeros():
    got = sm.linear(torch.randn(0, 3, 4), torch.randn(0, 3, 5), want=EVERYTHING)
    assert got.sq_norm.shape == (0,)
    assert all((value == 0).all() for value in got)


@pytest.mark.parametrize("statistics", ["channel", "sample", "position", "none"])
@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("sizes", [(3, 50, 16), (4, 7, 37), (2, 1, 5), (5, 130, 64)])
@FLOATS
def test_scale_equals_reference(sizes, channels_last, statistics, dtype):
    samples, positions, channels = sizes
    if statistics == "position" and not channels_last:
        pytest.skip("statistics of positions come with channels last")
    shape = sizes if channels_last else (samples, channels, positions)
    x, d = torch.randn(shape, dtype=dtype), torch.randn(shape, dtype=dtype)
    of = {
        "channel": (channels,),
        "sample": (samples, channels),
        "position": (samples, positions, 1),
    }
    mean = rstd = None
    if statistics != "none":
        mean = torch.randn(of[statistics], dtype=dtype)
        rstd = torch.rand(of[statistics], dtype=dtype) + 0.5
    factor = torch.randn(channels, dtype=dtype)
    got = op.sample_moments_scale(x, d, mean, rstd, factor, channels_last, True)
    expected = reference.scale(x, d, mean, rstd, factor, channels_last, True)
    assert_close(got, expected, tolerance=tolerance_of(dtype))


@pytest.mark.parametrize("entries", [0, 1, 40, 700])
def test_embeddings_equal_the_dense_loop(entries):
    units, rows, width = 5, 11, 6
    generator = torch.Generator().manual_seed(entries)
    row = torch.randint(0, rows, (entries,), generator=generator)
    unit = torch.randint(0, units, (entries,), generator=generator)
    gradients = torch.randn(entries, width, generator=generator)
    dense = torch.zeros(units, rows, width, dtype=torch.float64)
    dense.index_put_((unit, row), gradients.double(), accumulate=True)
    expected = by_loop(dense)
    touched, got = sm.embedding(row, gradients, units=unit, count=units, want=EVERYTHING)
    assert touched.tolist() == sorted(set(row.tolist()))
    for name, value in expected.items():
        found = getattr(got, name)
        if name != "sq_norm":
            rest = torch.ones(rows, dtype=torch.bool)
            rest[touched] = False
            assert (value[rest] == 0).all()
            value = value[touched]
        assert_close(found, value, tolerance=1e-5)


def test_embedding_entries_in_order_and_a_row_that_is_skipped():
    row = torch.tensor([2, 5, 2, 2, 5, 9])
    gradients = torch.randn(6, 3)
    given_ = (row, None, gradients, 3, 2, 9, 63, 2.0)
    got, expected = op.sample_moments_embedding(*given_), reference.embedding(*given_)
    assert got[0].tolist() == [2, 5]
    assert_close(got[1:], expected[1:], tolerance=1e-6)
    with pytest.raises(RuntimeError, match=r"units\[0\] must be from 0 to 2, got 7"):
        op.sample_moments_embedding(row, row.clamp_min(7), gradients, 3, 2, 9, 63, 1.0)


SAMPLES = {
    "sample_moments_convolution": lambda dtype: (
        torch.randn(4, 5, 6, 3, dtype=dtype),
        torch.randn(4, 5, 6, 7, dtype=dtype),
        [3, 3],
        [1, 1],
        [1, 1],
        [1, 1],
        1,
        2,
        2,
        63,
        1.5,
    ),
    "sample_moments_embedding": lambda dtype: (
        torch.tensor([3, 1, 3, 3, 0, 7]),
        torch.tensor([0, 1, 0, 2, 1, 2]),
        torch.randn(6, 4, dtype=dtype),
        3,
        1,
        7,
        63,
        1.5,
    ),
    "sample_moments_tables": lambda dtype: (
        torch.randint(0, 3, (6, 4)),
        torch.randn(6, 4, 5, dtype=dtype),
        2,
        63,
        1.5,
    ),
    "sample_moments_rows": lambda dtype: (torch.randn(12, 7, dtype=dtype), 2, 3, 63, 1.5),
    "sample_moments_scale": lambda dtype: (
        torch.randn(4, 5, 6, dtype=dtype),
        torch.randn(4, 5, 6, dtype=dtype),
        torch.randn(6, dtype=dtype),
        torch.rand(6, dtype=dtype),
        torch.randn(6, dtype=dtype),
        True,
        True,
    ),
}


@pytest.mark.parametrize("name", SAMPLES)
@FLOATS
def test_opcheck(name, dtype):
    torch.library.opcheck(getattr(torch.ops.sigeo_ext, name).default, SAMPLES[name](dtype))


X, D = torch.randn(4, 6, 3), torch.randn(4, 6, 5)
GEOMETRY = ([1], [1], [0], [1], 1)
BAD_CALLS = {
    "dtype": ((X.int(), D, *GEOMETRY, 1, 1, 1, 1.0), "x must be float32"),
    "mixed": ((X.double(), D, *GEOMETRY, 1, 1, 1, 1.0), "x and d must have one dtype"),
    "samples": ((X[:3], D, *GEOMETRY, 1, 1, 1, 1.0), "the same number of samples, got 3 and 4"),
    "unit": (
        (X, D, *GEOMETRY, 3, 1, 1, 1.0),
        "4 samples must be whole units of 3 in 1 equal segments",
    ),
    "segments": ((X, D, *GEOMETRY, 1, 3, 1, 1.0), "4 samples must be whole units of 1 in 3"),
    "want": ((X, D, *GEOMETRY, 1, 1, 64, 1.0), "want must be from 1 to 63, got 64"),
    "groups": (
        (X, D, [1], [1], [0], [1], 2, 1, 1, 1, 1.0),
        "groups must divide the channels 3 and 5",
    ),
    "size": ((X, D[:, :5].contiguous(), *GEOMETRY, 1, 1, 1, 1.0), "d must have size"),
    "dims": ((X, D, [1, 1], [1] * 2, [0] * 2, [1] * 2, 1, 1, 1, 1, 1.0), "x must be"),
    "entries": (
        (X, D, [1], [1, 1], [0], [1], 1, 1, 1, 1, 1.0),
        "stride must have 1 entries, got 2",
    ),
}


@pytest.mark.parametrize("implementation", ["op", "reference"])
@pytest.mark.parametrize("name", BAD_CALLS)
def test_errors_name_argument_expectation_and_what_came(implementation, name):
    arguments, message = BAD_CALLS[name]
    call = reference.convolution if implementation == "reference" else op.sample_moments_convolution
    with pytest.raises(RuntimeError, match=f"sample_moments_convolution: .*{message}"):
        call(*arguments)


def test_an_unknown_statistic_is_refused():
    with pytest.raises(ValueError, match="want: must be of sum, .*, got 'median'"):
        sm.linear(X, D, want=["median"])


def test_many_positions_lose_no_digits():
    positions = 1_000_000
    x, d = torch.rand(1, positions, 1), torch.rand(1, positions, 1)
    got = sm.linear(x, d, want=["sum"]).sum.item()
    assert got == pytest.approx((x.double() * d.double()).sum().item(), rel=1e-6)


@pytest.mark.parametrize("spread", [1e-3, 1e3])
def test_m2_is_exact_where_samples_are_alike_or_the_first_is_far_from_all(spread):
    generator = torch.Generator().manual_seed(0)
    samples = 2048
    if spread < 1:  # values of few bits, so that gradients are exact
        x = 1 + torch.randint(-8, 8, (samples, 5), generator=generator) / 2**12
        d = torch.ones(samples, 7)
    else:
        x, d = (torch.randn(samples, size, generator=generator) for size in (5, 7))
        d[0] *= spread
    gradients = d[:, :, None] * x[:, None]
    expected = by_loop(gradients)["m2"]
    images = (x[..., None, None], d[..., None, None])
    for got in (
        sm.linear(x, d, want=["m2"]).m2,
        sm.convolution(*images, (1, 1), want=["m2"]).m2[..., 0, 0],
        sm.rows(gradients, want=["m2"]).m2,
    ):
        assert_close(got, expected, tolerance=5e-6)


@pytest.mark.parametrize("unit", [1, 2])
@FLOATS
def test_tables_equal_embeddings_one_by_one(unit, dtype):
    samples, tables, width = 12, 5, 6
    rows = torch.randint(0, 9, (samples, tables))
    gradients = torch.randn(samples, tables, width, dtype=dtype)
    given_ = {"want": EVERYTHING, "factor": 1.5}
    found = sm.tables(rows, gradients, unit=unit, **given_)
    first = found.first.tolist()
    assert (first[0], first[-1]) == (0, len(found.rows))
    for t in range(tables):
        touched, expected = sm.embedding(
            rows[:, t], gradients[:, t], count=samples // unit, **given_
        )
        part = slice(first[t], first[t + 1])
        assert torch.equal(found.rows[part], touched)
        for name, value in expected._asdict().items():
            got = getattr(found.moments, name)
            assert torch.equal(got[t] if name == "sq_norm" else got[part], value), name


def test_tables_refuse_what_does_not_fit():
    rows, gradients = torch.zeros(4, 3, dtype=torch.int64), torch.randn(4, 3, 2)
    for call in (op.sample_moments_tables, reference.tables):
        with pytest.raises(RuntimeError, match=r"rows must be at least 0, got -1"):
            call(rows - 1, gradients, 1, 1, 1.0)
        with pytest.raises(RuntimeError, match="rows must be .samples, tables. and gradients"):
            call(rows, gradients[:, :2], 1, 1, 1.0)
        with pytest.raises(RuntimeError, match="4 samples must be whole units of 3"):
            call(rows, gradients, 3, 1, 1.0)
        with pytest.raises(RuntimeError, match="rows must be of at least one table, got none"):
            call(rows[:, :0], gradients[:, :0], 1, 1, 1.0)


@pytest.mark.parametrize("case", ["wide", "pointwise", "beyond", "signal", "stem"])
@pytest.mark.parametrize("unit", [1, 2])
@FLOATS
def test_norms_alone_equal_those_beside_others_by_either_route(case, unit, dtype, monkeypatch):
    shape, kernel, options = CONVOLUTIONS[case]
    function = FUNCTIONS[len(kernel) - 2]
    x, weight = torch.randn(4, *shape[1:], dtype=dtype), torch.randn(kernel, dtype=dtype)
    d = torch.randn_like(function(x, weight, **options))
    expected = sm.convolution(x, d, kernel[2:], unit=unit, factor=3, **options).sq_norm
    for few in (True, False):
        monkeypatch.setattr(positions, "few", lambda *_, few=few: few)
        got = sm.convolution(x, d, kernel[2:], unit=unit, want=["sq_norm"], factor=3, **options)
        assert_close(got.sq_norm, expected, tolerance=tolerance_of(dtype))


def test_norms_of_linear_layers_by_positions():
    assert positions.few(4, 300, 200)
    assert not positions.few(300, 300, 200)
    x, d = torch.randn(6, 4, 300), torch.randn(6, 4, 200)
    got = sm.linear(x, d, unit=2, want=["sq_norm"]).sq_norm
    assert_close(got, sm.linear(x, d, unit=2).sq_norm, tolerance=1e-5)


def test_norms_keep_their_digits_where_positions_cancel():
    x, d = torch.randn(2, 1, 300).repeat(1, 2, 1), torch.randn(2, 1, 200).repeat(1, 2, 1)
    d[:, 1] = -d[:, 1] * (1 + 1e-3)
    expected = torch.einsum("bto,bti->boi", d.double(), x.double()).square().sum((1, 2))
    assert_close(sm.linear(x, d, want=["sq_norm"]).sq_norm, expected, tolerance=1e-9)


def test_norms_alone_refuse_what_the_kernels_refuse():
    x, d = torch.randn(4, 6, 3, 3), torch.randn(4, 5, 3, 2)
    with pytest.raises(RuntimeError, match="d must have size"):
        sm.convolution(x, d, (3, 3), padding=1, want=["sq_norm"])
    with pytest.raises(RuntimeError, match="the same number of samples, got 4 and 3"):
        sm.linear(x[:, :, 0], d[:3, :, :, 0].repeat(1, 2, 1)[:, :6], want=["sq_norm"])


@needs_kernels
def test_samples_of_too_many_positions_are_refused():
    x = torch.zeros(1, 1, 1).expand(1, 1 << 25, 1)
    with pytest.raises(RuntimeError, match="a sample must have at most 33554431 positions"):
        sm.linear(x, x)


@pytest.mark.parametrize("implementation", ["op", "reference"])
def test_a_kernel_that_does_not_fit_into_the_image_is_refused(implementation):
    call = reference.convolution if implementation == "reference" else op.sample_moments_convolution
    x, d = torch.randn(2, 2, 2, 8), torch.randn(2, 1, 1, 8)
    for groups in (1, 8):
        with pytest.raises(RuntimeError, match="kernel must fit into the padded size 2 of dimen"):
            call(x, d, [3, 3], [2, 2], [0, 0], [1, 1], groups, 1, 1, 1, 1.0)


def test_mean_and_rstd_have_one_shape():
    x = torch.randn(4, 5, 6)
    for call in (op.sample_moments_scale, reference.scale):
        with pytest.raises(RuntimeError, match="mean and rstd must have one shape"):
            call(x, x, torch.randn(4, 6), torch.rand(6), None, True, True)


def test_absolute_sums_of_a_negative_factor():
    x, d = torch.randn(5, 4), torch.randn(5, 3)
    expected = 2 * (d[:, :, None] * x[:, None]).abs().sum(0)
    for seen in (x, x[:, None]):
        deep = d if seen.dim() == 2 else d[:, None]
        got = sm.linear(seen, deep, want=["abs_sum"], factor=-2.0).abs_sum
        assert_close(got, expected, tolerance=1e-5)
    rows = d[:, :, None] * x[:, None]
    assert_close(sm.rows(rows, want=["abs_sum"], factor=-2).abs_sum, expected, tolerance=1e-5)
    got = sm.embedding(torch.zeros(5, dtype=torch.int64), d, count=5, want=["abs_sum"], factor=-2)
    assert_close(got[1].abs_sum[0], 2 * d.abs().sum(0), tolerance=1e-5)


def test_rows_of_no_samples():
    assert sm.rows(torch.randn(0, 3, 2), want=["sum"]).sum.tolist() == [[0, 0]] * 3


def test_norms_by_positions_take_a_few_units_at_a_time(monkeypatch):
    x, d = torch.randn(6, 40, 3, 3), torch.randn(6, 70, 3, 3)
    whole = sm.convolution(x, d, (3, 3), padding=1, unit=2, want=["sq_norm"]).sq_norm
    monkeypatch.setattr(positions, "AT_ONCE", 1)
    parts = sm.convolution(x, d, (3, 3), padding=1, unit=2, want=["sq_norm"]).sq_norm
    assert_close(parts, whole, tolerance=1e-12)
