"""Layers on slices of super-weights against plain torch, which slices or masks.

A forward and a backward pass of one layer, gradients of the input and of the super-weights made
anew, on one thread or, where there is one, on the GPU. ``speedup`` is of the better of the two
plain routes, found in a few rounds first: slice then layer, and full layer then mask. Only the
better one is then timed in turn with ours, because a full layer leaves the caches as no slice finds
them. In the rows of mode ``accumulate`` the super-weights have gradients already, to which the pass
adds, as several subnets a step do.

    python bench/run.py --only elastic
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bench import harness
from sigeo_ext.gather import slices

# Batch, outputs and inputs of the super-weight, and how many are selected.
LINEAR = (
    (64, 512, 512, 256, 256),
    (128, 1024, 1024, 512, 512),
    (128, 2048, 1024, 1024, 768),
    (32, 4096, 1024, 2048, 512),
    (256, 1024, 1024, 768, 896),
    (1024, 384, 1536, 256, 1024),
)
# Batch, channels, how many are selected, image, kernel and its crop, depthwise or not.
CONVOLUTION = (
    (16, 128, 64, 14, 3, 3, False),
    (16, 256, 128, 7, 5, 3, False),
    (16, 512, 256, 7, 3, 3, False),
    (32, 64, 48, 28, 3, 3, False),
    (32, 192, 128, 14, 7, 3, True),
    (16, 960, 480, 7, 7, 5, True),
)
# Tokens, rows and columns of the table, and how many columns are selected.
EMBEDDING = ((4096, 30_000, 512, 256), (512, 10_000, 64, 32), (8192, 2000, 768, 512))
PLAIN = ("slice", "mask")
KINDS = ("prefix", "chunk", "list")
Programs = dict[str, Callable[[], Tensor]]


def selection(kind: str, size: int, count: int, device: str = "cpu") -> int | slice | Tensor:
    """So many places of a kind."""
    if kind == "list":
        return torch.randperm(size)[:count].sort().values.to(device)
    return count if kind == "prefix" else slice(size - count, size)


def window(chosen: int | slice | Tensor) -> slice | Tensor:
    """For plain torch."""
    return slice(chosen) if isinstance(chosen, int) else chosen


def hide(size: int, chosen: int | slice | Tensor, device: str) -> Tensor:
    """One where a place is selected."""
    mask = torch.zeros(size, device=device)
    mask[window(chosen)] = 1
    return mask


def measured(
    op: str,
    kind: str,
    shape: str,
    leaves: dict[str, list[Tensor]],
    programs: Programs,
    weights: list[Tensor],
    rounds: int,
) -> list[dict[str, Any]]:
    """Rows of one case, in both modes."""
    device = weights[0].device.type
    clock = time.perf_counter if device == "cuda" else time.process_time
    gradients = {name: torch.randn_like(run().detach()) for name, run in programs.items()}

    def passes(name: str, fresh: bool) -> Callable[[], None]:
        def run() -> None:
            for leaf in leaves[name]:
                if fresh or not any(leaf is weight for weight in weights):
                    leaf.grad = None
            programs[name]().backward(gradients[name])

        return run

    found = []
    for mode in ("forward+backward", "accumulate"):
        fresh = mode != "accumulate"
        for weight in weights:
            weight.grad = None if fresh else torch.zeros_like(weight)
        ours = "sigeo_ext" if fresh else "sigeo_ext, in place"
        with harness.thread_count(1):
            plain = {name: passes(name, fresh) for name in PLAIN}
            times: dict[str, harness.Times] = harness.in_turn(plain, rounds=5, clock=clock)
            best = min(PLAIN, key=lambda name: times[name].median)
            once = times[best].median
            names = [
                best,
                ours,
                *(["sigeo_ext, masked"] if "sigeo_ext, masked" in programs else []),
            ]
            timed: dict[str, Callable[[], object]] = {n: passes(n, fresh) for n in names}
            # Short passes are repeated more often.
            often = min(max(rounds, int(rounds * 0.01 / once)), 101)
            times |= harness.in_turn(timed, rounds=often, clock=clock)
            for name, taken in times.items():
                baseline = times[best] if name in names else None
                entry = harness.row(
                    op,
                    name,
                    taken,
                    baseline=best if baseline else None,
                    speedup=harness.ratio(baseline, taken) if baseline else None,
                    shape=shape,
                    mode=mode,
                    device=device,
                    clock="wall" if device == "cuda" else "cpu",
                    selection=kind,
                )
                found.append(entry)
    return found


def linear_rows(
    case: tuple[int, ...], kind: str, rounds: int = 15, device: str = "cpu"
) -> list[dict[str, Any]]:
    """A linear layer with a bias."""
    batch, outputs, inputs, o, i = case
    torch.manual_seed(0)
    weight, bias, x, full = (
        torch.randn(size, device=device).requires_grad_()
        for size in ((outputs, inputs), (outputs,), (batch, i), (batch, inputs))
    )
    rows, columns = selection(kind, outputs, o, device), selection(kind, inputs, i, device)
    mask = hide(outputs, rows, device)
    ours = functools.partial(slices.linear, x, weight, bias, outputs=rows, inputs=columns)
    programs: Programs = {
        "slice": lambda: F.linear(x, weight[window(rows)][:, window(columns)], bias[window(rows)]),
        "mask": lambda: F.linear(full, weight, bias) * mask,
        "sigeo_ext": ours,
        "sigeo_ext, in place": functools.partial(ours, accumulate=True),
        "sigeo_ext, masked": functools.partial(
            slices.linear, full, weight, bias, outputs=rows, inputs=columns, masked=True
        ),
    }
    weights = [weight, bias]
    leaves = {name: [full if "mask" in name else x, *weights] for name in programs}
    shape = f"{o} of {outputs}, {i} of {inputs}, batch {batch}"
    return measured("gather_slice_linear", kind, shape, leaves, programs, weights, rounds)


def convolution_rows(
    case: tuple[int, ...], kind: str, rounds: int = 11, device: str = "cpu"
) -> list[dict[str, Any]]:
    """A convolution in channels_last, its kernel cropped."""
    batch, channels, c, size, kernel, cut, depthwise = case
    torch.manual_seed(0)
    groups, width = (channels, 1) if depthwise else (1, channels)
    weight, x, full = (
        torch.randn(sizes, device=device).to(memory_format=torch.channels_last).requires_grad_()
        for sizes in (
            (channels, width, kernel, kernel),
            (batch, c, size, size),
            (batch, channels, size, size),
        )
    )
    chosen = selection(kind, channels, c, device)
    mask = hide(channels, chosen, device)[:, None, None]
    begin = (kernel - cut) // 2
    crop = slice(begin, begin + cut)

    def plain() -> Tensor:
        part = weight[window(chosen)]
        part = part if depthwise else part[:, window(chosen)]
        return F.conv2d(x, part[:, :, crop, crop], padding=cut // 2, groups=c if depthwise else 1)

    ours = functools.partial(
        slices.convolution,
        x,
        weight,
        outputs=None if depthwise else chosen,
        inputs=chosen,
        kernel=cut,
        padding=cut // 2,
        groups=groups,
    )
    programs: Programs = {
        "slice": plain,
        "mask": lambda: F.conv2d(full, weight, padding=kernel // 2, groups=groups) * mask,
        "sigeo_ext": ours,
        "sigeo_ext, in place": functools.partial(ours, accumulate=True),
    }
    leaves = {name: [full if name == "mask" else x, weight] for name in programs}
    kind_of = "depthwise" if depthwise else "dense"
    shape = f"{kind_of} {c} of {channels}, {kernel} to {cut}, {size} px, batch {batch}"
    return measured("gather_slice_convolution", kind, shape, leaves, programs, [weight], rounds)


def embedding_rows(
    case: tuple[int, ...], kind: str, rounds: int = 15, device: str = "cpu"
) -> list[dict[str, Any]]:
    """A table cut to some of its columns."""
    count, size, columns, c = case
    torch.manual_seed(0)
    weight = torch.randn(size, columns, device=device).requires_grad_()
    tokens = torch.randint(size, (count,), device=device)
    chosen = selection(kind, columns, c, device)
    mask = hide(columns, chosen, device)
    ours = functools.partial(slices.embedding, tokens, weight, columns=chosen)
    programs: Programs = {
        "slice": lambda: F.embedding(tokens, weight[:, window(chosen)]),
        "mask": lambda: F.embedding(tokens, weight) * mask,
        "sigeo_ext": ours,
        "sigeo_ext, in place": functools.partial(ours, accumulate=True),
    }
    leaves = {name: [weight] for name in programs}
    shape = f"{c} of {columns}, {size:,} rows, {count} tokens"
    return measured("gather_slice_embedding", kind, shape, leaves, programs, [weight], rounds)


def measure_memory(route: str) -> None:
    """Print how much a pass on an eighth of 8192 x 8192 weights that have a gradient adds."""
    torch.set_num_threads(1)
    weight = torch.zeros(8192, 8192).requires_grad_()
    weight.grad = torch.zeros_like(weight)
    x = torch.ones(4, 1024)
    chosen = selection("list" if "list" in route else "prefix", 8192, 1024)
    in_place = "in place" in route

    def once() -> Tensor:
        if route.startswith("slice"):
            return F.linear(x, weight[window(chosen)][:, :1024])
        return slices.linear(x, weight, outputs=chosen, inputs=1024, accumulate=in_place)

    once()
    peak = harness.PeakMemory()
    once().sum().backward()
    print(json.dumps({"peak_mib": peak.mib(), "weights_mib": weight.numel() * 4 / 2**20}))


def memory_rows() -> list[dict[str, Any]]:
    """Peak memory of each route in a process of its own, with the heap as it comes."""
    environment = {k: v for k, v in os.environ.items() if k not in harness.HEAP_REUSED}
    found = []
    for kind in ("prefix", "list"):
        for route in ("slice", "sigeo_ext", "sigeo_ext, in place"):
            command = [sys.executable, "-m", "bench.bench_elastic", f"{route}, {kind}"]
            result = subprocess.run(
                command, capture_output=True, text=True, check=True, env=environment
            )
            with harness.thread_count(1):
                entry = harness.row(
                    "memory of a pass",
                    route,
                    harness.Times((0.0,)),
                    mode="memory",
                    shape="1024 of 8192, 1024 of 8192, batch 4",
                    selection=kind,
                    **json.loads(result.stdout),
                )
            found.append(entry)
    return found


def rows() -> list[dict[str, Any]]:
    """Everything: of the GPU where there is one, whose name the rows then go by."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    found = memory_rows() if device == "cpu" else []
    return found + [row for part in parts(device) for row in part]


def gpu_rows() -> Iterator[list[dict[str, Any]]]:
    """All layers on a GPU.

    Yields:
        Rows of one layer and one kind of selection.
    """
    yield from parts("cuda")


def parts(device: str) -> Iterator[list[dict[str, Any]]]:
    """The same.

    Yields:
        Rows of one layer and one kind of selection.
    """
    for kind in KINDS:
        for function, cases in (
            (linear_rows, LINEAR),
            (convolution_rows, CONVOLUTION),
            (embedding_rows, EMBEDDING),
        ):
            for case in cases:
                yield function(case, kind, device=device)


if __name__ == "__main__":
    measure_memory(sys.argv[1])
