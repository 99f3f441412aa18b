"""The saliency op: against float64 arithmetic spelled out, its reference, and itself."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from sigeo_ext import moments, saliency
from sigeo_ext.saliency import COLUMNS, op, reference
from sigeo_ext.testing import assert_close, poison_empty, threads
from tests.cases import DTYPES, LAYERS, needs_kernels, tensors

pytestmark = pytest.mark.filterwarnings("error")
CASES = pytest.mark.parametrize("layers", LAYERS.values(), ids=LAYERS.keys())
TYPES = pytest.mark.parametrize("dtype", DTYPES, ids=str)
EVERY = (1 << len(COLUMNS)) - 1


def pair(layers, dtype=torch.float32, *, device="cpu", seed=0):
    """Weights, and gradients above -1, whose log1p is a number."""
    weights = tensors(layers, dtype, seed=seed, device=device)
    gradients = tensors(layers, torch.float64, seed=seed + 1, device=device)
    return weights, [torch.where(g > -0.9, g, g.abs()).to(dtype) for g in gradients]


def spelled_out(w: Tensor, g: Tensor) -> list[float]:
    """Every column of one layer, coordinate by coordinate, each sum rounded once."""
    pairs = list(zip(w.double().flatten().tolist(), g.double().flatten().tolist(), strict=True))
    total = math.fsum(abs(a * b) for a, b in pairs)
    return [
        math.fsum(a * b for a, b in pairs),
        total,
        math.log(total) if total else -math.inf,
        math.fsum(abs(a * math.log1p(b)) for a, b in pairs),
        math.fsum(a * a for a, _ in pairs),
        math.fsum(b * b for _, b in pairs),
    ]


def stacked(sums: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(sums.values()), 1)


@CASES
@TYPES
def test_columns_equal_their_definitions(layers, dtype, device):
    weights, gradients = pair(layers, dtype, device=device)
    got = stacked(saliency.sums(weights, gradients, want=COLUMNS)).cpu()
    expected = [spelled_out(w, g) for w, g in zip(weights, gradients, strict=True)]
    judge = torch.tensor(expected, dtype=torch.float64).reshape(len(layers), len(COLUMNS))
    for column in range(len(COLUMNS)):
        assert_close(got[:, column], judge[:, column], tolerance=1e-12)


@CASES
@TYPES
def test_op_equals_reference(layers, dtype, device):
    weights, gradients = pair(layers, dtype, device=device)
    for want in (1, 2, 4, 8, 16, 32, 5, 50, EVERY):
        got = op.saliency_sums(weights, gradients, want)
        assert got.shape == (len(layers), want.bit_count()) and got.dtype == torch.float64
        assert_close(got, reference.sums(weights, gradients, want), tolerance=1e-11)


def test_a_column_is_the_same_whatever_else_is_wanted(device):
    weights, gradients = pair(LAYERS["chunks"], device=device)
    every = saliency.sums(weights, gradients, want=COLUMNS)
    for name in COLUMNS:
        alone = saliency.sums(weights, gradients, want=[name])
        assert list(alone) == [name] and torch.equal(alone[name], every[name])
    assert list(saliency.sums(weights, gradients, want=COLUMNS[::-1])) == list(COLUMNS[::-1])
    assert torch.equal(
        saliency.sums(weights, gradients, want="product")["product"], every["product"]
    )


def test_product_is_the_inner_product_of_moments(device):
    weights, gradients = pair(LAYERS["odd"], device=device)
    product = saliency.sums(weights, gradients, want=["product"])["product"]
    assert_close(product, moments.dot(weights, gradients), tolerance=1e-12)


def test_absent_gradients_are_zeros(device):
    weights, gradients = pair([(5,), (16, 3), (7,)], device=device)
    holed = saliency.sums(weights, [None, gradients[1], None], want=COLUMNS)
    zeros = [torch.zeros_like(w) for w in weights]
    filled = saliency.sums(weights, [zeros[0], gradients[1], zeros[2]], want=COLUMNS)
    assert all(torch.equal(holed[name], filled[name]) for name in COLUMNS)
    none = saliency.sums(weights, [None] * 3, want=["log_abs_product"])["log_abs_product"]
    assert torch.equal(none, torch.full_like(none, -math.inf))


def test_norms_of_weights_need_no_gradients(device):
    weights, _ = pair(LAYERS["convs"], device=device)
    got = saliency.sums(weights, want=["weight_sq"])["weight_sq"]
    assert_close(got.sqrt(), torch.stack([w.double().norm() for w in weights]), tolerance=1e-12)


def test_mixed_dtypes_lose_nothing(device):
    wide = torch.tensor([1e200, 1.0], dtype=torch.float64, device=device)
    half = torch.tensor([2.0, 0.5], dtype=torch.bfloat16, device=device)
    weights, gradients = [wide, half, wide.float().clamp(max=1)], [half, wide, wide]
    got = saliency.sums(weights, gradients, want=["abs_product"])["abs_product"]
    expected = torch.tensor([2e200, 2e200, 1e200], dtype=torch.float64)
    assert_close(got.cpu(), expected, tolerance=1e-12)


@pytest.mark.parametrize(
    ("w", "g", "expected"),
    [
        ([1e300, 1e300], [1e300, 1e300], 600 * math.log(10) + math.log(2)),
        ([1e-300, 1e-300], [1e-300, 1e-300], -600 * math.log(10) + math.log(2)),
        ([1e300, 1e-300], [1e-300, 1e300], math.log(2)),
        ([1e300, 3.0], [1e300, 7.0], 600 * math.log(10)),
        ([1e-300, 3.0], [1e-300, 7.0], math.log(21)),
        ([5e-324, 0.0], [5e-324, 0.0], 2 * math.log(5e-324)),
        ([0.0, 1e300], [1e300, 0.0], -math.inf),
        ([1.7e308] * 2, [-1.7e308] * 2, 2 * math.log(1.7e308) + math.log(2)),
        ([2.0**450] * 2, [2.0**450, 2.0**449], 900 * math.log(2) + math.log(1.5)),
        ([2.0**-450] * 2, [2.0**-450, 2.0**-451], -900 * math.log(2) + math.log(1.5)),
        ([math.inf, 1.0], [1.0, 1.0], math.inf),
        ([math.inf, 1.0], [0.0, 1.0], math.nan),
        ([math.nan, 1e300], [1.0, 1e300], math.nan),
    ],
)
def test_log_neither_overflows_nor_vanishes(w, g, expected, device):
    weights, gradients = (
        [torch.tensor(values, dtype=torch.float64, device=device)] for values in (w, g)
    )
    for got in (
        saliency.sums(weights, gradients, want=["log_abs_product"])["log_abs_product"],
        reference.sums(weights, gradients, 1 << COLUMNS.index("log_abs_product"))[:, 0],
    ):
        assert got.item() == pytest.approx(expected, rel=1e-13, abs=1e-13, nan_ok=True)


def test_log_of_sums_beyond_float32(device):
    weights = [torch.full((1000,), 1e30, device=device)]
    got = saliency.sums(weights, weights, want=["log_abs_product", "abs_product"])
    value = float(weights[0][0].double())
    assert got["log_abs_product"].item() == pytest.approx(math.log(1000) + 2 * math.log(value))
    assert got["abs_product"].item() == pytest.approx(1000 * value**2)


def test_log1p_is_right_at_every_magnitude(device):
    sizes = torch.logspace(-320, 308, 2000, dtype=torch.float64)
    values = torch.cat([sizes, -sizes[sizes < 1], torch.rand(500, dtype=torch.float64) - 1])
    extremes = [0.0, -1 + 2.0**-53, 2.0**600, 1.79e308]
    values = torch.cat([values, torch.tensor(extremes, dtype=torch.float64)])
    one = torch.ones(1, dtype=torch.float64, device=device)
    gradients = list(values.to(device)[:, None].unbind())
    got = saliency.sums([one] * len(values), gradients, want=["log1p_product"])["log1p_product"]
    expected = torch.tensor([abs(math.log1p(v)) for v in values.tolist()], dtype=torch.float64)
    assert torch.equal(got.cpu()[expected == 0], expected[expected == 0])
    kept = expected > 1e-300
    assert ((got.cpu()[kept] / expected[kept]) - 1).abs().max() < 3 * 2.0**-52


@pytest.mark.parametrize(
    ("g", "expected"), [(-1.0, math.inf), (-1.5, math.nan), (math.inf, math.inf)]
)
def test_log1p_at_its_edges(g, expected, device):
    for dtype in (torch.float32, torch.float64):
        w, g_ = (torch.tensor([v], dtype=dtype, device=device) for v in (2.0, g))
        got = saliency.sums([w], [g_], want=["log1p_product"])["log1p_product"].item()
        assert got == expected or (math.isnan(got) and math.isnan(expected))


@pytest.mark.parametrize("rare", [2.0**601, 1.79e308, -1 + 2.0**-53])
def test_log1p_of_a_block_with_a_rare_value(rare, device):
    gradient = torch.linspace(-0.9, 9.0, 600, dtype=torch.float64)
    gradient[300] = rare
    weights = [torch.ones(600, dtype=torch.float64, device=device)]
    got = saliency.sums(weights, [gradient.to(device)], want=["log1p_product"])["log1p_product"]
    expected = math.fsum(abs(math.log1p(v)) for v in gradient.tolist())
    assert got.item() == pytest.approx(expected, rel=1e-14)


@TYPES
@pytest.mark.parametrize("where", ["weights", "gradients"])
def test_nan_reaches_every_column_it_touches(where, dtype, device):
    weights, gradients = pair([(40000,), (3,)], dtype, device=device)
    (weights if where == "weights" else gradients)[0][17] = math.nan
    got = saliency.sums(weights, gradients, want=COLUMNS)
    untouched = "gradient_sq" if where == "weights" else "weight_sq"
    for name, value in got.items():
        assert value[0].isnan() == (name != untouched) and value[1].isfinite(), name


def test_any_order_in_memory_gives_the_same(device):
    (weight,), (gradient,) = pair([(6, 4, 3, 5)], device=device)
    expected = stacked(saliency.sums([weight], [gradient], want=COLUMNS))
    wide = torch.zeros(6, 8, 3, 5, device=device)
    wide[:, ::2] = weight
    last = torch.channels_last
    shifted = torch.empty(gradient.numel() + 1, device=device)[1:].view_as(gradient)
    shifted.copy_(gradient)
    for w, g in (
        (wide[:, ::2], gradient.to(memory_format=last)),
        (weight.to(memory_format=last), shifted),
        (weight.transpose(0, 3).contiguous().transpose(0, 3), gradient.expand(2, 6, 4, 3, 5)[1]),
    ):
        assert_close(stacked(saliency.sums([w], [g], want=COLUMNS)), expected, tolerance=1e-12)


def test_outputs_are_written_whole(device):
    weights, gradients = pair(LAYERS["zero-size"], device=device)
    with poison_empty():
        got = stacked(saliency.sums(weights, gradients, want=COLUMNS))
    assert not got.isnan().any()
    assert got[0].tolist() == [0, 0, -math.inf, 0, 0, 0]


@needs_kernels
def test_same_bits_whatever_the_threads():
    for dtype in DTYPES:
        weights, gradients = pair(LAYERS["chunks"], dtype)
        with threads(1):
            first = stacked(saliency.sums(weights, gradients, want=COLUMNS))
        for count in (1, 2, 3, 4):
            with threads(count):
                again = stacked(saliency.sums(weights, gradients, want=COLUMNS))
            assert torch.equal(first, again)


def test_names_that_are_not_columns_are_refused():
    weights = [torch.ones(3)]
    for want, got in ((["snip"], "snip"), ([], "none"), (["product"] * 2, "product, product")):
        with pytest.raises(
            ValueError, match=f"^saliency.sums: want must be some of product, .* got {got}$"
        ):
            saliency.sums(weights, weights, want=want)


A, B = torch.ones(3), torch.ones(2, 2)
BAD_CALLS = {
    "want": (([A], [A], 64), r"want must be a set of columns, 1 to 63, got 64"),
    "want-none": (([A], [A], 0), r"want must be a set of columns, 1 to 63, got 0"),
    "length": (([A, A], [A], 1), r"gradients must hold one tensor a layer, 2, got 1"),
    "no-gradients": (([A], [], 17), r"gradients must hold one tensor a layer, 1, got 0"),
    "shape": (([A], [B], 2), r"gradients\[0\] must have its layer's shape \[3\], got \[2, 2\]"),
    "dtype": (
        ([A], [torch.ones(3, dtype=torch.int64)], 2),
        r"gradients\[0\] must be float32, float64, bfloat16 or float16, got Long",
    ),
    "unread": (([A], [B], 16), r"gradients\[0\] must have its layer's shape \[3\], got \[2, 2\]"),
}


@pytest.mark.parametrize("call", [op.saliency_sums, reference.sums], ids=["op", "reference"])
@pytest.mark.parametrize("name", BAD_CALLS)
def test_errors_name_argument_expectation_and_what_came(call, name):
    arguments, message = BAD_CALLS[name]
    with pytest.raises(RuntimeError, match=f"^saliency_sums: {message}"):
        call(*arguments)
