"""Timing: programs run in turn in one process, medians with spread, one row format for all results.

A row is one line of JSON in ``bench/results/<machine>.jsonl``:

    op, impl, baseline, mode, device, dtype, shape, threads, clock, repeats,
    p20_us, p50_us, p80_us, bytes, gb_per_s, share, speedup, peak_mib, sha, torch, config

``share`` is of the machine's own in-place stream, ``speedup`` the median over rounds of baseline
time over this time, both absent where they mean nothing.
"""

from __future__ import annotations

import json
import os
import platform
import random
import re
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

NOT_MEASURED = "Not measured yet.\n"
RESULTS = Path(__file__).resolve().parent / "results"
SHARED = Path(os.environ.get("SIGEO_SHARED", RESULTS.parents[2] / "shared"))
"""The data folder beside the checkout."""
HEAP_REUSED = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_MMAP_THRESHOLD_": "8000000000",
    "MALLOC_TRIM_THRESHOLD_": "16000000000",
}


@dataclass(frozen=True)
class Times:
    """Seconds of each round of one program."""

    seconds: tuple[float, ...]

    def quantile(self, q: float) -> float:
        """Linear between the rounds."""
        ordered = sorted(self.seconds)
        place = q * (len(ordered) - 1)
        low = int(place)
        high = min(low + 1, len(ordered) - 1)
        return ordered[low] + (place - low) * (ordered[high] - ordered[low])

    @property
    def median(self) -> float:
        """Of the rounds."""
        return self.quantile(0.5)


def in_turn(
    programs: Mapping[str, Callable[[], object]],
    *,
    rounds: int = 7,
    warmup: int = 1,
    clock: Callable[[], float] = time.process_time,
    calls: int = 1,
) -> dict[str, Times]:
    """Time programs in rounds, each round in another order.

    Args:
        programs: By name.
        rounds: Counted rounds.
        warmup: Rounds before them.
        clock: `time.process_time` for the CPU time of all threads of this process, which a busy
            machine disturbs less; `time.perf_counter` for what a user waits.
        calls: Of a program in its turn, so that the wait for a GPU at the end hardly counts; times
            are those of one call.
    """
    order = list(programs)
    rng = random.Random(0)
    seconds: dict[str, list[float]] = {name: [] for name in order}
    for index in range(-warmup, rounds):
        rng.shuffle(order)
        for name in order:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            begin = clock()
            for _ in range(calls):
                programs[name]()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if index >= 0:
                seconds[name].append((clock() - begin) / calls)
    return {name: Times(tuple(values)) for name, values in seconds.items()}


def ratio(numerator: Times, denominator: Times) -> Times:
    """Round by round."""
    pairs = zip(numerator.seconds, denominator.seconds, strict=True)
    return Times(tuple(a / b for a, b in pairs))


class PeakMemory:
    """The growth of this process's resident memory at its highest, from now on (Linux).

    Not ``ru_maxrss``, which a child process takes over from the one that started it.
    """

    def __init__(self) -> None:
        Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
        self._before = self._read("VmRSS")

    def mib(self) -> float:
        """So far."""
        return (self._read("VmHWM") - self._before) / 1024

    @staticmethod
    def _read(name: str) -> int:
        text = Path("/proc/self/status").read_text()
        return int(text.split(f"{name}:")[1].split()[0])


@contextmanager
def thread_count(count: int) -> Iterator[None]:
    """Run with ``count`` intra-op threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def machine() -> str:
    """A name of this kind of machine: the GPU if there is one, else the processor."""
    if torch.cuda.is_available():
        name = torch.cuda.get_device_name()
    else:
        info = Path("/proc/cpuinfo")
        text = info.read_text() if info.exists() else ""
        found = re.search(r"model name\s*:\s*(.*)", text)
        flags = "avx512" if "avx512f" in text else "avx2" if "avx2" in text else "sse2"
        name = f"{found.group(1) if found else platform.machine()}-{os.cpu_count()}cores-{flags}"
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def commit() -> str:
    """Of the checkout, with a mark where it has changes."""
    command = ["git", "-C", str(RESULTS.parent), "describe", "--always", "--dirty", "--abbrev=10"]
    result = subprocess.run(command, capture_output=True, text=True)
    return result.stdout.strip() or "unknown"


def row(
    op: str,
    impl: str,
    times: Times,
    *,
    baseline: str | None = None,
    speedup: Times | None = None,
    mode: str = "forward",
    device: str = "cpu",
    dtype: str = "float32",
    shape: str = "",
    clock: str = "cpu",
    bytes_moved: int | None = None,
    stream_gb_per_s: float | None = None,
    peak_mib: float | None = None,
    **config: Any,
) -> dict[str, Any]:
    """One result in the row format."""
    rate = None if bytes_moved is None else bytes_moved / times.median / 1e9
    return {
        "op": op,
        "impl": impl,
        "baseline": baseline,
        "mode": mode,
        "device": device,
        "dtype": dtype,
        "shape": shape,
        "threads": torch.get_num_threads(),
        "clock": clock,
        "repeats": len(times.seconds),
        "p20_us": 1e6 * times.quantile(0.2),
        "p50_us": 1e6 * times.median,
        "p80_us": 1e6 * times.quantile(0.8),
        "bytes": bytes_moved,
        "gb_per_s": rate,
        "share": None if rate is None or stream_gb_per_s is None else rate / stream_gb_per_s,
        "speedup": None if speedup is None else statistics.median(speedup.seconds),
        "peak_mib": peak_mib,
        "sha": commit(),
        "torch": torch.__version__,
        "config": config,
    }


def write(rows: list[dict[str, Any]], *, replace: str, whole: bool = True) -> Path:
    """Put rows into the machine's file in the place of earlier ones of benchmark ``replace``.

    Args:
        rows: New ones.
        replace: The benchmark's name.
        whole: Whether they are all that it has; if not, only rows of the same kind give way.
    """
    path = RESULTS / f"{machine()}.jsonl"
    RESULTS.mkdir(exist_ok=True)
    kinds = {_kind(entry) for entry in rows}

    def gives_way(entry: dict[str, Any]) -> bool:
        return entry["bench"] == replace and (whole or _kind(entry) in kinds)

    lines = path.read_text().splitlines() if path.exists() else []
    kept = [line for line in lines if not gives_way(json.loads(line))]
    new = [json.dumps({"bench": replace, **entry}) for entry in rows]
    written = path.with_suffix(".new")  # being stopped here loses no earlier rows
    written.write_text("\n".join([*kept, *new]) + "\n")
    written.replace(path)
    return path


def write_study(name: str, command: str, content: Mapping[str, Any]) -> None:
    """Write the result file of a study, with what it was made by.

    Args:
        name: Of the file.
        command: The module of `bench`, and its arguments.
        content: As JSON can hold it.
    """
    head = {
        "command": f"python -m bench.{command}",
        "sha": commit(),
        "machine": machine(),
        "torch": torch.__version__,
    }
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({**head, **content}, indent=1) + "\n")
    print(path)


def read_study(name: str) -> dict[str, Any] | None:
    """What `write_study` wrote; None where the study was not made."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def _kind(entry: dict[str, Any]) -> tuple[Any, ...]:
    """What two measurements of the same thing have in common."""
    words = sorted((k, v) for k, v in entry["config"].items() if isinstance(v, str))
    keys = ("op", "impl", "mode", "device", "dtype", "shape", "threads")
    return (*(entry[key] for key in keys), *words)


def show(rows: list[dict[str, Any]]) -> None:
    """Print rows for a reader."""
    for r in rows:
        parts = [f"{r['op']:24} {r['impl']:22} {r['shape']:28} threads {r['threads']}"]
        parts.append(
            f"{r['p50_us'] / 1e3:9.3f} ms [{r['p20_us'] / 1e3:.3f}, {r['p80_us'] / 1e3:.3f}]"
        )
        if r["gb_per_s"] is not None:
            parts.append(f"{r['gb_per_s']:6.1f} GB/s")
        if r["share"] is not None:
            parts.append(f"{100 * r['share']:5.1f} % of stream")
        if r["speedup"] is not None:
            parts.append(f"{r['speedup']:6.2f}x {r['baseline']}")
        if r["peak_mib"] is not None:
            parts.append(f"peak {r['peak_mib']:.0f} MiB")
        parts += [
            f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in r["config"].items()
        ]
        print("  ".join(parts), flush=True)
