"""Shapes of layers that do not fit together are named as the caller has them."""

from __future__ import annotations

import re

import pytest
import torch

from sigeo_ext import gram, sample_moments

IMAGES, LINES = torch.randn(2, 3, 8, 8), torch.randn(2, 5, 3)


@pytest.mark.parametrize("family", [gram, sample_moments])
@pytest.mark.parametrize(
    ("d", "options", "text"),
    [
        ([2, 4, 8, 8], {}, "d must be [2, 4, 6, 6] for x [2, 3, 8, 8], got [2, 4, 8, 8]"),
        ([2, 4, 6], {}, "d must be [samples, channels, 2 sizes], got [2, 4, 6]"),
        ([3, 4, 6, 6], {}, "x and d must have the same number of samples, got 2 and 3"),
        (
            [2, 4, 3, 8],
            {"stride": (2, 1), "padding": 1, "dilation": (1, 2)},
            "d must be [2, 4, 4, 6] for x [2, 3, 8, 8], got [2, 4, 3, 8]",
        ),
        (
            [2, 4, 1, 1],
            {"dilation": 4},
            "kernel_size must fit into x [2, 3, 8, 8] with its padding, got [3, 3]",
        ),
        (
            [2, 4, 9, 10],
            {"transposed": True},
            "d must have sizes from [10, 10] for x [2, 3, 8, 8], got [2, 4, 9, 10]",
        ),
        (
            [2, 4, 1, 1],
            {"transposed": True, "padding": (0, 5)},
            "d must have sizes from [10, 1] for x [2, 3, 8, 8], got [2, 4, 1, 1]",
        ),
        (
            [3, 4, 10, 10],
            {"transposed": True},
            "x and d must have the same number of samples, got 2 and 3",
        ),
    ],
)
def test_convolutions(family, d, options, text):
    message = f"{family.__name__.removeprefix('sigeo_ext.')}.convolution: {text}"
    with pytest.raises(RuntimeError, match=f"^{re.escape(message)}$"):
        family.convolution(IMAGES, torch.randn(d), [3, 3], **options)


@pytest.mark.parametrize("family", [gram, sample_moments])
@pytest.mark.parametrize(
    ("x", "d", "text"),
    [
        (LINES, [2, 4, 4], "d must be [2, 5, outputs] for x [2, 5, 3], got [2, 4, 4]"),
        (LINES, [2, 4], "d must be [2, 5, outputs] for x [2, 5, 3], got [2, 4]"),
        (LINES[:, 0], [4], "d must be [2, outputs] for x [2, 3], got [4]"),
        (LINES[:, 0], [3, 4], "x and d must have the same number of samples, got 2 and 3"),
        (
            LINES[0, 0],
            [2],
            "x must be [samples, inputs] or [samples, positions, inputs], got [3]",
        ),
    ],
)
def test_linear_layers(family, x, d, text):
    message = f"{family.__name__.removeprefix('sigeo_ext.')}.linear: {text}"
    with pytest.raises(RuntimeError, match=f"^{re.escape(message)}$"):
        family.linear(x, torch.randn(d))


@pytest.mark.parametrize("family", [gram, sample_moments])
def test_calls_that_lack_an_argument_are_told_by_python(family):
    for function, given in ((family.convolution, (IMAGES, IMAGES)), (family.linear, (LINES,))):
        with pytest.raises(TypeError, match=f"^{function.__name__}\\(\\) missing 1 required"):
            function(*given)


@pytest.mark.parametrize("family", [gram, sample_moments])
@pytest.mark.parametrize(
    ("kernel", "options", "text"),
    [
        ([3, 3], {"padding": -1}, "padding at least 0"),
        ([3, 3], {"dilation": 0}, "must be positive"),
        ([], {}, "kernel must have 1 to 3 dimensions, got 0"),
    ],
)
def test_settings_that_no_shape_serves_are_told_before_shapes(family, kernel, options, text):
    x = IMAGES if kernel else IMAGES[:, :, 0, 0]
    with pytest.raises(RuntimeError, match=text):
        family.convolution(x, x, kernel, **options)


@pytest.mark.parametrize("family", [gram, sample_moments])
@pytest.mark.parametrize("room", [0, 1])
def test_transposed_convolutions_may_extend_their_output(family, room):
    x, d = torch.randn(2, 3, 4, 4), torch.randn(2, 4, 9 + room, 9)
    family.convolution(x, d, [3, 3], stride=2, transposed=True)
    with pytest.raises(RuntimeError, match="groups must divide the channels 4 and 3, got 2$"):
        family.convolution(x, d, [3, 3], stride=2, transposed=True, groups=2)
