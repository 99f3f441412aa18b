"""The kernels of sample_moments, layer by layer, over the layer's ordinary weight gradient.

On the GPU if there is one, once for each precision; else on one thread of the processor. A row's
``over_gradient`` is the median over rounds of its time over that of the weight gradient alone.

    python bench/run.py --only sample_moments
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from bench import harness
from sigeo_ext.sample_moments import matmul_precision, op, precision, tiles


@dataclass(frozen=True)
class Layer:
    """A convolution with padding that keeps the size; a linear layer where the kernel is (1,)."""

    samples: int
    size: tuple[int, ...]
    inputs: int
    outputs: int
    kernel: tuple[int, ...]
    groups: int = 1

    def __str__(self) -> str:
        each = "x".join(map(str, self.kernel))
        size = "x".join(map(str, self.size))
        groups = f", {self.groups} groups" if self.groups > 1 else ""
        return f"{each} {self.inputs}->{self.outputs} at {size}{groups}, batch {self.samples}"

    def tensors(self, device: str) -> tuple[torch.Tensor, torch.Tensor]:
        """An input and an output gradient, channels last."""
        sizes = ((self.samples, *self.size, channels) for channels in (self.inputs, self.outputs))
        x, d = (torch.randn(size, device=device) for size in sizes)
        return x, d

    @property
    def geometry(self) -> tuple[list[int], list[int], list[int]]:
        """Stride, padding, dilation."""
        one = [1] * len(self.kernel)
        return one, [k // 2 for k in self.kernel], one

    def statistics(self, want: int, device: str) -> Callable[[], object]:
        """The op on this layer."""
        x, d = self.tensors(device)
        rest = (list(self.kernel), *self.geometry, self.groups, 1, 1, want, 1.0)
        return lambda: op.sample_moments_convolution(x, d, *rest)

    def gradient(self, device: str) -> Callable[[], object]:
        """The ordinary weight gradient."""
        x, d = (value.movedim(-1, 1) for value in self.tensors(device))
        weight = torch.randn(self.outputs, self.inputs // self.groups, *self.kernel, device=device)
        stride, padding, dilation = self.geometry
        return lambda: torch.ops.aten.convolution_backward(
            d, x, weight, None, stride, padding, dilation, False, [0] * len(stride), self.groups,
            [False, True, False],
        )  # fmt: skip


LAYERS = (
    Layer(64, (32, 32), 3, 16, (3, 3)),
    Layer(64, (32, 32), 16, 16, (3, 3)),
    Layer(64, (16, 16), 32, 32, (3, 3)),
    Layer(64, (8, 8), 64, 64, (3, 3)),
    Layer(64, (8, 8), 64, 64, (1, 1)),
    Layer(32, (14, 14), 256, 256, (3, 3)),
    Layer(32, (128,), 768, 768, (1,)),
    Layer(64, (16, 16), 96, 96, (3, 3), 96),
)


def layer_rows(layer: Layer, rounds: int, calls: int) -> list[dict[str, Any]]:
    """The statistics, and the weight gradient beside them, in turn."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    run = layer.statistics(tiles.FEW, device)
    programs = {"weight gradient": layer.gradient(device)}
    if device == "cuda":
        for name in precision.PRECISIONS:
            programs[f"triton, {name}"] = partial(_with_precision, name, run)
    else:
        programs["kernel"] = run
    with harness.thread_count(1):
        times = harness.in_turn(programs, rounds=rounds, clock=time.perf_counter, calls=calls)
        plain = times["weight gradient"]
        return [
            harness.row(
                "sample_moments_convolution"
                if name != "weight gradient"
                else "convolution_backward",
                name,
                found,
                baseline="weight gradient",
                device=device,
                shape=str(layer),
                clock="wall",
                over_gradient=statistics.median(harness.ratio(found, plain).seconds),
            )
            for name, found in times.items()
        ]


def _with_precision(name: str, call: Callable[[], object]) -> None:
    before = matmul_precision()
    precision.set_matmul_precision(name)
    try:
        call()
    finally:
        precision.set_matmul_precision(before)


def rows() -> list[dict[str, Any]]:
    """Every layer; float32 throughout, so cuDNN's TF32 is off for the weight gradient too."""
    return [row for part in rows_of_layers() for row in part]


def rows_of_layers() -> Iterator[list[dict[str, Any]]]:
    """The same layer by layer.

    Yields:
        Rows of one layer.
    """
    rounds, calls = (15, 20) if torch.cuda.is_available() else (7, 1)
    for layer in LAYERS:
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            found = layer_rows(layer, rounds, calls)
        yield found
