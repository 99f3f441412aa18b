"""Shapes as data: the lists of layers that every test of a list op runs over."""

from __future__ import annotations

import importlib.metadata
import importlib.util

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
