"""Many subnets in one pass against the same subnets one by one, and training with several paths.

Random subnets of one supernet, of NAS-Bench-201 and of the elastic spaces; both routes do what the
ranking does, in turn, in one process with the heap reused. ``python -m bench.bench_many memory K``
measures the memory of one pass in a process of its own.

    python bench/run.py --only many
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bench import harness, prefixes
from bench.harness import Times
from sigeo import score, score_many, spaces
from sigeo.capture import Batches
from sigeo.supernet import add_gradients


@dataclass(frozen=True)
class Workload:
    """Networks and their data.

    Attributes:
        name: For the table.
        sizes: Of the space.
        pixels: Height and width of the images.
        batch: Images of one batch.
        at_once: K.
        kind: Name of the space.
    """

    name: str
    sizes: Mapping[str, Any]
    pixels: int
    batch: int
    at_once: int = 16
    kind: str = "nasbench201"

    def space(self) -> Any:
        """The space in this size."""
        return spaces.get(self.kind, spaces.InputShape(3, self.pixels, 10), **self.sizes)

    def supernet(self) -> Any:
        """With channels last, as the ranking has it."""
        made = self.space().supernet(seed=0)
        return made.to(memory_format=torch.channels_last)

    def batches(self, count: int) -> list[tuple[Tensor, Tensor]]:
        """Random images."""
        generator = torch.Generator().manual_seed(0)
        size = (self.batch, 3, self.pixels, self.pixels)
        return [
            (
                torch.randn(size, generator=generator).contiguous(
                    memory_format=torch.channels_last
                ),
                torch.randint(0, 10, (self.batch,), generator=generator),
            )
            for _ in range(count)
        ]

    def archs(self, group: int = 0) -> list[Any]:
        """Random subnets."""
        space = self.space()
        return [space.sample(random.Random(f"{group}/{i}")) for i in range(self.at_once)]


PUBLISHED = {"channels": 16, "cells": 5}
FULL = (
    Workload("C=16, N=5, 32 px, batch 16", PUBLISHED, 32, 16),
    Workload("C=16, N=5, 32 px, batch 64", PUBLISHED, 32, 64),
    Workload("C=4, N=1, 8 px, batch 64", {"channels": 4, "cells": 1}, 8, 64),
)
ELASTIC = (
    Workload("mlp, 32 px, batch 64", {}, 32, 64, kind="mlp"),
    Workload("mobilenet, 32 px, batch 16", {}, 32, 16, kind="mobilenet"),
    Workload("resnet, 32 px, batch 16", {}, 32, 16, kind="resnet"),
    Workload("transformer, 32 px, batch 16", {"patch": 4}, 32, 16, kind="transformer"),
)


def scoring_rows(
    workload: Workload, proxies: Sequence[str], rounds: int = 5, device: str = "cpu"
) -> dict[str, Any]:
    """One row: K subnets scored on four batches, another K in each round."""
    net, given = workload.supernet().to(device), workload.batches(4)
    data = Batches(given, net, torch.device(device))
    group = iter(range(10_000))
    archs: list[Any] = []
    on_gpu = device == "cuda"

    def together() -> None:
        score_many(net, archs, data, proxies, at_once=workload.at_once)

    def apart() -> None:
        for arch in archs:
            score(net.subnet(arch), data, proxies)

    seconds: dict[str, list[float]] = {"together": [], "apart": []}
    with harness.thread_count(1):
        for index in range(rounds):
            archs = workload.archs(next(group))
            times = harness.in_turn(
                {"together": together, "apart": apart},
                rounds=1,
                warmup=int(index == 0),
                clock=time.perf_counter if on_gpu else time.process_time,
            )
            for name, measured in times.items():
                seconds[name] += measured.seconds
        times = {name: Times(tuple(values)) for name, values in seconds.items()}
        ratios = harness.ratio(times["together"], times["apart"])
        return harness.row(
            f"score_many {','.join(proxies)}",
            "together",
            times["together"],
            baseline="one by one",
            speedup=harness.ratio(times["apart"], times["together"]),
            shape=f"K={workload.at_once}, {workload.name}",
            mode="forward+backward",
            device=torch.cuda.get_device_name() if on_gpu else "cpu",
            clock="wall" if on_gpu else "cpu",
            over_one_by_one=statistics.median(ratios.seconds),
            over_one_by_one_worst=max(ratios.seconds),
            networks_per_second=workload.at_once / times["together"].median,
        )


def training_rows(workload: Workload, paths: int = 4, rounds: int = 7) -> list[dict[str, Any]]:
    """A training step of one path and of several, against plain passes."""
    net = workload.supernet()
    (images, labels) = workload.batches(1)[0]
    archs = workload.archs()[:paths]
    optimizer = torch.optim.SGD(net.parameters(), lr=0.025, momentum=0.9, nesterov=True)

    def step(run: Any) -> Any:
        def taken() -> None:
            optimizer.zero_grad(set_to_none=True)
            run()
            optimizer.step()

        return taken

    def plain() -> None:
        for arch in archs:
            F.cross_entropy(net(images, arch), labels).backward()

    routes = {
        f"{paths} paths, plain passes": step(plain),
        f"{paths} paths together": step(lambda: add_gradients(net, archs, images, labels)),
        "1 path, plain pass": step(
            lambda: F.cross_entropy(net(images, archs[0]), labels).backward()
        ),
        "1 path as a stack": step(lambda: add_gradients(net, archs[:1], images, labels)),
    }
    with harness.thread_count(1):
        times = harness.in_turn(routes, rounds=rounds)
        names = list(routes)
        baselines = dict(zip(names, [names[0], names[0], names[2], names[2]], strict=True))
        return [
            harness.row(
                "supernet training step",
                name,
                measured,
                baseline=baselines[name],
                speedup=harness.ratio(times[baselines[name]], measured),
                shape=workload.name,
                mode="forward+backward",
                steps_per_second=1 / measured.median,
            )
            for name, measured in times.items()
        ]


def memory_rows() -> list[dict[str, Any]]:
    """Peak memory of one pass for several K, and the weights of the supernet, once."""
    rows = []
    for count in (1, 4, 16):
        command = [sys.executable, "-m", "bench.bench_many", "memory", str(count)]
        found = subprocess.run(command, capture_output=True, text=True, check=True)
        with harness.thread_count(1):
            entry = json.loads(found.stdout)
            rows.append(
                harness.row(
                    "memory", "together", Times((0.0,)), shape=f"K={count}, batch 16", **entry
                )
            )
    return rows


def measure_memory(count: int) -> None:
    """In a fresh process: print the peak growth in MiB, and what a copy of the weights would be."""
    workload = Workload("memory", PUBLISHED, 32, 16, count)
    net, (batch,) = workload.supernet(), workload.batches(1)
    archs = workload.archs()
    images, labels = batch
    add_gradients(net, archs, images[:2], labels[:2])  # what is kept for good, and the gradients
    weights = sum(p.nbytes for p in net.parameters()) / 2**20
    peak = harness.PeakMemory()
    add_gradients(net, archs, *batch)
    print(json.dumps({"peak_mib": peak.mib(), "supernet_mib": weights}))


def rows() -> list[dict[str, Any]]:
    """All ratios."""
    result = [scoring_rows(w, ["zico"]) for w in FULL]
    result += [scoring_rows(w, ["sigeo"], rounds=3) for w in FULL]
    result += [scoring_rows(w, [name], rounds=3) for w in ELASTIC for name in ("zico", "sigeo")]
    result += [
        scoring_rows(w, ["zico_sample"], rounds=3) for w in (replace(FULL[0], at_once=4), FULL[2])
    ]
    for workload in FULL:
        result += training_rows(workload)
    if torch.cuda.is_available():
        result += [row for part in gpu_rows() for row in part]
    return [*result, *prefixes.rows(), *memory_rows()]


def gpu_rows() -> Iterator[list[dict[str, Any]]]:
    """Many more subnets at once, on a GPU.

    Yields:
        Rows of one proxy.
    """
    for name in ("zico", "sigeo"):
        workload = replace(FULL[0], at_once=64)
        yield [scoring_rows(workload, [name], rounds=3, device="cuda")]


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=("memory",))
    parser.add_argument("count", type=int)
    given = parser.parse_args()
    torch.set_num_threads(1)
    measure_memory(given.count)
