"""Helpers to test kernels and layers with: tolerances, error norms, poisoned memory, a judge.

Public, so that users can hold their own layers and ops to the same standard.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from sigeo_ext._kinds import named_arguments
from sigeo_ext._per_sample import PER_SAMPLE_TOLERANCE, PerSampleCheck, Worst, check_per_sample

__all__ = [
    "PER_SAMPLE_TOLERANCE",
    "TOLERANCE",
    "PerSampleCheck",
    "Worst",
    "assert_close",
    "check_per_sample",
    "error_ratio",
    "poison_empty",
    "threads",
]

TOLERANCE = {
    torch.float64: 1e-12,
    torch.float32: 1e-5,
    torch.float16: 2e-3,
    torch.bfloat16: 2e-2,
}
"""Largest error ratio that `assert_close` accepts, by the less precise of the two dtypes."""


@named_arguments("error_ratio")
def error_ratio(actual: Tensor, expected: Tensor) -> float:
    """``||actual - expected|| / ||expected||`` in float64; 0 if both are empty or zero.

    Equal infinities and NaNs in the same place count as no error, a NaN elsewhere as infinite.

    Raises:
        ValueError: The shapes differ.
    """
    a, e = actual.detach().double().cpu(), expected.detach().double().cpu()
    if a.shape != e.shape:
        raise ValueError(
            f"error_ratio: shapes must be equal, got {list(a.shape)} and {list(e.shape)}"
        )
    same = (a == e) | (a.isnan() & e.isnan())
    difference = torch.where(same, 0.0, a - e)
    scale = torch.where(same & ~e.isfinite(), 0.0, e)
    if not difference.any():
        return 0.0
    largest = torch.maximum(difference.abs().max(), scale.abs().max())
    if not largest.isfinite():
        return float("inf")
    # Squares would leave the range of float64, above as below.
    return float((difference / largest).norm() / (scale / largest).norm())


@named_arguments("assert_close")
def assert_close(
    actual: Tensor | Sequence[Tensor],
    expected: Tensor | Sequence[Tensor],
    *,
    tolerance: float | None = None,
) -> None:
    """Assert that tensors, or two lists of them, agree in number, shape and by their error ratio.

    Args:
        actual: What came out.
        expected: What should have.
        tolerance: The largest error ratio; from `TOLERANCE` if not given.

    Raises:
        AssertionError: They do not; the message names the first that differs and its error.
    """
    if isinstance(actual, Tensor) and isinstance(expected, Tensor):
        actual, expected = [actual], [expected]
    if len(actual) != len(expected):
        raise AssertionError(f"{len(actual)} tensors, expected {len(expected)}")
    for index, (a, e) in enumerate(zip(actual, expected, strict=True)):
        if a.shape != e.shape:
            raise AssertionError(f"[{index}] shape {list(a.shape)}, expected {list(e.shape)}")
        limit = tolerance
        if limit is None:
            limit = max(TOLERANCE.get(a.dtype, 0.0), TOLERANCE.get(e.dtype, 0.0))
        ratio = error_ratio(a, e)
        if not ratio <= limit:
            raise AssertionError(f"[{index}] error ratio {ratio:.3g}, at most {limit:.3g} allowed")


@contextlib.contextmanager
def poison_empty() -> Iterator[None]:
    """Fill uninitialised tensors with NaN (integers: the largest value), also those made in C++.

    What an op leaves unwritten then shows in its result.
    """
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    memory: Any = torch.utils.deterministic
    fill = memory.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    memory.fill_uninitialized_memory = True
    try:
        yield
    finally:
        memory.fill_uninitialized_memory = fill
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    """Run with ``count`` intra-op threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
