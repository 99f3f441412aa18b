"""The saliency kernel: bytes a second against a read of the same memory, and plain torch.

The read is this machine's ceiling for a reduction; plain torch takes the sums tensor by tensor.

    python bench/run.py --only saliency
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from bench import harness
from bench.bench_moments import COORDINATES, RESNET50
from sigeo_ext import saliency

# What is asked for, the bytes of a float32 coordinate read for it, and the same in plain torch.
PROGRAMS: dict[str, tuple[list[str], int, Callable[[Tensor, Tensor], object]]] = {
    "plain": (["product"], 8, lambda w, g: (w * g).sum(dtype=torch.float64)),
    "snip": (["abs_product"], 8, lambda w, g: (w * g).abs().sum(dtype=torch.float64)),
    "synflow": (
        ["log_abs_product"],
        8,
        lambda w, g: (w.abs().log() + g.abs().log()).flatten().logsumexp(0),
    ),
    "logsynflow": (
        ["log1p_product"],
        8,
        lambda w, g: (w * g.log1p()).abs().sum(dtype=torch.float64),
    ),
    "l2": (["weight_sq"], 4, lambda w, g: w.norm(dtype=torch.float64)),
    "plain, snip, both norms": (
        ["product", "abs_product", "weight_sq", "gradient_sq"],
        8,
        lambda w, g: (
            (w * g).sum(dtype=torch.float64),
            (w * g).abs().sum(dtype=torch.float64),
            w.norm(dtype=torch.float64),
            g.norm(dtype=torch.float64),
        ),
    ),
}


def lists(sizes: Sequence[int], device: str = "cpu") -> tuple[list[Tensor], list[Tensor]]:
    """Weights and gradients: views into two runs of memory, gradients not negative."""
    generator = torch.Generator().manual_seed(0)
    weights, gradients = (torch.randn(sum(sizes), generator=generator) for _ in range(2))
    both = (weights.to(device).split(list(sizes)), gradients.abs().to(device).split(list(sizes)))
    return list(both[0]), list(both[1])


def reductions(
    sizes: Sequence[int], shape: str, threads: int, rounds: int = 25
) -> list[dict[str, Any]]:
    """Each program beside a read of the memory that it reads, and beside plain torch."""
    from sigeo_ext import _host

    weights, gradients = lists(sizes)
    total = sum(sizes)
    # A list is one run of memory: this is all of it.
    flat = [values[0].as_strided((total,), (1,)).numpy() for values in (weights, gradients)]
    halves = flat[0][: total // 2], flat[0][total // 2 : 2 * (total // 2)]

    def plainly(function: Callable[[Tensor, Tensor], object]) -> None:
        for w, g in zip(weights, gradients, strict=True):
            function(w, g)

    rows = []
    with harness.thread_count(threads):
        for name, (want, moved, function) in PROGRAMS.items():
            read = flat if moved == 8 else halves
            times = harness.in_turn(
                {
                    "kernel": lambda w=want: saliency.sums(weights, gradients, want=w),
                    "read": lambda r=read: _host.read_pairs(*r, threads=threads),
                    "torch ops": lambda f=function: plainly(f),
                },
                rounds=rounds,
                warmup=2,
                clock=time.perf_counter,
            )
            stream = moved * total / times["read"].median / 1e9
            for route, measured in times.items():
                entry = harness.row(
                    f"saliency {name}",
                    route,
                    measured,
                    shape=shape,
                    clock="wall",
                    baseline="torch ops",
                    speedup=harness.ratio(times["torch ops"], measured),
                    bytes_moved=None if route == "torch ops" else moved * total,
                    stream_gb_per_s=stream,
                )
                rows.append(entry)
                if route == "kernel":
                    fastest = times["read"].quantile(0.2) / measured.quantile(0.2)
                    entry["config"]["share_at_p20"] = fastest
    return rows


def on_gpu(sizes: Sequence[int], shape: str, rounds: int = 15) -> list[dict[str, Any]]:
    """Each program on a GPU, beside a copy with its bytes counted."""
    weights, gradients = lists(sizes, "cuda")
    total = sum(sizes)
    source, target = torch.randn(4 * total, device="cuda"), torch.empty(4 * total, device="cuda")

    programs: dict[str, Callable[[], object]] = {"copy": lambda: target.copy_(source)}
    for name, (want, _, _) in PROGRAMS.items():
        programs[name] = lambda w=want: saliency.sums(weights, gradients, want=w)
    times = harness.in_turn(
        programs,
        rounds=rounds,
        warmup=3,
        clock=time.perf_counter,
        calls=20,
    )
    copy = 32 * total / times["copy"].median / 1e9
    return [
        harness.row(
            f"saliency {name}",
            "CUDA",
            times[name],
            device=torch.cuda.get_device_name(),
            shape=shape,
            clock="wall",
            bytes_moved=PROGRAMS[name][1] * total if name in PROGRAMS else 32 * total,
            stream_gb_per_s=copy,
        )
        for name in programs
    ]


def rows() -> list[dict[str, Any]]:
    """All ratios of the family."""
    result = []
    for threads in (1, 2):
        result += reductions([COORDINATES], "10 M", threads)
        result += reductions(RESNET50, "ResNet-50, 25.5 M", threads, rounds=15)
    result += reductions([2304] * 100, "100 x 2304", 1, rounds=51)
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
@pytest.mark.parametrize("column", ["abs_product", "log1p_product"])
def test_sums(benchmark: Any, column: str, coordinates: int, threads: int) -> None:
    """One column of one tensor, in the caches and out of them."""
    weights, gradients = lists([coordinates])
    benchmark.extra_info.update(
        op=f"saliency {column}",
        impl="kernel",
        threads=threads,
        shape=str(coordinates),
        bytes=8 * coordinates,
    )
    with harness.thread_count(threads):
        benchmark(lambda: saliency.sums(weights, gradients, want=[column]))
