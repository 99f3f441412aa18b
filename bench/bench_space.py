"""All of NAS-Bench-201, scored on shared weights in stacked passes, for as long as is allowed.

On a GPU the networks have the published size, and the aim is two minutes for all 15,625 cells; on a
CPU they are small. Every cell is scored, or one of those that are the same network. The rate is
given for the first tenth of the time and for the last.

    python bench/run.py --only space
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from bench import harness
from bench.bench_many import PUBLISHED, Workload
from bench.harness import Times
from sigeo import score_many
from sigeo.capture import Batches

LARGE = Workload("C=16, N=5, 32 px, 4 x 64", PUBLISHED, 32, 64, at_once=64)
SMALL = Workload("C=4, N=1, 8 px, 4 x 64", {"channels": 4, "cells": 1}, 8, 64, at_once=16)
CELLS = 15_625
PROXIES = ("zico", "sigeo")


def rows(
    workload: Workload = SMALL, *, seconds: float = 60.0, device: str = "cpu"
) -> list[dict[str, Any]]:
    """Every proxy, every cell and every network."""
    return [row for part in parts(workload, seconds=seconds, device=device) for row in part]


def gpu_rows() -> Iterator[list[dict[str, Any]]]:
    """At published size.

    Yields:
        Rows of one proxy on every cell, or every network.
    """
    yield from parts(LARGE, seconds=50.0, device="cuda")


def parts(workload: Workload, *, seconds: float, device: str) -> Iterator[list[dict[str, Any]]]:
    """The same, row by row.

    Yields:
        One row.
    """
    space = workload.space()
    cells = [space.at(index) for index in range(CELLS)]
    networks = list(dict.fromkeys(space.representative(cell) for cell in cells))
    for proxy in PROXIES:
        for name, archs in (("every cell", cells), ("every network", networks)):
            yield [_row(workload, proxy, name, archs, seconds, device)]


def _row(
    workload: Workload, proxy: str, name: str, archs: list[Any], seconds: float, device: str
) -> dict[str, Any]:
    """One proxy on some cells, in groups of K, until all are done or the time is over."""
    net = workload.supernet().to(device)
    data = Batches(workload.batches(4), net, torch.device(device))
    order = torch.randperm(len(archs), generator=torch.Generator().manual_seed(0)).tolist()
    size = workload.at_once
    groups = [[archs[i] for i in order[at : at + size]] for at in range(0, len(order), size)]

    def score(group: list[Any]) -> None:
        score_many(net, group, data, [proxy], at_once=size)
        if device == "cuda":
            torch.cuda.synchronize()

    with harness.thread_count(1), _utilisation(device) as busy:
        score(groups[0])  # warms up
        ends = [time.perf_counter()]
        for group in groups:
            score(group)
            ends.append(time.perf_counter())
            if ends[-1] - ends[0] > seconds:
                break
    taken, done = ends[-1] - ends[0], sum(map(len, groups[: len(ends) - 1]))
    return harness.row(
        f"space, {proxy}",
        f"{name}, K={size}",
        Times((taken,)),
        shape=workload.name,
        mode="4 passes",
        device=torch.cuda.get_device_name() if device == "cuda" else "cpu",
        clock="wall",
        scored=done,
        of=len(archs),
        networks_per_s=done / taken,
        first_tenth_per_s=_rate(groups, ends, 0.0),
        last_tenth_per_s=_rate(groups, ends, 0.9),
        seconds_for_all=taken * len(archs) / done,
        **busy,
    )


def _rate(groups: list[list[Any]], ends: list[float], begin: float) -> float:
    """Networks a second in a tenth of the time; groups count where they end."""
    first, length = ends[0] + begin * (ends[-1] - ends[0]), (ends[-1] - ends[0]) / 10
    inside = [
        (len(group), end - start)
        for group, start, end in zip(groups, ends, ends[1:], strict=False)
        if first < end <= first + length * (1 + 1e-9)
    ]
    inside = inside or [(len(groups[0]), ends[1] - ends[0])]
    return sum(n for n, _ in inside) / sum(s for _, s in inside)


@contextmanager
def _utilisation(device: str) -> Iterator[dict[str, float]]:
    """How busy the GPU is while the body runs, by the driver's tool twice a second.

    Yields:
        What will hold the mean percentage, where it can be told.
    """
    found: dict[str, float] = {}
    if device != "cuda" or shutil.which("nvidia-smi") is None:
        yield found
        return
    command = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"]
    with tempfile.TemporaryFile("w+") as out:
        watch = subprocess.Popen([*command, "-lms", "500"], stdout=out)
        try:
            yield found
        finally:
            watch.terminate()
            watch.wait()
            out.seek(0)
            values = [float(line) for line in out.read().split() if line.isdigit()]
            if values:
                found["gpu_utilisation_percent"] = sum(values) / len(values)
