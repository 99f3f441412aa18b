"""The moments ops: against float64 arithmetic spelled out, their reference, and themselves."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sigeo_ext import moments
from sigeo_ext.moments import op, reference
from sigeo_ext.testing import TOLERANCE, assert_close, poison_empty, threads
from tests.cases import DTYPES, LAYERS, needs_kernels, tensors

pytestmark = pytest.mark.filterwarnings("error")
CASES = pytest.mark.parametrize("layers", LAYERS.values(), ids=LAYERS.keys())
STATES = pytest.mark.parametrize("state_dtype", [torch.float32, torch.float64], ids=str)
GRADS = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def unit(layers: list[tuple[int, ...]], index: int, dtype: torch.dtype = torch.float32, **kw):
    return tensors(layers, dtype, seed=100 + index, **kw)


def spelled_out(units: list[list[Tensor | None]], weights: list[Tensor], ddof: int = 0) -> Tensor:
    """The summary by its definition, coordinate by coordinate in float64."""
    rows = []
    n = len(units)
    for layer, weight in enumerate(weights):
        values = torch.stack(
            [
                (torch.zeros_like(weight) if u[layer] is None else u[layer])
                .double()
                .cpu()
                .flatten()
                for u in units
            ]
        )
        mean = values.mean(0)
        m2 = ((values - mean) ** 2).sum(0)
        sigma = (m2 / (n - ddof)).sqrt()
        kept = sigma > 0
        ratio = (values.abs().mean(0)[kept] / sigma[kept]).sum()
        inner = (values.sum(0) * weight.double().cpu().flatten()).sum()
        rows.append([ratio, kept.sum(), inner, values.abs().sum(), (mean**2).sum(), m2.sum()])
    return torch.tensor(rows, dtype=torch.float64).reshape(len(weights), 6)


def new_state(layers: list[tuple[int, ...]], dtype: torch.dtype, device: str = "cpu"):
    return tuple(
        [torch.full(shape, torch.nan, dtype=dtype, device=device) for shape in layers]
        for _ in range(3)
    )


def streamed(layers, units, dtype=torch.float64, device="cpu"):
    state = new_state(layers, dtype, device)
    for count, grads in enumerate(units):
        moments.update_(*state, grads, count=count)
    return state


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


def test_any_order_in_memory_gives_the_same(device):
    shape = (6, 4, 3, 5)
    channels_last = torch.channels_last
    units = [unit([shape], i, device=device)[0] for i in range(5)]
    wide = torch.zeros(6, 8, 3, 5, device=device)
    wide[:, ::2] = units[2]
    mixed = [
        units[0].to(memory_format=channels_last),
        units[1],
        wide[:, ::2],
        units[3].transpose(0, 3).contiguous().transpose(0, 3),
        units[4].expand(2, *shape)[1],
    ]
    weight = unit([shape], 9, device=device)[0]
    plain = streamed([shape], [[g] for g in units], device=device)
    state = tuple(
        [
            torch.full(shape, torch.nan, dtype=torch.float64, device=device).to(
                memory_format=channels_last
            )
        ]
        for _ in range(3)
    )
    for count, g in enumerate(mixed):
        moments.update_(*state, [g], count=count)
    for values, expected in zip(state, plain, strict=True):
        assert torch.equal(values[0], expected[0])
    assert_close(
        torch.stack(moments.rows_summary([[g] for g in mixed[:4]], weights=[weight])),
        torch.stack(moments.rows_summary([[g] for g in units[:4]], weights=[weight])),
    )
    assert_close(moments.dot([mixed[0]], [mixed[3]]), moments.dot([units[0]], [units[3]]))


def test_dot_equals_definition(device):
    for layers, dtype in itertools.product(LAYERS.values(), DTYPES):
        a, b = tensors(layers, dtype, device=device), unit(layers, 1, dtype, device=device)
        expected = [float((x.double() * y.double()).sum()) for x, y in zip(a, b, strict=True)]
        assert_close(
            moments.dot(a, b).cpu(), torch.tensor(expected, dtype=torch.float64), tolerance=1e-11
        )


def test_outputs_are_written_whole(device):
    layers = LAYERS["chunks"]
    units = [unit(layers, i, device=device) for i in range(4)]
    weights = tensors(layers, device=device)
    with poison_empty():
        state = tuple([torch.empty_like(w) for w in weights] for _ in range(3))
        assert all(t.isnan().all() for values in state for t in values)
        moments.update_(*state, units[0], count=0)
        assert not any(t.isnan().any() for values in state for t in values)
        state = tuple(
            values if i == 1 else [torch.empty_like(w) for w in weights]
            for i, values in enumerate(state)
        )
        moments.update_(*state, units[1], count=1)
        assert not any(t.isnan().any() for values in state for t in values)
        results = [
            *moments.summary(*state, count=2, weights=weights),
            *moments.summary(*state, count=2, grads=units[2]),
            *moments.rows_summary(units, weights=weights),
            moments.dot(*units[:2]),
            *itertools.chain(*moments.update(*state, units[2], count=2)),
        ]
    assert not any(t.isnan().any() for t in results)


@needs_kernels
def test_same_bits_whatever_the_threads():
    layers = LAYERS["chunks"]
    units = [unit(layers, i) for i in range(4)]
    weights = tensors(layers)

    def everything() -> list[Tensor]:
        state = streamed(layers, units, torch.float32)
        return [
            *itertools.chain(*state),
            *moments.summary(*state, count=4, weights=weights),
            *moments.summary(*state, count=4, grads=units[0], weights=weights),
            *moments.rows_summary(units, weights=weights),
            moments.dot(units[0], weights),
        ]

    with threads(1):
        first = everything()
    for count in (1, 2, 3, 4):
        with threads(count):
            assert all(torch.equal(a, b) for a, b in zip(first, everything(), strict=True))


def test_same_bits_on_cpu_and_cuda_for_each_coordinate():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    layers = LAYERS["chunks"]
    on_cpu = streamed(layers, [unit(layers, i) for i in range(5)], torch.float32)
    units = [unit(layers, i, device="cuda") for i in range(5)]
    on_gpu = streamed(layers, units, torch.float32, "cuda")
    for a, b in zip(itertools.chain(*on_cpu), itertools.chain(*on_gpu), strict=True):
        assert torch.equal(a, b.cpu())


def test_units_of_different_lengths_are_refused():
    a = torch.ones(3)
    with pytest.raises(ValueError, match="one tensor a layer, got 3, 1"):
        moments.rows_summary([[a, a, a], [a]])


def test_a_state_of_mixed_dtypes_loses_nothing(device):
    a, mean = torch.tensor([1e39, 2.0]), torch.tensor([1.0, 1.0])
    m2 = torch.tensor([1e-50, 1.0], dtype=torch.float64)
    state = [a.double().to(device)], [mean.to(device)], [m2.to(device)]
    state[0][0][0] = 1e39
    result = moments.summary(*state, count=2)
    assert result.kept.item() == 2 and result.abs_sum.item() == pytest.approx(1e39)


def test_layers_on_two_devices_are_refused():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    a, b = torch.ones(3), torch.ones(3, device="cuda")
    with pytest.raises(RuntimeError, match="must be on the device of the other tensors"):
        moments.dot([b, a], [b, a])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_memory_that_is_not_aligned_gives_the_same(dtype, device):
    layers = [(1001,), (17, 3)]

    def shifted(values):
        moved = []
        for value in values:
            wide = torch.empty(value.numel() + 1, dtype=value.dtype, device=device)
            wide[1:] = value.flatten()
            moved.append(wide[1:].view(value.shape))
        return moved

    units = [unit(layers, i, dtype, device=device) for i in range(4)]
    odd = [shifted(grads) for grads in units]
    plain, moved = (moments.rows_summary(rows, weights=rows[0]) for rows in (units, odd))
    assert all(torch.equal(a, b) for a, b in zip(plain, moved, strict=True))
    expected, state = (
        streamed(layers, units, torch.float32, device),
        new_state(layers, torch.float32),
    )
    state = tuple(shifted(values) for values in state)
    for count, grads in enumerate(odd):
        moments.update_(*state, grads, count=count)
    for values, judge in zip(state, expected, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(values, judge, strict=True))


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


A, B, HALF, DOUBLE = torch.ones(3), torch.ones(2, 2), torch.ones(3).half(), torch.ones(3).double()
BAD_CALLS = {
    "shape": (
        "update_",
        ([A], [A], [B], [A], 0),
        r"m2\[0\] must have its layer's shape \[3\], got \[2, 2\]",
    ),
    "long": (
        "update_",
        ([A], [A], [A], [A.long()], 0),
        r"grads\[0\] must be float32, float64, bfloat16 or float16, got Long$",
    ),
    "empty-first": (
        "update_",
        ([], [A], [A], [A], 0),
        r"mean must hold one tensor a layer, 0, got 1",
    ),
    "empty-summary": (
        "summary",
        ([], [A], [A], [], [], 2, 0),
        r"mean must hold one tensor a layer, 0, got 1",
    ),
    "empty-dot": ("dot", ([], [A]), r"b must hold one tensor a layer, 0, got 1"),
    "empty-fold": ("fold_rows_", ([], [A], [A]), r"second must hold one tensor a layer, 0, got 1"),
    "few-weights": (
        "rows_summary",
        ([A, B, A, B], [A], 2, 0),
        r"weights must hold one tensor a layer, 2, got 1",
    ),
    "many-weights": (
        "rows_summary",
        ([A, A], [A, A], 2, 0),
        r"weights must hold one tensor a layer, 1, got 2",
    ),
    "length": ("update_", ([A], [A], [A], [], 0), r"grads must hold one tensor a layer, 1, got 0"),
    "half-state": (
        "update_",
        ([HALF], [A], [A], [A], 0),
        r"abs_sum\[0\] must be float32 or float64, got Half",
    ),
    "mixed-list": (
        "update_",
        ([A, DOUBLE], [A] * 2, [A] * 2, [A] * 2, 0),
        r"abs_sum\[1\] must be Float like the rest of the state, got Double",
    ),
    "mixed-state": (
        "update_",
        ([DOUBLE], [A], [A], [A], 0),
        r"mean\[0\] must be Double like the rest of the state, got Float",
    ),
    "view": (
        "update_",
        ([torch.ones(6)[::2]], [A], [A], [A], 0),
        r"abs_sum\[0\] must fill one run of memory",
    ),
    "order": ("update_", ([B], [B.t()], [B], [B], 0), r"mean\[0\] must have the memory order"),
    "negative": ("update_", ([A], [A], [A], [A], -1), r"count must be at least 0, got -1"),
    "integer": (
        "update_",
        ([A], [A], [A], [A.int()], 0),
        r"grads\[0\] must be float32, float64, bfloat16 or float16, got Int$",
    ),
    "functional": ("update", ([A], [A], [A], [B], 0), r"grads\[0\] must have its layer's shape"),
    "fold": (
        "fold_rows_",
        ([A], [A], [B]),
        r"third\[0\] must have its layer's shape \[3\], got \[2, 2\]",
    ),
    "no-units": ("rows_summary", ([], [], 0, 0), r"count must be at least 1, got 0"),
    "many-units": ("rows_summary", ([A] * 5, [], 5, 0), r"count must be at most 4, got 5"),
    "row-shape": (
        "rows_summary",
        ([A, B], [], 2, 0),
        r"rows\[1\] must have its layer's shape \[3\], got \[2, 2\]",
    ),
    "uneven": ("rows_summary", ([A] * 3, [], 2, 0), r"rows must hold 2 tensors a layer, got 3"),
    "ddof": (
        "rows_summary",
        ([A], [], 1, 1),
        r"ddof must be at least 0 and below the 1 units, got 1",
    ),
    "weights": ("rows_summary", ([A, A], [B], 2, 0), r"must have its layer's shape"),
    "empty-state": ("summary", ([A], [A], [A], [], [], 0, 0), r"count must be at least 1, got 0"),
    "summary-grads": (
        "summary",
        ([A], [A], [A], [B], [], 3, 0),
        r"grads\[0\] must have its layer's shape",
    ),
    "dot-length": ("dot", ([A], [A, A]), r"b must hold one tensor a layer, 1, got 2"),
    "dot-shape": ("dot", ([A], [B]), r"b\[0\] must have its layer's shape \[3\], got \[2, 2\]"),
}


@pytest.mark.parametrize("implementation", ["op", "reference"])
@pytest.mark.parametrize("name", BAD_CALLS)
def test_errors_name_argument_expectation_and_what_came(implementation, name):
    function, arguments, message = BAD_CALLS[name]
    call = getattr(
        reference if implementation == "reference" else op,
        ("moments_" if implementation == "op" else "") + function,
    )
    with pytest.raises(RuntimeError, match=f"moments_{function.rstrip('_')}_?: .*{message}"):
        call(*copy.deepcopy(arguments))
