"""Norms of units' gradients, alone and by positions."""

from __future__ import annotations

import pytest
import torch

from sigeo_ext import sample_moments as sm
from sigeo_ext.sample_moments import positions
from sigeo_ext.testing import assert_close
from tests.cases import CONVOLUTIONS
from tests.sigeo_ext.sample_loop import FLOATS, FUNCTIONS, tolerance_of


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
    with pytest.raises(
        RuntimeError, match=r"d must be \[4, 5, 3, 3\] for x \[4, 6, 3, 3\], got \[4, 5, 3, 2\]"
    ):
        sm.convolution(x, d, (3, 3), padding=1, want=["sq_norm"])
    with pytest.raises(RuntimeError, match="the same number of samples, got 4 and 3"):
        sm.linear(x[:, :, 0], d[:3, :, :, 0].repeat(1, 2, 1)[:, :6], want=["sq_norm"])


def test_norms_by_positions_take_a_few_units_at_a_time(monkeypatch):
    x, d = torch.randn(6, 40, 3, 3), torch.randn(6, 70, 3, 3)
    whole = sm.convolution(x, d, (3, 3), padding=1, unit=2, want=["sq_norm"]).sq_norm
    monkeypatch.setattr(positions, "AT_ONCE", 1)
    parts = sm.convolution(x, d, (3, 3), padding=1, unit=2, want=["sq_norm"]).sq_norm
    assert_close(parts, whole, tolerance=1e-12)
