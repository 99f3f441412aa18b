"""How the Triton kernels of all families form matrix products of float32."""

from __future__ import annotations

PRECISIONS = ("ieee", "tf32x3", "tf32")
_precision = "ieee"


def matmul_precision() -> str:
    """The choice that `set_matmul_precision` made, at first "ieee"."""
    return _precision


def set_matmul_precision(precision: str) -> None:
    """Choose how our Triton kernels multiply float32 values; for the process, all threads.

    A backward pass runs in threads of its own, so a choice of one thread would not reach it.
    Products that are the framework's follow ``torch.set_float32_matmul_precision``.

    Args:
        precision: "ieee", float32 throughout; "tf32x3", three products on tensor cores that keep
            nearly all digits of float32 together; "tf32", one product of inputs rounded to 10 bits,
            with relative errors near 1e-3.

    Raises:
        ValueError: Another word.
    """
    global _precision
    if precision not in PRECISIONS:
        raise ValueError(f"precision: must be of {', '.join(PRECISIONS)}, got {precision!r}")
    _precision = precision
