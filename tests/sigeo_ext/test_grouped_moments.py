"""Statistics of the gradients of subnets: against one gradient after another, in float64."""

from __future__ import annotations

import pytest
import torch

from sigeo_ext import sample_moments
from sigeo_ext.gather import grouped, grouped_op
from sigeo_ext.testing import assert_close, poison_empty, threads
from tests.grouped import CASES, COMPILED, EACH, parts_of, problem
from tests.slices import WIDE, randn

ALL = sample_moments.STATISTICS
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}
# Subnets with rows, [B, width].
PLAIN = pytest.mark.parametrize("name", ["one", "duplicates", "prefixes", "chunks", "some empty"])


def inputs_of(name, dtype=torch.float64, device="cpu"):
    """The subnets' inputs, and gradients of their outputs."""
    case = problem(name, dtype, device)
    x = [v.detach() for v in case.x]
    d = [
        randn(*y.shape, dtype=dtype, seed=70 + s, device=device)
        for s, y in enumerate(case.expected)
    ]
    return x, d


def statistics_of(gradients, factor=1.0):
    """Of float64 gradients [units, ...], by their definitions."""
    g = gradients * factor
    return {
        "sum": gradients.sum(0),
        "abs_sum": g.abs().sum(0),
        "sq_sum": (g**2).sum(0),
        "m2": ((g - g.mean(0)) ** 2).sum(0),
        "sign_sum": gradients.sign().sum(0),
        "sq_norm": (g**2).flatten(1).sum(1),
    }


def whole_gradients(name, x, d):
    """Each subnet's gradient of the super-weight, float64."""
    case = CASES[name]
    found = torch.zeros(len(x), *case.size, dtype=torch.float64, device=x[0].device)
    for s, (o, i) in enumerate(parts_of(case)):
        if d[s].numel() and x[s].numel():
            a, b = (t[s].double().reshape(-1, t[s].shape[-1]) for t in (d, x))
            found[s, o, i] = a.T @ b
    return found


@EACH
@WIDE
@pytest.mark.parametrize("factor", [1.0, -3.0])
def test_statistics_over_subnets_equal_their_definitions(name, dtype, factor, device):
    x, d = inputs_of(name, dtype, device)
    case = CASES[name]
    with poison_empty():
        got = grouped.subnet_moments(
            x, d, case.size, outputs=case.outputs, inputs=case.inputs, want=ALL, factor=factor
        )
    expected = statistics_of(whole_gradients(name, x, d), factor)
    for statistic, value in expected.items():
        found = getattr(got, statistic)
        assert found.dtype == (torch.float64 if statistic == "sq_norm" else dtype)
        assert_close(found, value, tolerance=TOLERANCE[dtype])


@pytest.mark.parametrize("statistic", ALL)
def test_a_statistic_over_subnets_is_computed_alone(statistic, device):
    x, d = inputs_of("many rows", device=device)
    case = CASES["many rows"]
    got = grouped.subnet_moments(
        x, d, case.size, outputs=case.outputs, inputs=case.inputs, want=[statistic]
    )
    expected = statistics_of(whole_gradients("many rows", x, d))[statistic]
    assert_close(getattr(got, statistic), expected)
    assert [v is None for v in got].count(False) == 1


def test_statistics_over_subnets_of_several_tiles(device):
    """Weights larger than a tile, subnets that end within one."""
    outputs, inputs = [300, 129, slice(100, 280), 5], [700, 513, slice(300, 690), 700]
    widths = [(300, 700), (129, 513), (180, 390), (5, 700)]
    x = [randn(4, i, seed=s, device=device) for s, (_, i) in enumerate(widths)]
    d = [randn(4, o, seed=9 + s, device=device) for s, (o, _) in enumerate(widths)]
    got = grouped.subnet_moments(x, d, (300, 700), outputs=outputs, inputs=inputs, want=ALL)
    gradients = torch.zeros(4, 300, 700, dtype=torch.float64, device=device)
    for s, (o, i) in enumerate(zip(outputs, inputs, strict=True)):
        rows, columns = (w if isinstance(w, slice) else slice(w) for w in (o, i))
        gradients[s, rows, columns] = d[s].T @ x[s]
    for statistic, value in statistics_of(gradients).items():
        assert_close(getattr(got, statistic), value)


def test_deviations_survive_a_large_common_gradient(device):
    """m2 in float32 where the mean is 10^4 times the deviations."""
    x = [torch.ones(1, 3, device=device)] * 8
    d = [10_000 + randn(1, 5, dtype=torch.float32, seed=s, device=device) for s in range(8)]
    got = grouped.subnet_moments(x, d, (5, 3), want=["m2"]).m2
    expected = statistics_of(
        torch.stack([v.double().T @ torch.ones(1, 3).to(v).double() for v in d])
    )
    assert_close(got, expected["m2"], tolerance=1e-3)


def test_nan_and_signs_over_subnets(device):
    x = [torch.ones(1, 1, device=device)] * 3
    d = [torch.tensor([[v, 0.0, -1.0]], device=device) for v in (1.0, float("nan"), 2.0)]
    got = grouped.subnet_moments(x, d, (3, 1), want=["sign_sum", "abs_sum"])
    assert got.sign_sum[:, 0].isnan().tolist() == [True, False, False]
    assert got.sign_sum[1:, 0].tolist() == [0.0, -3.0]
    assert got.abs_sum[1:, 0].tolist() == [0.0, 3.0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_has_statistics_in_float32(dtype, device):
    x, d = ([v.to(dtype) for v in tensors] for tensors in inputs_of("prefixes", device=device))
    case = CASES["prefixes"]
    got = grouped.subnet_moments(
        x, d, case.size, outputs=case.outputs, inputs=case.inputs, want=["m2"]
    )
    assert got.m2.dtype == torch.float32
    expected = statistics_of(whole_gradients("prefixes", x, d))["m2"]
    assert_close(got.m2, expected, tolerance=1e-5)


@COMPILED
def test_bits_over_subnets_do_not_depend_on_threads_or_old_memory():
    x = [randn(3 + s, 600, dtype=torch.float32, seed=s) for s in range(5)]
    d = [randn(3 + s, 300, dtype=torch.float32, seed=9 + s) for s in range(5)]
    with threads(1):
        first = grouped.subnet_moments(x, d, (300, 600), want=ALL)
    with threads(2), poison_empty():
        again = grouped.subnet_moments(x, d, (300, 600), want=ALL)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@PLAIN
def test_op_of_statistics_over_subnets(name, device):
    x, d = inputs_of(name, device=device)
    windows = [[], []]
    for places in parts_of(CASES[name]):
        for window, place, count in zip(windows, places, CASES[name].size, strict=True):
            begin, end, _ = place.indices(count)
            window += [begin, end - begin]
    arguments = (x, d, list(CASES[name].size), *windows, 63)
    torch.library.opcheck(grouped_op.gather_grouped_moments, arguments)


@PLAIN
@WIDE
@pytest.mark.parametrize("positions", [None, 3])
def test_statistics_within_subnets_equal_their_definitions(name, dtype, positions, device):
    x, d = inputs_of(name, dtype, device)
    if positions is not None:
        x, d = ([torch.stack([v, 2 * v, 1 - v], 1) for v in t] for t in (x, d))
    got = grouped.sample_moments(x, d, want=ALL)
    for rows, gradient, found in zip(x, d, got, strict=True):
        if not len(rows):
            continue
        flat = [t if t.dim() == 3 else t[:, None] for t in (gradient.double(), rows.double())]
        for statistic, value in statistics_of(flat[0].mT @ flat[1]).items():
            assert_close(getattr(found, statistic), value, tolerance=TOLERANCE[dtype])


@PLAIN
def test_a_subnet_as_a_unit_has_its_own_gradient_and_its_norm(name, device):
    x, d = inputs_of(name, device=device)
    got = grouped.sample_moments(x, d, unit=None, want=["sum", "sq_norm"])
    for rows, gradient, found in zip(x, d, got, strict=True):
        own = gradient.T @ rows
        assert_close(found.sum, own)
        assert_close(found.sq_norm, (own**2).sum()[None])


def test_several_samples_a_unit(device):
    x, d = [randn(4, 3, device=device)], [randn(4, 2, seed=1, device=device)]
    (got,) = grouped.sample_moments(x, d, unit=2, want=["sq_norm"])
    expected = torch.stack([d[0][b : b + 2].T @ x[0][b : b + 2] for b in (0, 2)])
    assert_close(got.sq_norm, (expected**2).sum((1, 2)))


X, D = [randn(2, 3), randn(4, 2)], [randn(2, 4), randn(4, 1)]


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: grouped.sample_moments(X, D[:1]), "d must hold one tensor a subnet, 2, got 1"),
        (
            lambda: grouped.sample_moments(X, D[::-1]),
            "x[0] and d[0] must be [B, width] or [B, T, width] of one B and T, got [2, 3] and [4",
        ),
        (lambda: grouped.sample_moments(X, D, unit=3), "2 samples must be whole units of 3"),
        (lambda: grouped.sample_moments(X, D, want=["mean"]), "want: must be of sum"),
        (lambda: grouped.subnet_moments(X, D, (4, 3), want=["mean"]), "want: must be of sum"),
        (lambda: grouped.subnet_moments([], [], (4, 3)), "at least one subnet, got none"),
        (lambda: grouped.subnet_moments(X, D[:1], (4, 3)), "d must hold one tensor a subnet, 2"),
        (
            lambda: grouped.subnet_moments(X, D, (4, 3), inputs=[3, 2]),
            "d[1] must have the selected 4 values in dimension -1, got 1",
        ),
        (
            lambda: grouped.subnet_moments(X, D, (4, 3), inputs=[3, 4]),
            "inputs[1] must be from 0 to 3, got 4",
        ),
        (
            lambda: grouped.subnet_moments(
                [X[0], X[1].float()], D, (4, 3), outputs=[4, 1], inputs=[3, 2]
            ),
            "x[1] must be float32 or float64 and like x[0], got Float",
        ),
    ],
)
def test_a_wrong_argument_is_named(call, text):
    with pytest.raises((RuntimeError, ValueError)) as caught:
        call()
    assert text in str(caught.value)
