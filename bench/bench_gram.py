"""The neural tangent kernel over plain passes and over its peer; pairwise products of lists.

``over_plain`` is the median, over rounds in one process, of a route's CPU time over that of a plain
forward and backward pass of the same batch. The peer is the vmap of grad of ``torch.func`` followed
by J J^T.

    python bench/run.py --only gram
"""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from bench import harness, models
from bench.bench_samples import LARGEST, cell, clicks, images
from bench.bench_statistics import MIDDLING
from bench.harness import Times
from sigeo.capture import ntk
from sigeo_ext import gram

BATCH = 32
Make = tuple[Callable[[], nn.Module], Callable[[], tuple[Tensor, ...]], tuple[str, ...]]
VMAP = ("vmap",)
WORKLOADS: dict[str, Make] = {
    "NAS-Bench-201 middling": (lambda: cell(MIDDLING), images(BATCH), VMAP),
    "NAS-Bench-201 largest": (lambda: cell(LARGEST), images(BATCH), VMAP),
    "ResNet-18 GN": (models.resnet18, images(BATCH), ()),
    "MobileNetV2": (lambda: models.mobilenet_v2().eval(), images(BATCH), VMAP),
    "transformer": (models.Encoder, lambda: (torch.randint(0, 1000, (BATCH, 64)),), VMAP),
    "CTR 10,000 rows": (lambda: models.ClickThrough(10_000), clicks(BATCH, 10_000), VMAP),
}

# Layers on both sides of the rule: input channels, outputs, size of a square image, kernel.
LAYERS = (
    (16, 16, 32, 3),
    (64, 64, 8, 3),
    (64, 64, 7, 3),
    (256, 256, 4, 3),
    (512, 512, 4, 3),
    (512, 512, 2, 3),
    (64, 64, 1, 3),
)


def ntk_rows(name: str, rounds: int = 5) -> list[dict[str, Any]]:
    """One workload, one thread."""
    make, inputs_of, peers = WORKLOADS[name]
    torch.manual_seed(0)
    model, inputs = make(), inputs_of()
    if inputs[0].dim() == 4:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def plain() -> None:
        model.zero_grad()
        model(*inputs).sum().backward()

    def vmap() -> None:
        weights = {n: p.detach() for n, p in model.named_parameters()}
        buffers = dict(model.named_buffers())

        def output(weights: dict[str, Tensor], *one: Tensor) -> Tensor:
            batch = tuple(x.unsqueeze(0) for x in one)
            result: Tensor = torch.func.functional_call(model, (weights, buffers), batch)
            return result.sum()

        axes = (None, *(0 for _ in inputs))
        gradient = torch.func.vmap(torch.func.grad(output), in_dims=axes, randomness="different")
        parts = [g.flatten(1) for g in gradient(weights, *inputs).values()]
        torch.stack([part @ part.t() for part in parts]).sum(0)

    routes: dict[str, Callable[[], object]] = {"plain": plain, "ntk": lambda: ntk(model, inputs)}
    routes |= {"vmap(grad), J J^T": vmap} if peers else {}
    with harness.thread_count(1):
        times = harness.in_turn(routes, rounds=rounds)
        found = []
        for route in routes:
            over = harness.ratio(times[route], times["plain"])
            entry = harness.row(
                "ntk",
                route,
                times[route],
                baseline="vmap(grad), J J^T" if peers else None,
                speedup=harness.ratio(times["vmap(grad), J J^T"], times[route]) if peers else None,
                shape=f"{name}, batch {BATCH}",
                mode="forward+backward",
                over_plain=statistics.median(over.seconds),
                over_plain_worst=max(over.seconds),
            )
            found.append(entry)
        return found


def clock_of(device: str) -> dict[str, Any]:
    """What a row says of the device, and of the clock that times it."""
    if device == "cpu":
        return {"device": "cpu", "clock": "cpu"}
    return {"device": torch.cuda.get_device_name(), "clock": "wall"}


def timed(
    programs: Mapping[str, Callable[[], object]], rounds: int, device: str
) -> dict[str, Times]:
    """The programs in turn, by the device's clock."""
    clock = time.process_time if device == "cpu" else time.perf_counter
    warmup = 1 if device == "cpu" else 3
    return harness.in_turn(programs, rounds=rounds, warmup=warmup, clock=clock)


def route_rows(rounds: int = 7, device: str = "cpu") -> list[dict[str, Any]]:
    """Both routes of single layers, beside what the rule takes."""
    found = []
    for inputs, outputs, size, kernel in LAYERS:
        x, d = (
            torch.randn(BATCH, channels, size, size, device=device).contiguous(
                memory_format=torch.channels_last
            )
            for channels in (inputs, outputs)
        )
        taps = kernel**2 if size > 1 else 1
        rule = gram.route(BATCH, size**2, inputs * taps, outputs)
        layer = functools.partial(gram.convolution, x, d, (kernel, kernel), padding=kernel // 2)
        routes: dict[str, Callable[[], object]] = {
            route: functools.partial(layer, route=route)
            for route in ("direct", "gram")
            if route == "direct" or size < 32
        }
        with harness.thread_count(1):
            times = timed(routes, rounds, device)
            for route in routes:
                shape = f"{inputs} to {outputs}, {kernel}x{kernel}, {size} px, batch {BATCH}"
                entry = harness.row(
                    "gram_convolution",
                    route,
                    times[route],
                    shape=shape,
                    rule=rule,
                    **clock_of(device),
                )
                found.append(entry)
    return found


def list_rows(rounds: int = 9, device: str = "cpu") -> list[dict[str, Any]]:
    """Eight gradients of ResNet-18, and the codes of 128 samples, against plain torch."""
    shapes = [p.shape for p in models.resnet18().parameters()]
    vectors = [[torch.randn(shape, device=device) for shape in shapes] for _ in range(8)]
    values = sum(t.numel() for t in vectors[0])

    def flattened() -> Tensor:
        flat = torch.stack([torch.cat([t.flatten() for t in v]) for v in vectors])
        return flat @ flat.t()

    signs = torch.randn(128, 1 << 18, device=device)
    codes = gram.pack_signs(signs)
    ones = (signs > 0).float()

    def products() -> Tensor:
        return ones @ ones.t() + (1 - ones) @ (1 - ones).t()

    pairs: list[tuple[str, str, Callable[[], object], Callable[[], object], int]] = [
        (
            "gram_lists",
            f"8 lists of {values:,}",
            lambda: gram.dot(vectors),
            flattened,
            8 * 4 * values,
        ),
        (
            "gram_hamming",
            f"128 codes of {1 << 18:,} bits",
            lambda: gram.hamming(codes),
            products,
            codes.numel(),
        ),
    ]
    found = []
    with harness.thread_count(1):
        for op, shape, ours, torchs, size in pairs:
            times = timed({"sigeo_ext": ours, "torch": torchs}, rounds, device)
            for name in times:
                entry = harness.row(
                    op,
                    name,
                    times[name],
                    baseline="torch",
                    speedup=harness.ratio(times["torch"], times[name]),
                    shape=shape,
                    bytes_moved=size if name == "sigeo_ext" else None,
                    **clock_of(device),
                )
                found.append(entry)
    return found


def rows() -> list[dict[str, Any]]:
    """Everything."""
    found = [row for name in WORKLOADS for row in ntk_rows(name)] + route_rows() + list_rows()
    if torch.cuda.is_available():
        found += [row for part in gpu_rows() for row in part]
    return found


def gpu_rows() -> Iterator[list[dict[str, Any]]]:
    """Lists, codes and single layers on a GPU.

    Yields:
        Rows of one kind.
    """
    yield list_rows(device="cuda")
    yield route_rows(device="cuda")
