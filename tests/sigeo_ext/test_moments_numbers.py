"""The moments ops on numbers that are hard: close, small, large, not finite."""

from __future__ import annotations

import pytest
import torch

from sigeo_ext import moments
from sigeo_ext.testing import assert_close
from tests.sigeo_ext.moments_definition import spelled_out, streamed, unit

pytestmark = pytest.mark.filterwarnings("error")


def test_a_state_of_mixed_dtypes_loses_nothing(device):
    a, mean = torch.tensor([1e39, 2.0]), torch.tensor([1.0, 1.0])
    m2 = torch.tensor([1e-50, 1.0], dtype=torch.float64)
    state = [a.double().to(device)], [mean.to(device)], [m2.to(device)]
    state[0][0][0] = 1e39
    result = moments.summary(*state, count=2)
    assert result.kept.item() == 2 and result.abs_sum.item() == pytest.approx(1e39)


def test_half_subnormals_survive_flushing_to_zero():
    values = torch.arange(1, 1024, dtype=torch.int16).view(torch.float16)
    expected = moments.dot([values], [values])
    assert expected.item() == values.double().square().sum().item()
    torch.set_flush_denormal(True)
    try:
        assert moments.dot([values], [values]).item() == expected.item()
    finally:
        torch.set_flush_denormal(False)


def test_units_that_nearly_agree_keep_their_spread():
    base = torch.full((1000,), 1.0)
    units = [base, torch.nextafter(base, 2 * base), base, base]
    expected = spelled_out([[u] for u in units], [base])
    table = torch.stack(moments.rows_summary([[u] for u in units], weights=[base]), 1)
    assert_close(table, expected, tolerance=1e-13)
    equal = moments.rows_summary([[base * 0.1]] * 3)
    assert equal.kept.item() == 0 and equal.ratio.item() == 0


def test_ratio_of_two_units_is_one_for_opposite_signs():
    a = torch.rand(4096) + 0.1
    opposite = moments.rows_summary([[a], [-3 * a]])
    assert_close(opposite.ratio, torch.tensor([4096.0], dtype=torch.float64), tolerance=1e-14)
    assert moments.rows_summary([[a], [3 * a]]).ratio.item() > 4096


def test_ddof_shifts_the_log_of_a_layer_by_a_constant():
    for n, shift in ((2, 0.34657), (4, 0.14384)):
        units = [unit([(1000,)], i) for i in range(n)]
        biased, unbiased = (moments.rows_summary(units, ddof=d).ratio.log() for d in (0, 1))
        assert (biased - unbiased).item() == pytest.approx(shift, abs=1e-5)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_reaches_the_ratio(bad, device):
    alone = unit([(100,)], 0, device=device)[0]
    alone[17] = bad
    assert moments.rows_summary([[alone]]).ratio.isnan()
    for where in range(5):
        units = [unit([(100,)], i, device=device)[0] for i in range(5)]
        units[where][17] = bad
        rows = [[u] for u in units]
        assert moments.rows_summary(rows[max(0, where - 3) : max(0, where - 3) + 4]).ratio.isnan()
        state = streamed([(100,)], rows, device=device)
        assert moments.summary(*state, count=5).ratio.isnan()
        state = streamed([(100,)], rows[:4], device=device)
        assert moments.summary(*state, count=4, grads=rows[4]).ratio.isnan()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_without_weights_the_inner_product_is_zero_whatever_the_gradients(bad, device):
    rows = [[torch.tensor([bad, 1.0], device=device)] for _ in range(3)]
    state = streamed([(2,)], rows, device=device)
    weights = [torch.ones(2, device=device)]
    for found, weighted in (
        (moments.rows_summary(rows), moments.rows_summary(rows, weights=weights)),
        (moments.summary(*state, count=3), moments.summary(*state, count=3, weights=weights)),
        (
            moments.summary(*state, count=3, grads=rows[0]),
            moments.summary(*state, count=3, grads=rows[0], weights=weights),
        ),
    ):
        assert found.inner.item() == 0 and not weighted.inner.isfinite()
