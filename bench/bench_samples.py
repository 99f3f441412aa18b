"""Statistics of single samples' gradients over the plain forward and backward pass.

Every row's ``over_plain`` is the median, over rounds in one process, of a route's CPU time over
that of the plain passes beside it, on a GPU of what a user waits. The peers are a loop over the
samples, the vmap of grad of ``torch.func``, and, where they are installed and take the model,
Opacus and BackPACK; all followed by the same statistics in plain torch, but for Opacus' ghost
norms, which are norms alone.

    python bench/run.py --only samples
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench import harness, models, peers
from bench.bench_statistics import MIDDLING
from bench.harness import Times
from sigeo import spaces
from sigeo.capture import capture

LARGEST = "|nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_3x3~1|+" + (
    "|nor_conv_3x3~0|nor_conv_3x3~1|nor_conv_3x3~2|"
)
ALL = ("sum", "abs_sum", "sq_sum", "sample_sq_norm")
CENTRED = ("sum", "abs_sum", "m2", "sample_sq_norm")
HOOKS, GHOST, BACKPACK = "Opacus hooks", "Opacus ghost norms", "BackPACK"
PEERS = {"loop": None, "vmap": None, HOOKS: "opacus", GHOST: "opacus", BACKPACK: "backpack"}
"""The package of each, beside torch."""


@dataclass(frozen=True)
class Workload:
    """A model with a batch.

    Attributes:
        name: In the rows.
        make: The model; batch norm on running statistics.
        inputs: Of the batch.
        classes: Of the labels.
        rounds: For the time.
        peers: Which of `PEERS` take the model and finish in reasonable time and memory; the page on
            benchmarks says why others do not.
    """

    name: str
    make: Callable[[], nn.Module]
    inputs: Callable[[], tuple[Tensor, ...]]
    classes: int = 10
    rounds: int = 5
    peers: tuple[str, ...] = ("loop", "vmap")

    def present_peers(self) -> list[str]:
        """Those whose package is installed."""
        return [name for name in self.peers if PEERS[name] is None or peers.has(PEERS[name])]


def cell(text: str) -> nn.Module:
    """A NAS-Bench-201 network of full size, batch norm on running statistics."""
    space = spaces.get("nasbench201", spaces.InputShape(3, 32, 10))
    return space.build(space.parse(text), seed=0).eval()


def images(batch: int) -> Callable[[], tuple[Tensor, ...]]:
    """Makes a batch of 32 px, channels last."""

    def make() -> tuple[Tensor, ...]:
        images = torch.randn(batch, 3, 32, 32)
        return (images.contiguous(memory_format=torch.channels_last),)

    return make


def clicks(batch: int, rows: int) -> Callable[[], tuple[Tensor, ...]]:
    """Makes a batch of 13 dense features and 26 table rows."""
    return lambda: (torch.randn(batch, 13), torch.randint(0, rows, (batch, 26)))


WORKLOADS = (
    Workload("NAS-Bench-201 middling, batch 64", lambda: cell(MIDDLING), images(64),
             peers=("loop", "vmap", BACKPACK)),
    Workload("NAS-Bench-201 largest, batch 64", lambda: cell(LARGEST), images(64), rounds=3,
             peers=("loop", "vmap", BACKPACK)),
    Workload("ResNet-18 GN, batch 16", models.resnet18, images(16), rounds=3,
             peers=("loop", "vmap", HOOKS, GHOST)),
    Workload("ResNet-18 GN, batch 64", models.resnet18, images(64), rounds=3,
             peers=("loop", HOOKS, GHOST)),
    Workload("MobileNetV2, batch 32", lambda: models.mobilenet_v2().eval(), images(32),
             peers=("loop", "vmap", BACKPACK)),
    Workload("transformer, batch 64", models.Encoder, lambda: (torch.randint(0, 1000, (64, 64)),),
             peers=("loop", "vmap", HOOKS, GHOST)),
    Workload("CTR 10,000 rows, batch 128", lambda: models.ClickThrough(10_000),
             clicks(128, 10_000), 2, 7, ("loop", "vmap", HOOKS, GHOST, BACKPACK)),
    Workload("CTR 10,000 rows, batch 512", lambda: models.ClickThrough(10_000),
             clicks(512, 10_000), 2, 15, ("loop", GHOST)),
    Workload("CTR 1,000,000 rows, batch 128", lambda: models.ClickThrough(1_000_000),
             clicks(128, 1_000_000), 2, 3, (GHOST,)),
    Workload("CTR 1,000,000 rows, sparse, batch 128",
             lambda: models.ClickThrough(1_000_000, sparse=True),
             clicks(128, 1_000_000), 2, 5, (GHOST,)),
)  # fmt: skip


class Case:
    """A workload, made, with the routes."""

    def __init__(self, workload: Workload, device: str = "cpu"):
        torch.manual_seed(0)
        self.model = workload.make().to(device)
        self.inputs = tuple(x.to(device) for x in workload.inputs())
        if self.inputs[0].dim() == 4:
            self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.labels = torch.randint(0, workload.classes, (len(self.inputs[0]),)).to(device)

    def plain(self) -> None:
        """Forward and backward."""
        self.model.zero_grad()
        F.cross_entropy(self.model(*self.inputs), self.labels).backward()

    def captured(self, want: tuple[str, ...] = ALL, *, grads: bool = True) -> None:
        """The same with statistics."""
        self.model.zero_grad()
        with capture(self.model, want, grads=grads) as found:
            F.cross_entropy(self.model(*self.inputs), self.labels).backward()
        assert found.units == len(self.labels)

    def loop(self) -> None:
        """A pass a sample, statistics added up."""
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        state = [[torch.zeros_like(p) for _ in range(3)] for p in parameters]
        for i in range(len(self.labels)):
            one = tuple(x[i : i + 1] for x in self.inputs)
            loss = F.cross_entropy(self.model(*one), self.labels[i : i + 1])
            grads = torch.autograd.grad(loss, parameters)
            torch.stack([g.square().sum() for g in grads]).sum()
            for (total, absolute, square), g in zip(state, grads, strict=True):
                total += g
                absolute += g.abs()
                square += g * g

    def vmap(self) -> None:
        """``torch.func``: all gradients at once, then the statistics."""
        weights = {n: p.detach() for n, p in self.model.named_parameters()}
        buffers = dict(self.model.named_buffers())

        def loss(weights: dict[str, Tensor], y: Tensor, *inputs: Tensor) -> Tensor:
            batch = tuple(x.unsqueeze(0) for x in inputs)
            output = torch.func.functional_call(self.model, (weights, buffers), batch)
            return F.cross_entropy(output, y.unsqueeze(0))

        axes = (None, 0, *(0 for _ in self.inputs))
        gradient = torch.func.vmap(torch.func.grad(loss), in_dims=axes, randomness="different")
        reduce(gradient(weights, self.labels, *self.inputs))

    @functools.cached_property
    def _opacus_gradients(self) -> Callable[..., dict[str, Tensor]]:
        return peers.opacus_gradients(self.model)

    @functools.cached_property
    def _opacus_norms(self) -> Callable[..., Tensor]:
        return peers.opacus_norms(self.model)

    @functools.cached_property
    def _backpack_gradients(self) -> Callable[..., dict[str, Tensor]]:
        return peers.backpack_gradients(self.model)

    def peer(self, name: str) -> Callable[[], object]:
        """What runs one of `PEERS`."""
        batch = self.inputs, self.labels
        return {
            "loop": self.loop,
            "vmap": self.vmap,
            HOOKS: lambda: reduce(self._opacus_gradients(*batch)),
            GHOST: lambda: self._opacus_norms(*batch),
            BACKPACK: lambda: reduce(self._backpack_gradients(*batch)),
        }[name]


def reduce(gradients: dict[str, Tensor]) -> None:
    """The statistics of per-sample gradients that are there."""
    for g in gradients.values():
        g.sum(0), g.abs().sum(0), g.var(0), g.flatten(1).square().sum(1)


def time_rows(
    workload: Workload, rounds: int | None = None, device: str = "cpu"
) -> list[dict[str, Any]]:
    """All routes in turn, one thread."""
    case = Case(workload, device)
    routes: dict[str, Callable[[], None]] = {
        "plain": case.plain,
        "capture": case.captured,
        "capture, m2": lambda: case.captured(CENTRED),
        "capture, norms": lambda: case.captured(("sample_sq_norm",)),
        "capture, Fisher-Rao, no .grad": lambda: case.captured(("fisher_rao",), grads=False),
    }
    routes |= {name: case.peer(name) for name in workload.present_peers()}
    on_gpu = device == "cuda"
    with harness.thread_count(1):
        times = harness.in_turn(
            routes,
            rounds=rounds or workload.rounds,
            warmup=2 if on_gpu else 1,
            clock=time.perf_counter if on_gpu else time.process_time,
        )
        return [_row(workload, name, times, on_gpu) for name in routes]


def _row(workload: Workload, name: str, times: dict[str, Times], on_gpu: bool) -> dict[str, Any]:
    ratios = harness.ratio(times[name], times["plain"])
    return harness.row(
        "sample statistics",
        name,
        times[name],
        baseline="plain",
        shape=workload.name,
        mode="forward+backward",
        device=torch.cuda.get_device_name() if on_gpu else "cpu",
        clock="wall" if on_gpu else "cpu",
        over_plain=statistics.median(ratios.seconds),
        over_plain_worst=max(ratios.seconds),
    )


def gpu_rows() -> Iterator[list[dict[str, Any]]]:
    """Time of every workload on a GPU, beside the peers but the loop, which leaves it idle.

    Yields:
        Rows of one workload.
    """
    for workload in WORKLOADS:
        chosen = tuple(name for name in workload.peers if name != "loop")
        yield time_rows(replace(workload, peers=chosen), 15, "cuda")


def rows() -> list[dict[str, Any]]:
    """Time and memory of every workload."""
    return [row for workload in WORKLOADS for row in time_rows(workload)] + memory_rows()


def memory_rows() -> list[dict[str, Any]]:
    """Peak memory of each route in a process of its own."""
    result = []
    for index, workload in enumerate(WORKLOADS):
        for route in ("plain", "capture", *workload.present_peers()):
            command = [sys.executable, "-m", "bench.bench_samples", str(index), route]
            found = subprocess.run(command, capture_output=True, text=True, check=True)
            with harness.thread_count(1):
                entry = harness.row(
                    "memory",
                    route,
                    Times((0.0,)),
                    shape=workload.name,
                    mode="forward+backward",
                    **json.loads(found.stdout),
                )
            result.append(entry)
    return result


def measure_memory(workload: Workload, route: str) -> None:
    """In a fresh process: print the peak growth in MiB over a first, small use of torch."""
    case = Case(workload)
    parameters = sum(p.numel() * 4 for p in case.model.parameters()) / 2**20
    peak = harness.PeakMemory()
    routes = {"plain": case.plain, "capture": case.captured}
    (routes.get(route) or case.peer(route))()
    print(json.dumps({"peak_mib": peak.mib(), "parameters_mib": parameters}))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("workload", type=int)
    parser.add_argument("route", choices=("plain", "capture", *PEERS))
    given = parser.parse_args()
    torch.set_num_threads(1)
    measure_memory(WORKLOADS[given.workload], given.route)
