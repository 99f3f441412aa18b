"""The sample_moments of small parameters: rows that are given, and a norm's scale and shift."""

from __future__ import annotations

import pytest
import torch

from sigeo_ext import sample_moments as sm
from sigeo_ext.sample_moments import op, reference
from sigeo_ext.testing import assert_close
from tests.sigeo_ext.sample_loop import EVERYTHING, FLOATS, assert_statistics, by_loop, tolerance_of


@pytest.mark.parametrize(("unit", "segments"), [(1, None), (2, 3), (4, None)])
@FLOATS
def test_rows_equal_the_loop(unit, segments, dtype):
    gradients = torch.randn(12, 3, 7).to(dtype)
    got = sm.rows(gradients, unit=unit, segments=segments, want=EVERYTHING)
    assert_statistics(got, by_loop(gradients, unit, segments), tolerance_of(dtype))


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


def test_scale_takes_statistics_from_larger_tensors():
    x, d = torch.randn(4, 5, 6), torch.randn(4, 5, 6)
    mean, rstd, factor = torch.randn(6, 3).t()
    got = sm.scale(x, d, mean=mean, rstd=rstd, factor=factor)
    assert_close(got, reference.scale(x, d, mean, rstd, factor, True, True), tolerance=1e-6)


X, OF_POSITIONS = torch.randn(4, 5, 6), torch.rand(4, 5, 1)


@pytest.mark.parametrize("scale", [op.sample_moments_scale, reference.scale])
@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((X[0], X[0], None, None, None, True), "x must have 3 dimensions, got [5, 6]"),
        ((X, X[1:], None, None, None, True), "the shape of x, [4, 5, 6], got [3, 5, 6]"),
        (
            (X, X, torch.rand(4, 6), torch.rand(6), None, True),
            "must have one shape, got [4, 6] and [6]",
        ),
        (
            (X, X, OF_POSITIONS[..., 0], OF_POSITIONS[..., 0], None, True),
            "for x [4, 5, 6], got [4, 5]",
        ),
        ((X, X, OF_POSITIONS, OF_POSITIONS, None, False), "for x [4, 5, 6], got [4, 5, 1]"),
        (
            (X, X, None, None, torch.rand(4, 6), True),
            "factor must be [channels], for x [4, 5, 6], got [4, 6",
        ),
    ],
)
def test_a_wrong_argument_of_scale_is_named(scale, arguments, text):
    with pytest.raises(RuntimeError) as caught:
        scale(*arguments, True)
    assert text in str(caught.value)


@pytest.mark.parametrize("rows", [op.sample_moments_rows, reference.rows])
def test_units_and_segments_beyond_64_bits_are_refused(rows):
    message = f"6 samples must be whole units of 2 in {1 << 62} equal segments"
    for unit, segments in ((2, 1 << 62), (4, 1 << 62)):
        with pytest.raises(RuntimeError, match=message.replace("units of 2", f"units of {unit}")):
            rows(torch.randn(6, 3), unit, segments, 1, 1.0)


def test_rows_of_no_samples():
    assert sm.rows(torch.randn(0, 3, 2), want=["sum"]).sum.tolist() == [[0, 0]] * 3
