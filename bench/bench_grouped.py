"""Grouped products against loops over the subnets: plain torch's slices, and ``slices.linear``.

S subnets of one super-weight, widths a quarter to all of it in each dimension, a ragged batch; a
forward pass, or a forward and a backward pass with gradients of every input, the super-weight and
its bias. The clock is the process' CPU time on one thread and the wall on two. ``speedup`` is over
the loop of plain slices, ``over_slices`` over that of ``slices.linear``.

The statistics over subnets are compared with a loop in plain torch that forms each subnet's
gradient and updates the sums in the super-weight's places.

    python bench/run.py --only grouped
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from bench import harness
from sigeo_ext.gather import grouped, slices

QUARTERS = 4


class Case(NamedTuple):
    """Outputs and inputs of the super-weight, number of subnets, least and most rows of one."""

    size: int
    subnets: int
    rows: tuple[int, int]


CASES = (
    *(Case(size, s, (8, 256)) for size in (256, 512, 1024) for s in (4, 16, 64)),
    *(Case(1024, s, (4, 32)) for s in (4, 16, 64)),
)
THREADS = (1, 2)
Programs = dict[str, Callable[[], list[Tensor]]]


class Problem:
    """Values of a case."""

    def __init__(self, case: Case) -> None:
        generator = torch.Generator().manual_seed(0)

        def randint(low: int, high: int) -> int:
            return int(torch.randint(low, high + 1, (), generator=generator))

        def width() -> int:
            return case.size * randint(1, QUARTERS) // QUARTERS

        def randn(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator)

        self.case = case
        self.weight = randn(case.size, case.size).requires_grad_()
        self.bias = randn(case.size).requires_grad_()
        self.outputs = [width() for _ in range(case.subnets)]
        self.inputs = [width() for _ in range(case.subnets)]
        self.x = [randn(randint(*case.rows), i).requires_grad_() for i in self.inputs]
        self.d = [randn(len(x), o) for x, o in zip(self.x, self.outputs, strict=True)]

    def programs(self) -> Programs:
        """The layer of all subnets, in three ways."""
        weight, bias = self.weight, self.bias
        each = list(zip(self.x, self.outputs, self.inputs, strict=True))
        return {
            "slices in a loop": lambda: [F.linear(x, weight[:o, :i], bias[:o]) for x, o, i in each],
            "slices.linear in a loop": lambda: [
                slices.linear(x, weight, bias, outputs=o, inputs=i) for x, o, i in each
            ],
            "sigeo_ext": lambda: grouped.linear(
                self.x, weight, bias, outputs=self.outputs, inputs=self.inputs
            ),
        }

    def forward(self, program: Callable[[], list[Tensor]]) -> None:
        """Without a graph."""
        with torch.no_grad():
            program()

    def both(self, program: Callable[[], list[Tensor]]) -> None:
        """With all gradients, made anew."""
        for leaf in (*self.x, self.weight, self.bias):
            leaf.grad = None
        torch.autograd.backward(program(), self.d)

    def statistics(self) -> dict[str, Callable[[], object]]:
        """S1, A1, S2 over subnets and their squared norms."""
        x, size = [x.detach() for x in self.x], (self.case.size, self.case.size)

        def plain() -> object:
            sums = [torch.zeros(size) for _ in range(3)]
            norms = []
            for rows, d, o, i in zip(x, self.d, self.outputs, self.inputs, strict=True):
                g = d.t() @ rows
                parts = [values[:o, :i] for values in sums]
                parts[0].add_(g)
                parts[1].add_(g.abs())
                parts[2].addcmul_(g, g)
                norms.append(g.square().sum())
            return sums, norms

        def ours() -> object:
            return grouped.subnet_moments(x, self.d, size, outputs=self.outputs, inputs=self.inputs)

        return {"plain torch": plain, "sigeo_ext": ours}


def describe(case: Case) -> str:
    """For the column of shapes."""
    return f"{case.size}, S = {case.subnets}, {case.rows[0]} to {case.rows[1]} rows"


def measured(
    op: str,
    mode: str,
    case: Case,
    programs: dict[str, Callable[[], object]],
    threads: int,
    rounds: int,
) -> list[dict[str, Any]]:
    """A row a program; the first is the baseline."""
    clock = time.process_time if threads == 1 else time.perf_counter
    with harness.thread_count(threads):
        begin = clock()
        for program in programs.values():
            program()
        once = (clock() - begin) / len(programs)
        # Short passes are repeated more often.
        most = min(max(rounds, int(rounds * 0.02 / once)), 101)
        times = harness.in_turn(programs, rounds=most if rounds > 1 else 1, clock=clock)
        baseline = next(iter(programs))
        ours = times["sigeo_ext"]
        found = []
        for name, taken in times.items():
            more = {}
            if name == "sigeo_ext" and "slices.linear in a loop" in times:
                over = harness.ratio(times["slices.linear in a loop"], ours)
                more["over_slices"] = statistics.median(over.seconds)
            entry = harness.row(
                op,
                name,
                taken,
                baseline=baseline,
                speedup=harness.ratio(times[baseline], taken),
                shape=describe(case),
                mode=mode,
                clock="cpu" if threads == 1 else "wall",
                **more,
            )
            found.append(entry)
    return found


def case_rows(case: Case, threads: int, rounds: int = 15) -> list[dict[str, Any]]:
    """All of one case."""
    problem = Problem(case)
    found = []
    for mode, run in (("forward", problem.forward), ("forward+backward", problem.both)):
        passes = {
            name: (lambda program=program, run=run: run(program))
            for name, program in problem.programs().items()
        }
        found += measured(f"grouped linear, {mode}", mode, case, passes, threads, rounds)
    return found + measured(
        "grouped subnet_moments", "statistics", case, problem.statistics(), threads, rounds
    )


def rows() -> list[dict[str, Any]]:
    """Everything."""
    return [entry for threads in THREADS for case in CASES for entry in case_rows(case, threads)]
