"""The sample_moments of layers: against autograd a sample at a time in float64, and themselves."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from sigeo_ext import sample_moments as sm
from sigeo_ext.sample_moments import op, reference
from sigeo_ext.testing import assert_close, poison_empty, threads
from tests.cases import CONVOLUTIONS, needs_kernels
from tests.sigeo_ext.sample_loop import (
    EVERYTHING,
    FLOATS,
    FUNCTIONS,
    assert_statistics,
    by_loop,
    tolerance_of,
    weight_gradients,
)


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


def sequence_first(samples, positions, channels, dtype):
    """[B, T, C] that lies in memory as [T, B, C] beside other channels."""
    values = torch.randn(positions, samples, channels + 3, dtype=torch.float64).to(dtype)
    return values[:, :, 1 : channels + 1].transpose(0, 1)


@FLOATS
@pytest.mark.parametrize("channels", [(3, 5), (16, 8), (130, 40), (24, 200)])
@pytest.mark.parametrize(("unit", "segments"), [(1, None), (2, 3)])
def test_linear_layers_read_samples_and_positions_in_either_order(channels, unit, segments, dtype):
    torch.manual_seed(0)
    inputs, outputs = channels
    x, d = sequence_first(6, 7, inputs, dtype), sequence_first(6, 7, outputs, dtype)
    options = {"unit": unit, "segments": segments, "want": EVERYTHING}
    expected = sm.linear(x.contiguous(), d.contiguous(), **options)
    for given in ((x, d), (x.contiguous(), d), (x, d.contiguous())):
        one = sm.linear(*given, **options)
        for got, value in zip(one, expected, strict=True):
            assert_close(got, value, tolerance=tolerance_of(dtype))
        with threads(2):
            two = sm.linear(*given, **options)
        assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


@needs_kernels
@pytest.mark.parametrize("change", [lambda t: t[..., ::2], lambda t: t[:, :1].expand_as(t)])
def test_kernels_refuse_memory_that_they_cannot_read(change):
    x = change(torch.randn(4, 6, 8))
    d = torch.randn(4, 6, 5)
    with pytest.raises(RuntimeError, match="x must be contiguous, or"):
        sm.op.sample_moments_convolution(x, d, [1], [1], [0], [1], 1, 1, 1, 1, 1.0)
    sm.linear(x, d)  # which copies


@pytest.mark.parametrize(("unit", "segments"), [(2, None), (3, None), (1, 4), (2, 3), (12, None)])
@FLOATS
def test_units_and_segments(unit, segments, dtype):
    x, d = torch.randn(12, 5, 6, 6).to(dtype), torch.randn(12, 9, 6, 6).to(dtype)
    weight = torch.randn(9, 5, 3, 3)
    gradients = weight_gradients(x, d, weight, lambda a, w: F.conv2d(a, w, padding=1))
    got = sm.convolution(x, d, (3, 3), padding=1, unit=unit, segments=segments, want=EVERYTHING)
    assert_statistics(got, by_loop(gradients, unit, segments), tolerance_of(dtype))


@pytest.mark.parametrize(("unit", "segments"), [(1, None), (2, None), (1, 4), (2, 3)])
@pytest.mark.parametrize("channels", [(70, 9), (9, 70)], ids=str)
@FLOATS
def test_units_and_segments_of_wide_linear_layers(channels, unit, segments, dtype):
    inputs, outputs = channels
    x, d = torch.randn(12, 5, inputs).to(dtype), torch.randn(12, 5, outputs).to(dtype)
    gradients = weight_gradients(x, d, torch.randn(outputs, inputs), F.linear)
    got = sm.linear(x, d, unit=unit, segments=segments, want=EVERYTHING)
    assert_statistics(got, by_loop(gradients, unit, segments), tolerance_of(dtype))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_narrow_inputs_give_wide_statistics(dtype):
    x, d = torch.randn(5, 4, 6, 6).to(dtype), torch.randn(5, 8, 6, 6).to(dtype)
    weight = torch.randn(8, 4, 3, 3)
    expected = by_loop(weight_gradients(x, d, weight, lambda a, w: F.conv2d(a, w, padding=1)))
    got = sm.convolution(x, d, (3, 3), padding=1, want=EVERYTHING)
    assert got.abs_sum.dtype == torch.float32
    assert_statistics(got, expected, 1e-5)


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
@pytest.mark.parametrize(("channels", "kernel"), [((16, 16), 3), ((96, 96), 3), ((70, 40), 1)])
def test_same_bits_for_any_number_of_threads(channels, kernel):
    x, d = (torch.randn(9, c, 6, 6) for c in channels)

    def run():
        return sm.convolution(x, d, (kernel, kernel), padding=kernel // 2, want=EVERYTHING)

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


@pytest.mark.parametrize("outputs", [5, 10, 19])
@pytest.mark.parametrize("where", ["x", "d"])
def test_infinity_stays_infinity_in_norms(where, outputs):
    x, d = torch.ones(4, 3, 10), torch.ones(4, 3, outputs)
    (x if where == "x" else d)[1, 2, 0] = torch.inf
    got = sm.linear(x, d, want=EVERYTHING)
    assert got.sq_norm.tolist() == [90.0 * outputs, math.inf, *[90.0 * outputs] * 2]
    assert not got.abs_sum.isnan().any() and got.abs_sum.isinf().any()
    assert (got.sign_sum == 4).all()


@pytest.mark.parametrize("outputs", [5, 19])
@pytest.mark.parametrize("bad", [torch.inf, -torch.inf])
def test_the_sign_of_an_infinity_is_that_of_any_number(bad, outputs):
    x, d = torch.ones(4, 3, 10), torch.ones(4, 3, outputs)
    d[1, 2, 0] = bad
    sign_sums = [
        sm.linear(x, d, want=("sign_sum",)).sign_sum[0],
        sm.linear(x[:, 2], d[:, 2], want=("sign_sum",)).sign_sum[0],
        sm.rows(d[:, 2], want=("sign_sum",)).sign_sum[0],
        sm.convolution(x.mT, d.mT, (1,), want=("sign_sum",)).sign_sum[0],
    ]
    for found in sign_sums:
        assert (found == (4 if bad > 0 else 2)).all()


@pytest.mark.parametrize("convolution", [op.sample_moments_convolution, reference.convolution])
def test_a_layer_without_outputs_has_statistics_without_values(convolution):
    x, d = torch.randn(4, 3, 5), torch.randn(4, 3, 0)
    found = convolution(x, d, [1], [1], [0], [1], 1, 2, 1, (1 << 6) - 1, 1.0)
    assert [list(values.shape) for values in found] == [[1, 0, 1, 5]] * 5 + [[2]]
    assert not found[-1].any()


def test_no_samples_give_zeros():
    got = sm.linear(torch.randn(0, 3, 4), torch.randn(0, 3, 5), want=EVERYTHING)
    assert got.sq_norm.shape == (0,)
    assert all((value == 0).all() for value in got)


@pytest.mark.parametrize("want", [EVERYTHING, ["sq_norm"]], ids=["all", "norms"])
def test_samples_without_positions_have_gradients_of_zero(want):
    got = sm.linear(torch.randn(4, 0, 3), torch.randn(4, 0, 5), want=want, unit=2)
    there = [value for value in got if value is not None]
    assert [list(value.shape) for value in there] == [[5, 3]] * (len(want) - 1) + [[2]]
    assert not any(value.any() for value in there)
    with pytest.raises(RuntimeError, match="the same number of samples, got 4 and 3"):
        sm.linear(torch.randn(4, 0, 3), torch.randn(3, 0, 5), want=want)


@pytest.mark.parametrize("shape", [(4,), (4, 2)], ids=["one position", "some"])
@pytest.mark.parametrize("want", [["sum", "abs_sum", "sq_sum"], ["sq_norm"]], ids=["all", "norms"])
def test_autocast_changes_no_statistic(shape, want):
    x, d = torch.randn(*shape, 30), torch.randn(*shape, 40)
    expected = sm.linear(x, d, want=want)
    with torch.autocast("cpu", torch.bfloat16):
        got = sm.linear(x, d, want=want)
    for a, b in zip(got, expected, strict=True):
        assert (a is None) is (b is None) and (a is None or torch.equal(a, b))


def ones(*shape):
    return torch.ones(shape, requires_grad=True)


UNTIED = {
    "one position": lambda: sm.linear(ones(4, 30), ones(4, 40)),
    "some positions": lambda: sm.linear(ones(4, 2, 3), ones(4, 2, 3)),
    "norms by positions": lambda: sm.linear(ones(4, 2, 30), ones(4, 2, 40), want=["sq_norm"]),
    "convolution": lambda: sm.convolution(ones(4, 3, 5), ones(4, 2, 5), [1]),
    "rows": lambda: sm.rows(ones(4, 3)),
    "scale": lambda: sm.scale(ones(4, 2, 3), ones(4, 2, 3), mean=ones(3), rstd=ones(3)),
    "embedding": lambda: sm.embedding(torch.arange(4), ones(4, 3), count=4)[1],
    "tables": lambda: sm.tables(torch.arange(4)[:, None], ones(4, 1, 3)).moments,
}


@pytest.mark.parametrize("call", UNTIED.values(), ids=UNTIED)
def test_results_are_not_tied_to_the_graph(call):
    assert not any(value.requires_grad for value in call() if value is not None)


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
