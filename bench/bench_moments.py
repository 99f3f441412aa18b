"""The moments kernels: bytes a second against the machine's own stream, and against plain torch.

The stream reads and writes as much, in place: the ceiling of an update on this machine. The cases
of pytest-benchmark at the end have the small sizes and the reductions.

    python bench/run.py --only moments
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bench import harness
from sigeo_ext import moments
from sigeo_ext.moments import reference

COORDINATES = 10_000_000
# Layers of a ResNet-50, by their number of weights, for lists of many sizes.
RESNET50 = [
    9408,
    *[4096, 36864, 16384, 16384] * 4,
    *[32768, 147456, 65536] * 4,
    *[131072, 589824, 262144] * 6,
    *[524288, 2359296, 1048576] * 3,
    2048000,
]


def lists(sizes: list[int], device: str = "cpu") -> list[list[Tensor]]:
    """Three lists of a state and four of gradients, random."""
    generator = torch.Generator().manual_seed(0)
    values = [[torch.randn(n, generator=generator) for n in sizes] for _ in range(7)]
    values[2] = [v.square() for v in values[2]]
    return [[v.to(device) for v in some] for some in values]


def three_ops(
    abs_sum: list[Tensor], mean: list[Tensor], m2: list[Tensor], grads: list[Tensor]
) -> None:
    """The update as three statements of eager torch, the old mean kept for the third."""
    for a, mu, q, g in zip(abs_sum, mean, m2, grads, strict=True):
        a += g.abs()
        old = mu.clone()
        mu += (g - old) / 4
        q += (g - old) * (g - mu)


def foreach(
    abs_sum: list[Tensor], mean: list[Tensor], m2: list[Tensor], grads: list[Tensor]
) -> None:
    """The update in torch's list operators."""
    torch._foreach_add_(abs_sum, torch._foreach_abs(grads))
    delta = torch._foreach_sub(grads, mean)
    torch._foreach_add_(mean, delta, alpha=0.25)
    torch._foreach_addcmul_(m2, delta, torch._foreach_sub(grads, mean))


def updates(sizes: list[int], shape: str, threads: int, rounds: int = 15) -> list[dict[str, Any]]:
    """`update_` beside the in-place stream with the same reads and writes, and beside torch."""
    from sigeo_ext import _host

    total = sum(sizes)
    a, mean, m2, g, *_ = lists(sizes)
    arrays = [np.ones(total, np.float32) for _ in range(4)]
    with harness.thread_count(threads):
        times = harness.in_turn(
            {
                "kernel": lambda: moments.update_(a, mean, m2, g, count=3),
                "stream": lambda: _host.stream(*arrays, threads=threads),
                "three torch ops": lambda: three_ops(a, mean, m2, g),
                "torch foreach": lambda: foreach(a, mean, m2, g),
                "reference": lambda: reference.update_(a, mean, m2, g, 3),
            },
            rounds=rounds,
            warmup=2,
            clock=time.perf_counter,
        )
        stream = 28 * total / times["stream"].median / 1e9
        rows = []
        for name, measured in times.items():
            entry = harness.row(
                "moments_update_",
                name,
                measured,
                shape=shape,
                clock="wall",
                baseline="three torch ops",
                speedup=harness.ratio(times["three torch ops"], measured),
                bytes_moved=28 * total if name in ("kernel", "stream") else None,
                stream_gb_per_s=stream,
            )
            rows.append(entry)
        share = harness.ratio(times["stream"], times["kernel"])
        rows[0]["config"]["share_median_of_rounds"] = share.median
    return rows


def summaries(sizes: list[int], shape: str, threads: int, rounds: int = 9) -> list[dict[str, Any]]:
    """One read of four gradients against their four updates and the reduction after them."""
    a, mean, m2, *units = lists(sizes)
    total = sum(sizes)

    def streamed() -> None:
        for count, grads in enumerate(units):
            moments.update_(a, mean, m2, grads, count=count)
        moments.summary(a, mean, m2, count=4, weights=units[0])

    def published() -> None:
        for layer in range(len(sizes)):
            rows = np.stack([unit[layer].numpy() for unit in units])
            std = rows.std(0)
            kept = np.nonzero(std)[0]
            (np.abs(rows).mean(0)[kept] / std[kept]).sum()
            (rows.sum(0) * units[0][layer].numpy()).sum()

    with harness.thread_count(threads):
        times = harness.in_turn(
            {
                "rows_summary": lambda: moments.rows_summary(units, weights=units[0]),
                "four updates, summary": streamed,
                "published, NumPy": published,
            },
            rounds=rounds,
            clock=time.perf_counter,
        )
        moved = {
            "rows_summary": 20 * total,
            "four updates, summary": (16 + 20 + 28 + 28 + 16) * total,
        }
        return [
            harness.row(
                "moments of 4 batches",
                name,
                measured,
                shape=shape,
                clock="wall",
                baseline="published, NumPy",
                speedup=harness.ratio(times["published, NumPy"], measured),
                bytes_moved=moved.get(name),
            )
            for name, measured in times.items()
        ]


def on_gpu(sizes: list[int], shape: str, rounds: int = 15) -> list[dict[str, Any]]:
    """`update_` and the reductions on a GPU, beside a copy with its bytes counted and torch."""
    a, mean, m2, *units = lists(sizes, "cuda")
    total = sum(sizes)
    source, target = torch.randn(4 * total, device="cuda"), torch.empty(4 * total, device="cuda")
    programs: dict[str, tuple[int | None, Callable[[], object]]] = {
        "copy": (32, lambda: target.copy_(source)),
        "update_": (28, lambda: moments.update_(a, mean, m2, units[0], count=3)),
        "update_, torch foreach": (None, lambda: foreach(a, mean, m2, units[0])),
        "rows_summary": (20, lambda: moments.rows_summary(units, weights=units[0])),
        "summary": (16, lambda: moments.summary(a, mean, m2, count=4, weights=units[0])),
        "dot": (8, lambda: moments.dot(a, mean)),
    }

    times = harness.in_turn(
        {name: call for name, (_, call) in programs.items()},
        rounds=rounds,
        warmup=3,
        clock=time.perf_counter,
        calls=20,
    )
    copy = 32 * total / times["copy"].median / 1e9
    return [
        harness.row(
            f"moments {name}",
            "CUDA",
            times[name],
            device=torch.cuda.get_device_name(),
            shape=shape,
            clock="wall",
            bytes_moved=None if moved is None else moved * total,
            stream_gb_per_s=copy,
        )
        for name, (moved, _) in programs.items()
    ]


def rows() -> list[dict[str, Any]]:
    """All ratios of the family."""
    result = []
    for threads in (1, 2):
        result += updates([COORDINATES], "10 M", threads)
        result += updates(RESNET50, "ResNet-50, 25.5 M", threads, rounds=9)
        result += summaries([COORDINATES], "4 x 10 M", threads)
    result += updates([2304] * 100, "100 x 2304", 1, rounds=51)
    if torch.cuda.is_available():
        result += [row for part in gpu_rows() for row in part]
    return result


def gpu_rows() -> Iterator[list[dict[str, Any]]]:
    """The ratios on a GPU.

    Yields:
        Rows of one size.
    """
    yield on_gpu([COORDINATES], "10 M")
    yield on_gpu(RESNET50, "ResNet-50, 25.5 M")
    yield on_gpu([2304] * 100, "100 x 2304")


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("coordinates", [4096, 262_144, COORDINATES])
@pytest.mark.parametrize("implementation", ["kernel", "reference"])
def test_update(benchmark: Any, implementation: str, coordinates: int, threads: int) -> None:
    """`update_` of one tensor, in the caches and out of them."""
    a, mean, m2, g, *_ = lists([coordinates])
    benchmark.extra_info.update(
        op="moments_update_",
        impl=implementation,
        threads=threads,
        shape=str(coordinates),
        bytes=28 * coordinates,
    )
    with harness.thread_count(threads):
        if implementation == "kernel":
            benchmark(lambda: moments.update_(a, mean, m2, g, count=3))
        else:
            benchmark(lambda: reference.update_(a, mean, m2, g, 3))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("op", ["rows_summary", "summary", "dot", "row_dots"])
def test_reductions(benchmark: Any, op: str, threads: int) -> None:
    """What only reads, over the layers of a ResNet-50."""
    a, mean, m2, *units = lists(RESNET50)
    total = sum(RESNET50)
    images, gradients = (torch.randn(64, total // 64) for _ in range(2))
    calls = {
        "rows_summary": (20, lambda: moments.rows_summary(units, weights=a)),
        "summary": (16, lambda: moments.summary(a, mean, m2, count=4, weights=units[0])),
        "dot": (8, lambda: moments.dot(a, mean)),
        "row_dots": (8, lambda: moments.row_dots(images, gradients)),
    }
    moved, call = calls[op]
    benchmark.extra_info.update(
        op=f"moments_{op}", impl="kernel", threads=threads, shape="ResNet-50", bytes=moved * total
    )
    with harness.thread_count(threads):
        benchmark(call)
