"""The benchmarks, and the tests that must pass before one is believed."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from bench import (
    bench_elastic,
    bench_gram,
    bench_grouped,
    bench_many,
    bench_moments,
    bench_pipeline,
    bench_saliency,
    bench_sample_moments,
    bench_samples,
    bench_space,
    bench_start,
    bench_statistics,
)

Rows = Callable[[], list[dict[str, Any]]]


@dataclass(frozen=True)
class Benchmark:
    """One benchmark.

    Attributes:
        name: As for ``--only``.
        module: File in bench/ that holds it, without ``.py``.
        tests: Its gate.
        rows: Measures.
        smoke: Runs once, quickly, so that it is known to work.
        gpu: Measures on the GPU, part by part; None where nothing runs there.
    """

    name: str
    module: str
    tests: tuple[str, ...]
    rows: Rows
    smoke: Rows
    gpu: Callable[[], Iterator[list[dict[str, Any]]]] | None = None

    def measures(self) -> str:
        """What it measures: the first line of its module."""
        text = importlib.import_module(f"bench.{self.module}").__doc__ or ""
        return text.partition("\n")[0]


def parted(name: str, *parts: str) -> tuple[str, ...]:
    """The test files of one subject: that of its name, and those of its parts."""
    return tuple(f"tests/{name}{part}.py" for part in ("", *parts))


CAPTURE = parted("sigeo/test_capture", "_inner_products", "_inputs", "_layers", "_state")
MOMENTS = parted("sigeo_ext/test_moments", "_errors", "_memory", "_numbers", "_op", "_state")
SAMPLE_MOMENTS = parted(
    "sigeo_ext/test_sample_moments", "_embedding", "_norms", "_op", "_small_parameters"
)
SAMPLES = parted("sigeo/test_samples", "_batch_norm", "_refused")

BENCHMARKS = (
    Benchmark(
        "moments",
        "bench_moments",
        MOMENTS,
        bench_moments.rows,
        lambda: (
            bench_moments.updates([10_000], "smoke", 1, rounds=1)
            + bench_moments.summaries([10_000], "smoke", 1, rounds=1)
        ),
        bench_moments.gpu_rows,
    ),
    Benchmark(
        "saliency",
        "bench_saliency",
        parted("sigeo_ext/test_saliency", "_op"),
        bench_saliency.rows,
        lambda: bench_saliency.reductions([10_000], "smoke", 1, rounds=1),
        bench_saliency.gpu_rows,
    ),
    Benchmark(
        "statistics",
        "bench_statistics",
        CAPTURE,
        bench_statistics.rows,
        lambda: bench_statistics.time_rows(bench_statistics.WORKLOADS[1], 1, 1),
    ),
    Benchmark(
        "memory",
        "bench_statistics",
        CAPTURE,
        bench_statistics.memory_rows,
        lambda: [],
    ),
    Benchmark(
        "samples",
        "bench_samples",
        (*SAMPLE_MOMENTS, *SAMPLES),
        bench_samples.rows,
        lambda: bench_samples.time_rows(bench_samples.WORKLOADS[6], rounds=1),
        bench_samples.gpu_rows,
    ),
    Benchmark(
        "gram",
        "bench_gram",
        (*parted("sigeo_ext/test_gram", "_errors", "_triton"), "tests/sigeo/test_ntk.py"),
        bench_gram.rows,
        lambda: bench_gram.ntk_rows("CTR 10,000 rows", rounds=1),
        bench_gram.gpu_rows,
    ),
    Benchmark(
        "sample_moments",
        "bench_sample_moments",
        (*SAMPLE_MOMENTS, "tests/sigeo_ext/test_sample_moments_triton.py"),
        bench_sample_moments.rows,
        lambda: bench_sample_moments.layer_rows(bench_sample_moments.LAYERS[3], 1, 1),
        bench_sample_moments.rows_of_layers,
    ),
    Benchmark(
        "elastic",
        "bench_elastic",
        (
            *parted("sigeo_ext/test_slices", "_lists", "_op", "_routes", "_triton"),
            "tests/sigeo/test_elastic.py",
        ),
        bench_elastic.rows,
        lambda: bench_elastic.linear_rows(bench_elastic.LINEAR[0], "list", rounds=1),
        bench_elastic.gpu_rows,
    ),
    Benchmark(
        "grouped",
        "bench_grouped",
        parted("sigeo_ext/test_grouped", "_op", "_moments"),
        bench_grouped.rows,
        lambda: bench_grouped.case_rows(bench_grouped.CASES[0], 1, rounds=1),
    ),
    Benchmark(
        "pipeline",
        "bench_pipeline",
        ("tests/sigeo/test_rank.py", "tests/sigeo/test_nasbench201.py"),
        bench_pipeline.rows,
        lambda: bench_pipeline.rows(candidates=2),
    ),
    Benchmark(
        "many",
        "bench_many",
        (
            *parted("sigeo_ext/test_gather", "_op", "_batch_norm", "_cell"),
            "tests/sigeo/test_many.py",
            "tests/sigeo/test_elastic_many.py",
        ),
        bench_many.rows,
        lambda: [
            bench_many.scoring_rows(workload, ["zico"], rounds=1)
            for workload in (bench_many.FULL[2], bench_many.ELASTIC[0])
        ],
        bench_many.gpu_rows,
    ),
    Benchmark(
        "space",
        "bench_space",
        ("tests/sigeo/test_many.py",),
        bench_space.rows,
        lambda: bench_space.rows(seconds=0.0),
        bench_space.gpu_rows,
    ),
    Benchmark(
        "start",
        "bench_start",
        ("tests/sigeo_ext/test_load.py",),
        bench_start.rows,
        lambda: bench_start.imports(rounds=1),
    ),
)
