"""The sample_moments of embedding tables, one or many at a time."""

from __future__ import annotations

import pytest
import torch

from sigeo_ext import sample_moments as sm
from sigeo_ext.sample_moments import op, reference
from sigeo_ext.testing import assert_close
from tests.sigeo_ext.sample_loop import EVERYTHING, FLOATS, by_loop


@pytest.mark.parametrize("width", [6, 16, 39])
@pytest.mark.parametrize("entries", [0, 1, 40, 700])
def test_embeddings_equal_the_dense_loop(entries, width):
    units, rows = 5, 11
    generator = torch.Generator().manual_seed(entries)
    row = torch.randint(0, rows, (entries,), generator=generator)
    unit = torch.randint(0, units, (entries, 2), generator=generator)[:, 0]  # of a larger tensor
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


def test_rows_of_any_size_come_in_order():
    row = torch.randint(0, 2**63 - 1, (300,)).bitwise_right_shift(torch.arange(300) % 63)
    touched, got = sm.embedding(row, torch.ones(300, 2), count=300, want=("sum",))
    rows, counts = row.unique(return_counts=True)
    assert torch.equal(touched, rows)
    assert torch.equal(got.sum, counts[:, None].expand(-1, 2).float())


def test_nan_stays_in_its_column_and_unit():
    gradients = torch.ones(4, 20)
    gradients[2, 17] = torch.nan
    row, unit = torch.tensor([3, 3, 3, 8]), torch.tensor([0, 0, 1, 2])
    touched, got = sm.embedding(row, gradients, units=unit, count=3, want=EVERYTHING)
    assert touched.tolist() == [3, 8]
    for name, value in got._asdict().items():
        places = [[1]] if name == "sq_norm" else [[0, 17]]
        assert value.isnan().nonzero().tolist() == places, name
        assert value.isfinite().sum() == value.numel() - 1, name


def test_embedding_entries_in_order_and_a_row_that_is_skipped():
    row = torch.tensor([2, 5, 2, 2, 5, 9])
    gradients = torch.randn(6, 3)
    given_ = (row, None, gradients, 3, 2, 9, 63, 2.0)
    got, expected = op.sample_moments_embedding(*given_), reference.embedding(*given_)
    assert got[0].tolist() == [2, 5]
    assert_close(got[1:], expected[1:], tolerance=1e-6)
    with pytest.raises(RuntimeError, match=r"units\[0\] must be from 0 to 2, got 7"):
        op.sample_moments_embedding(row, row.clamp_min(7), gradients, 3, 2, 9, 63, 1.0)
    for embedding in (op.sample_moments_embedding, reference.embedding):
        with pytest.raises(RuntimeError, match="entries must be the number of .* unit, got 0"):
            embedding(row, None, gradients, 3, 0, 9, 63, 1.0)


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
        with pytest.raises(
            RuntimeError, match=r"rows must be .samples, tables. and gradients .*, got \[.* and \["
        ):
            call(rows, gradients[:, :2], 1, 1, 1.0)
        with pytest.raises(RuntimeError, match="4 samples must be whole units of 3"):
            call(rows, gradients, 3, 1, 1.0)
        with pytest.raises(RuntimeError, match="rows must be of at least one table, got none"):
            call(rows[:, :0], gradients[:, :0], 1, 1, 1.0)
