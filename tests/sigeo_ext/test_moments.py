"""The moments ops: against float64 arithmetic spelled out, their reference, and themselves."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sigeo_ext import moments
from sigeo_ext.moments import op, reference
from sigeo_ext.testing import TOLERANCE, assert_close
from tests.cases import DTYPES, LAYERS, tensors
from tests.sigeo_ext.moments_definition import (
    CASES,
    GRADS,
    STATES,
    new_state,
    spelled_out,
    streamed,
    unit,
)

pytestmark = pytest.mark.filterwarnings("error")


@CASES
@STATES
@GRADS
def test_update_equals_reference(layers, state_dtype, dtype, device):
    state, judge = new_state(layers, state_dtype, device), new_state(layers, torch.float64)
    for count in range(4):
        grads = unit(layers, count, dtype)
        moments.update_(*state, [g.to(device) for g in grads], count=count)
        reference.update_(*judge, grads, count)
        for values, expected in zip(state, judge, strict=True):
            assert_close(values, expected)


@CASES
@GRADS
@pytest.mark.parametrize("n", [2, 3, 4])
def test_rows_summary_equals_definition(layers, dtype, n, device):
    units = [unit(layers, i, dtype, device=device) for i in range(n)]
    weights = tensors(layers, dtype, device=device)
    for ddof in (0, 1):
        table = torch.stack(moments.rows_summary(units, weights=weights, ddof=ddof), 1)
        assert_close(table, spelled_out(units, weights, ddof), tolerance=1e-10)


@CASES
@GRADS
def test_summary_of_a_state_equals_definition(layers, dtype, device):
    units = [unit(layers, i, dtype, device=device) for i in range(6)]
    weights = tensors(layers, dtype, device=device)
    state = streamed(layers, units, device=device)
    table = torch.stack(moments.summary(*state, count=6, weights=weights, ddof=1), 1)
    assert_close(table, spelled_out(units, weights, 1), tolerance=1e-9)


@STATES
@pytest.mark.parametrize("before", [0, 1, 2, 3])
def test_summary_with_one_more_unit_equals_update_then_summary(state_dtype, before, device):
    layers = LAYERS["odd"]
    units = [unit(layers, i, state_dtype, device=device) for i in range(before + 1)]
    weights = tensors(layers, device=device)
    state = streamed(layers, units[:-1], state_dtype, device)
    kept = [[t.clone() for t in values] for values in state]
    fused = moments.summary(*state, count=before, grads=units[-1], weights=weights)
    for values, old in zip(state, kept, strict=True):
        for value, expected in zip(values, old, strict=True):
            assert torch.equal(value.nan_to_num(), expected.nan_to_num())
    judge = streamed(layers, units, torch.float64, device)
    separate = moments.summary(*judge, count=before + 1, weights=weights)
    limit = TOLERANCE[state_dtype]
    assert_close(torch.stack(fused, 1), torch.stack(separate, 1), tolerance=limit)


@STATES
@CASES
def test_folded_rows_are_the_state_of_three_units(layers, state_dtype, device):
    units = [unit(layers, i, state_dtype, device=device) for i in range(3)]
    expected = streamed(layers, units, torch.float64, device)
    moments.fold_rows_(*units)
    for values, judge in zip(units, expected, strict=True):
        assert_close(values, judge)


@pytest.mark.parametrize("state_dtype", [torch.float32], ids=str)
def test_functional_update_leaves_its_arguments(state_dtype, device):
    layers = LAYERS["convs"]
    state = streamed(layers, [unit(layers, 0, device=device)], state_dtype, device)
    before = [[t.clone() for t in values] for values in state]
    grads = unit(layers, 1, device=device)
    result = moments.update(*state, grads, count=1)
    for values, old in zip(state, before, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(values, old, strict=True))
    moments.update_(*state, grads, count=1)
    for values, new in zip(state, result, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(values, new, strict=True))


def test_absent_gradients_are_zeros(device):
    layers = [(5,), (16, 3, 3, 3), (7,)]
    units = [unit(layers, i, device=device) for i in range(5)]
    zeros = [[torch.zeros_like(g) for g in units[0]] for _ in range(5)]
    present = itertools.cycle([True, False, True, True, False, False, True])
    holed, filled = [], []
    for grads, zero in zip(units, zeros, strict=True):
        mask = [next(present) for _ in grads]
        holed.append([g if m else None for g, m in zip(grads, mask, strict=True)])
        filled.append([g if m else z for g, m, z in zip(grads, mask, zero, strict=True)])
    for values, expected in zip(
        streamed(layers, holed, device=device), streamed(layers, filled, device=device), strict=True
    ):
        assert all(torch.equal(a, b) for a, b in zip(values, expected, strict=True))
    for n in (2, 3, 4):
        a = moments.rows_summary(holed[:n])
        assert all(
            torch.equal(x, y) for x, y in zip(a, moments.rows_summary(filled[:n]), strict=True)
        )


def test_a_layer_no_unit_reaches_counts_nothing(device):
    present = torch.ones(3, device=device)
    result = moments.rows_summary([[None, present], [None, 2 * present]])
    assert result.ratio[0] == 0 and result.kept[0] == 0 and result.kept[1] == 3


def test_dot_equals_definition(device):
    for layers, dtype in itertools.product(LAYERS.values(), DTYPES):
        a, b = tensors(layers, dtype, device=device), unit(layers, 1, dtype, device=device)
        expected = [float((x.double() * y.double()).sum()) for x, y in zip(a, b, strict=True)]
        assert_close(
            moments.dot(a, b).cpu(), torch.tensor(expected, dtype=torch.float64), tolerance=1e-11
        )


ROWS = {"none": (0, 3), "one": (1, 5), "numbers": (7,), "empty": (4, 0), "rows": (5, 3, 7, 2)}
MANY = {"chunks": (3, 40_000), "short": (300, 2)}


@pytest.mark.parametrize("shape", [*ROWS.values(), *MANY.values()], ids=[*ROWS, *MANY])
def test_row_dots_equals_definition(shape, device):
    for x, y in itertools.product(DTYPES, DTYPES):
        (a,), (b,) = tensors([shape], x, device=device), tensors([shape], y, seed=1, device=device)
        expected = (a.double() * b.double()).unsqueeze(-1).flatten(1).sum(1)
        assert_close(moments.row_dots(a, b), expected, tolerance=1e-11)


@pytest.mark.parametrize("kind", ["last", "other", "rows inside", "steps", "spread"])
def test_row_dots_takes_any_memory_order(kind, device):
    a, b = tensors([(6, 4, 3, 5)] * 2, seed=3, device=device)
    expected = (a.double() * b.double()).flatten(1).sum(1)
    last = torch.channels_last
    if kind == "last":
        a, b = a.contiguous(memory_format=last), b.contiguous(memory_format=last)
    elif kind == "other":
        b = b.contiguous(memory_format=last)
    elif kind == "rows inside":
        a, b = (t.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2) for t in (a, b))
    elif kind == "steps":
        a, b = (t.repeat_interleave(2, 0)[::2] for t in (a, b))
    else:
        b = b[:1].expand_as(b)
        expected = (a.double() * b.double()).flatten(1).sum(1)
    assert_close(moments.row_dots(a, b), expected, tolerance=1e-11)


layer_lists = st.lists(st.lists(st.integers(0, 40), max_size=3).map(tuple), min_size=1, max_size=5)


@settings(max_examples=60, deadline=None)
@given(
    layers=layer_lists,
    dtypes=st.lists(st.sampled_from(DTYPES), min_size=4, max_size=4),
    n=st.integers(1, 4),
    weighted=st.booleans(),
)
def test_compiled_equals_reference_on_any_shapes(layers, dtypes, n, weighted):
    units = [unit(layers, i, dtype) for i, dtype in enumerate(dtypes[:n])]
    weights = tensors(layers, dtypes[0]) if weighted else []
    flat = [g for u in units for g in u]
    table = op.moments_rows_summary(flat, weights, n, 0)
    assert_close(table, reference.rows_summary(flat, weights, n, 0), tolerance=1e-12)
    state, judge = new_state(layers, torch.float32), new_state(layers, torch.float32)
    for count, grads in enumerate(units):
        op.moments_update_(*state, grads, count)
        reference.update_(*judge, grads, count)
    for values, expected in zip(state, judge, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(values, expected, strict=True))
