"""Time and memory of the statistics of ZiCo and SiGeo over those of the passes.

The statistics' time is the CPU time inside `sigeo_ext.moments` while a proxy is measured; that of
the passes is all the rest, SiGeo's steps among it. The published route keeps every gradient as a
NumPy array; its statistics' time is that of keeping and reducing them, over the same passes.

    python bench/run.py --only statistics
    python bench/run.py --only memory
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench import harness, published
from bench.harness import Times
from bench.models import resnet50
from sigeo import spaces
from sigeo.capture import SGD, Request, gradient_statistics
from sigeo_ext import moments

MIDDLING = (
    "|nor_conv_3x3~0|+|nor_conv_1x1~0|avg_pool_3x3~1|+"
    "|skip_connect~0|nor_conv_3x3~1|nor_conv_1x1~2|"
)


def workload(name: str) -> tuple[nn.Module, list[tuple[Tensor, Tensor]]]:
    """A network and its four batches."""
    torch.manual_seed(0)
    if name.startswith("NAS-Bench-201"):
        space = spaces.get("nasbench201", spaces.InputShape(3, 32, 10))
        model, size, batch, classes = space.build(space.parse(MIDDLING)), 32, 64, 10
    else:
        size = int(name.split()[1])
        model, batch, classes = resnet50(), 16, 1000
    batches = [
        (torch.randn(batch, 3, size, size), torch.randint(0, classes, (batch,))) for _ in range(4)
    ]
    images_last = [(x.contiguous(memory_format=torch.channels_last), y) for x, y in batches]
    return model.train(), images_last


WORKLOADS = ("NAS-Bench-201 batch 64", "ResNet-50 32 px batch 16", "ResNet-50 224 px batch 16")
REQUESTS = {"zico": Request(), "sigeo": Request(steps=SGD(1.0))}


class Inside:
    """Adds up the CPU time inside the moments' state while it is in place."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def wrap(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, timed."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            begin = time.process_time()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds += time.process_time() - begin

        return timed


def ours(model: nn.Module, batches: Any, proxy: str) -> tuple[float, float]:
    """CPU seconds inside the statistics, and in all."""
    inside = Inside()
    state = moments.Moments
    originals = state.add, state.summary
    state.add, state.summary = inside.wrap(state.add), inside.wrap(state.summary)  # type: ignore[method-assign]
    begin = time.process_time()
    try:
        gradient_statistics(
            model, batches, F.cross_entropy, requests=[REQUESTS[proxy]], memory_format="preserve"
        )
    finally:
        state.add, state.summary = originals  # type: ignore[method-assign]
    return inside.seconds, time.process_time() - begin


def plain(model: nn.Module, batches: Any, proxy: str) -> tuple[float, float]:
    """The same of the published route."""
    lr = 1.0 if proxy == "sigeo" else 0.0
    weights = {n: p.detach().clone() for n, p in model.named_parameters()}
    inside = Inside()
    rows: published.Rows = {}
    collect = published.collect
    published.collect = inside.wrap(collect)
    begin = time.process_time()
    try:
        published.passes(model, batches, lr=lr, rows=rows)
    finally:
        published.collect = collect
    reduce = inside.wrap(published.zico_of if proxy == "zico" else published.sigeo_of)
    if proxy == "zico":
        reduce(rows)
    else:
        reduce(
            rows, {n: w.detach().reshape(-1).numpy() for n, w in published.layers(model).items()}
        )
    total = time.process_time() - begin
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(weights[name])
    return inside.seconds, total


def time_rows(name: str, threads: int, rounds: int) -> list[dict[str, Any]]:
    """Statistics over passes, both routes in turn."""
    model, batches = workload(name)
    result = []
    with harness.thread_count(threads):
        for proxy in REQUESTS:
            seconds: dict[str, list[tuple[float, float]]] = {"kernels": [], "published": []}
            for index in range(-1, rounds):
                routes = [("kernels", ours), ("published", plain)]
                for route, run in routes if index % 2 else routes[::-1]:
                    measured = run(model, batches, proxy)
                    if index >= 0:
                        seconds[route].append(measured)
            for route, pairs in seconds.items():
                ratios = [inside / (total - inside) for inside, total in pairs]
                result.append(
                    harness.row(
                        f"statistics of {proxy}",
                        route,
                        Times(tuple(inside for inside, _ in pairs)),
                        shape=name,
                        over_passes=statistics.median(ratios),
                        over_passes_max=max(ratios),
                        passes_s=statistics.median(total - inside for inside, total in pairs),
                    )
                )
    return result


def measure_memory(name: str, route: str) -> None:
    """In a fresh process: print the peak growth in MiB while ``route`` runs once."""
    model, batches = workload(name)
    parameters = sum(p.numel() * 4 for p in model.parameters()) / 2**20
    peak = harness.PeakMemory()
    if route == "passes":
        published.passes(model, batches, lr=0.0)
    elif route == "passes with steps, restored":
        weights = {n: p.detach().clone() for n, p in model.named_parameters()}
        published.passes(model, batches, lr=1.0)
        with torch.no_grad():
            for n, p in model.named_parameters():
                p.copy_(weights[n])
    elif route.startswith("published"):
        plain(model, batches, route.split()[1])
    else:
        many = batches * (2 if route.endswith("8") else 1)
        gradient_statistics(
            model, many, requests=[REQUESTS[route.split()[0]]], memory_format="preserve"
        )
    print(json.dumps({"peak_mib": peak.mib(), "parameters_mib": parameters}))


MEMORY_ROUTES = (
    "passes",
    "passes with steps, restored",
    "zico",
    "zico 8",
    "sigeo",
    "published zico",
    "published sigeo",
)


def memory_rows(runs: int = 5) -> list[dict[str, Any]]:
    """Peak memory of each route on the 32 px ResNet-50, the median of runs in fresh processes.

    What the heap cannot use again differs from run to run, so routes take their turns.
    """
    name = WORKLOADS[1]
    found: dict[str, list[dict[str, float]]] = {route: [] for route in MEMORY_ROUTES}
    for _ in range(runs):
        for route, of_route in found.items():
            command = [sys.executable, "-m", "bench.bench_statistics", "--memory", name, route]
            result = subprocess.run(command, capture_output=True, text=True, check=True)
            of_route.append(json.loads(result.stdout))
    rows = []
    for route, of_route in found.items():
        peaks = [run["peak_mib"] for run in of_route]
        with harness.thread_count(1):
            entry = harness.row(
                "memory",
                route,
                Times((0.0,) * runs),
                shape=name,
                peak_mib=statistics.median(peaks),
                parameters_mib=of_route[0]["parameters_mib"],
                peak_mib_least=min(peaks),
                peak_mib_most=max(peaks),
            )
        rows.append(entry)
    bare = {"passes": rows[0]["peak_mib"], "steps": rows[1]["peak_mib"]}
    for entry in rows[2:]:
        base = bare["steps" if "sigeo" in entry["impl"] else "passes"]
        copies = (entry["peak_mib"] - base) / entry["config"]["parameters_mib"]
        entry["config"]["extra_in_copies_of_parameters"] = copies
    return rows


def rows() -> list[dict[str, Any]]:
    """Everything."""
    result = []
    for name, rounds in zip(WORKLOADS, (5, 7, 3), strict=True):
        for threads in (1, 2):
            result += time_rows(name, threads, rounds if threads == 1 else min(rounds, 3))
    return result


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--memory", nargs=2, required=True)
    given = parser.parse_args()
    torch.set_num_threads(1)
    measure_memory(*given.memory)
