"""Shapes as data: what the tests of an op run over."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from typing import Any

import pytest
import torch
from torch import Tensor

from sigeo_ext import implementations

LAYERS: dict[str, list[tuple[int, ...]]] = {
    "none": [],
    "scalar": [()],
    "one": [(1,)],
    "zero-size": [(0,), (3, 0, 2), (4,)],
    "odd": [(2,), (129,), (151, 3), (372,), (1134,)],
    "convs": [(16, 3, 3, 3), (32, 16, 1, 1), (8, 1, 5, 5), (10, 64)],
    "one-chunk": [(16384,)],
    "chunks": [(3, 16411), (5,), (2, 8192), (70001,)],
    "long-list": [(7,)] * 700,
}
# Shape of the input, shape of the weight, options.
CONVOLUTIONS: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "3x3": ((6, 8, 9, 9), (16, 8, 3, 3), {"padding": 1}),
    "stem": ((5, 3, 8, 8), (20, 3, 3, 3), {"padding": 1, "stride": 2}),
    "wide": ((4, 40, 4, 4), (70, 40, 3, 3), {"padding": 1}),
    "pointwise": ((7, 5, 6, 6), (33, 5, 1, 1), {}),
    "dilated": ((3, 4, 11, 9), (8, 4, 3, 2), {"padding": (2, 1), "dilation": (2, 3)}),
    "groups": ((4, 8, 7, 7), (12, 2, 3, 3), {"groups": 4, "stride": (2, 1)}),
    "depthwise": ((4, 9, 7, 7), (9, 1, 3, 3), {"groups": 9, "padding": 1}),
    "multiplier": ((4, 6, 7, 7), (12, 1, 3, 3), {"groups": 6, "padding": 1}),
    "signal": ((5, 6, 23), (10, 6, 5), {"padding": 2, "stride": 2}),
    "volume": ((3, 4, 5, 6, 4), (6, 4, 2, 3, 2), {"padding": (1, 0, 1), "stride": (1, 2, 1)}),
    "beyond": ((4, 3, 2, 2), (5, 3, 5, 5), {"padding": 2}),
    "one-sample": ((1, 3, 5, 5), (4, 3, 3, 3), {}),
}
# Equal bits are what the compiled kernels promise; the references promise equal numbers.
needs_kernels = pytest.mark.skipif(
    {row["cpu"] for row in implementations().values()} != {"cpu"},
    reason="the compiled kernels do not serve here",
)


def _triton_serves() -> bool:
    """Triton is there, and can run here: on a GPU, or interpreted by a version that can."""
    if importlib.util.find_spec("triton") is None:
        return False
    # The interpreter of 3.6 fails on loop bounds that are not constants, with NumPy 2.4.
    numbers = importlib.metadata.version("triton").split(".")[:2]
    return torch.cuda.is_available() or tuple(map(int, numbers)) >= (3, 9)


needs_triton = pytest.mark.skipif(
    not _triton_serves(), reason="needs triton, and 3.9 or newer where there is no GPU"
)
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def tensors(
    layers: list[tuple[int, ...]],
    dtype: torch.dtype = torch.float32,
    *,
    seed: int = 0,
    device: str = "cpu",
) -> list[Tensor]:
    """Random values of many magnitudes, one tensor a layer."""
    generator = torch.Generator().manual_seed(seed)
    values = []
    for shape in layers:
        value = torch.randn(shape, generator=generator, dtype=torch.float64)
        value = value * torch.exp(torch.randn(shape, generator=generator, dtype=torch.float64))
        values.append(value.to(dtype).to(device))
    return values
