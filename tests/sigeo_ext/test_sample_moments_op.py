"""The sample_moments ops: against their references, as custom ops, and what they refuse."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sigeo_ext import gram
from sigeo_ext import sample_moments as sm
from sigeo_ext.sample_moments import op, reference
from sigeo_ext.testing import assert_close
from tests.cases import needs_kernels
from tests.sigeo_ext.sample_loop import FLOATS


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


@pytest.mark.parametrize("layer", ["norms", "products"])
def test_convolutions_of_dynamic_shapes_compile_into_one_graph(layer):
    def measured(x, d):
        if layer == "products":
            return gram.convolution(x, d, [3, 3], padding=1)
        return sm.convolution(x, d, [3, 3], padding=1, want=["sq_norm"]).sq_norm

    torch.compiler.reset()
    compiled = torch.compile(measured, fullgraph=True, dynamic=True, backend="aot_eager")
    for samples in (4, 7):
        x, d = torch.randn(samples, 30, 2, 2), torch.randn(samples, 40, 2, 2)
        assert_close(compiled(x, d), measured(x, d))


def test_linear_layers_of_dynamic_shapes_compile_into_one_graph_together():
    def measured(x, d):
        return gram.linear(x, d), sm.linear(x, d, want=["sq_norm"]).sq_norm

    torch.compiler.reset()
    compiled = torch.compile(measured, fullgraph=True, dynamic=True, backend="aot_eager")
    for samples in (4, 7):
        x, d = torch.randn(samples, 3, 5), torch.randn(samples, 3, 7)
        for found, expected in zip(compiled(x, d), measured(x, d), strict=True):
            assert_close(found, expected)


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
    "number": ((X[0, 0, 0], D, *GEOMETRY, 1, 1, 1, 1.0), r"x must be .*, got \[\]"),
    "stride": ((X, D, [1], [0], [0], [1], 1, 1, 1, 1, 1.0), "stride and dilation must be positive"),
    "padding": ((X, D, [1], [1], [-1], [1], 1, 1, 1, 1, 1.0), "padding at least 0"),
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
    with pytest.raises(RuntimeError, match=f"^sample_moments_convolution: .*{message}"):
        call(*arguments)


LAYERS = {
    "convolution": lambda segments: sm.convolution(X.mT, D.mT, [1], segments=segments),
    "norms": lambda segments: sm.convolution(X.mT, D.mT, [1], segments=segments, want=["sq_norm"]),
    "linear": lambda segments: sm.linear(X, D, segments=segments),
    "rows": lambda segments: sm.rows(X, segments=segments),
}


@pytest.mark.parametrize("layer", LAYERS)
def test_no_segments_are_refused(layer):
    with pytest.raises(RuntimeError, match="segments must be at least 1, got 0"):
        LAYERS[layer](0)


@pytest.mark.parametrize(
    ("d", "text"),
    [(D[0, 0], r".linear: d must be \[4, outputs\] for x \[4, 3\], got \[5\]$"),
     (D[:3, 0], ".linear: x and d must have the same number of samples, got 4 and 3"),
     (D[:, 0].double(), "_convolution: x and d must have one dtype, got Float and Double")],
)  # fmt: skip
def test_linear_layers_of_one_position_refuse_what_the_kernels_refuse(d, text):
    with pytest.raises(RuntimeError, match=f"^sample_moments{text}"):
        sm.linear(X[:, 0], d)


@pytest.mark.parametrize("implementation", ["op", "reference"])
def test_gradients_that_are_no_numbers_of_ours_are_refused_by_name(implementation):
    module, prefix = (reference, "") if implementation == "reference" else (op, "sample_moments_")
    calls = {
        "rows": (X[0].int(), 1, 1, 1, 1.0),
        "embedding": (torch.arange(4), None, X[:, 0].int(), 4, 1, -1, 1, 1.0),
        "tables": (torch.arange(4)[:, None], X[:, :1].int(), 1, 1, 1.0),
    }
    for function, arguments in calls.items():
        name = "rows" if function == "rows" else "gradients"
        text = f"sample_moments_{function}: {name} must be float32"
        with pytest.raises(RuntimeError, match=text):
            getattr(module, prefix + function)(*arguments)
    with pytest.raises(RuntimeError, match=r"gradients must be \[samples, \*shape\], got \[\]"):
        sm.rows(X[0, 0, 0])


@pytest.mark.parametrize(
    ("want", "message"),
    [
        (["median"], "want: must be of sum, .*, got 'median'"),
        ([], "want: must be some of sum, .*, got none"),
        ("sum", "want: expected a list of names, got the text 'sum'"),
    ],
)
def test_what_is_no_set_of_statistics_is_refused(want, message):
    with pytest.raises(ValueError, match=message):
        sm.linear(X, D, want=want)


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
