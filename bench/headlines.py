"""The figures that matter, beside their aims: the table at the top of the page on benchmarks.

Each is computed from the rows of one benchmark on one machine, here and nowhere else.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.bench_samples import WORKLOADS

Row = dict[str, Any]
Figure = Callable[[Sequence[Row]], float | None]
"""From a benchmark's rows on one machine; None where they do not have it."""


@dataclass(frozen=True)
class Headline:
    """One line of the table.

    Attributes:
        bench: The benchmark whose rows it is made of.
        what: What is compared with what.
        figure: The ratio.
        most: The aim, where the figure is to be at most that.
        least: The aim, where it is to be at least that.
        form: How the figure is written.
    """

    bench: str
    what: str
    figure: Figure
    most: float | None = None
    least: float | None = None
    form: str = "{:.2f}"

    def aim(self) -> str:
        """In words; empty if there is none."""
        form = self.form if "%" in self.form else "{:g}"
        if self.most is not None:
            return f"at most {form.format(self.most)}"
        return "" if self.least is None else f"at least {form.format(self.least)}"

    def cell(self, rows: Sequence[Row]) -> str:
        """The figure on one machine, and whether it reaches the aim."""
        value = self.figure(rows)
        if value is None:
            return ""
        text = self.form.format(value)
        if self.most is not None:
            return f"{text}, {'reached' if value <= self.most else 'missed'}"
        if self.least is not None:
            return f"{text}, {'reached' if value >= self.least else 'missed'}"
        return text


def of_rows(
    key: str, reduce: Callable[[list[float]], float] = statistics.median, **wanted: object
) -> Figure:
    """A key of the rows, or of their ``config``, reduced over all rows that are as wanted.

    A wanted value may be a tuple of those that are wanted.
    """

    def fits(row: Row) -> bool:
        return all(
            row[name] in value if isinstance(value, tuple) else row[name] == value
            for name, value in wanted.items()
        )

    def figure(rows: Sequence[Row]) -> float | None:
        found = [{**row, **row["config"]}.get(key) for row in rows if fits(row)]
        values = [value for value in found if value is not None]
        return reduce(values) if values else None

    return figure


def over_peer(route: str, peer: str) -> Figure:
    """How many times a route's speed is that of a peer, the median over what both were run on."""

    def figure(rows: Sequence[Row]) -> float | None:
        times: dict[str, dict[str, float]] = {}
        for row in rows:
            if "over_plain" in row["config"]:
                times.setdefault(row["shape"], {})[row["impl"]] = row["config"]["over_plain"]
        both = [t[peer] / t[route] for t in times.values() if peer in t and route in t]
        return statistics.median(both) if both else None

    return figure


def memory_bound(rows: Sequence[Row]) -> float | None:
    """Peak memory of captures over their bound: 1.15 plain peaks and three copies of parameters."""
    peaks: dict[str, dict[str, Row]] = {}
    for row in rows:
        if row["op"] == "memory":
            peaks.setdefault(row["shape"], {})[row["impl"]] = row
    shares = [
        found["capture"]["peak_mib"]
        / (1.15 * found["plain"]["peak_mib"] + 3 * found["plain"]["config"]["parameters_mib"])
        for found in peaks.values()
        if "capture" in found and "plain" in found
    ]
    return max(shares) if shares else None


_LARGE = {"shape": "10 M", "threads": 1}
_MEMORY_BOUND = ("plain", "snip", "synflow", "l2", "plain, snip, both norms")
_SIGEO = {"op": "statistics of sigeo", "impl": "kernels", "threads": 1}
_CELLS = ("NAS-Bench-201 middling, batch 32", "NAS-Bench-201 largest, batch 32")
# The aims are those of networks whose ordinary gradients are dense.
_NETWORKS = tuple(workload.name for workload in WORKLOADS if "sparse" not in workload.name)
_ALL, _NORMS, _PRODUCTS = "capture", "capture, norms", "capture, Fisher-Rao, no .grad"
_SCORING = ("score_many zico", "score_many sigeo")

HEADLINES = (
    Headline("moments", "bandwidth of `update_`, of an in-place stream's",
             of_rows("share", op="moments_update_", impl="kernel", **_LARGE),
             least=0.9, form="{:.0%}"),
    Headline("saliency", "bandwidth of the sums bound by memory, of a read's, the least",
             of_rows("share", min, impl="kernel", **_LARGE,
                     op=tuple(f"saliency {name}" for name in _MEMORY_BOUND)),
             least=0.9, form="{:.0%}"),
    Headline("saliency", "the same of LogSynFlow's, bound by its logarithm",
             of_rows("share", impl="kernel", op="saliency logsynflow", **_LARGE), form="{:.0%}"),
    Headline("statistics", "SiGeo's statistics over its passes, NAS-Bench-201",
             of_rows("over_passes", shape="NAS-Bench-201 batch 64", **_SIGEO),
             most=0.02, form="{:.4f}"),
    Headline("statistics", "the same, ResNet-50 at 224 px",
             of_rows("over_passes", shape="ResNet-50 224 px batch 16", **_SIGEO),
             most=0.02, form="{:.4f}"),
    Headline("statistics", "the same, ResNet-50 at 32 px",
             of_rows("over_passes", shape="ResNet-50 32 px batch 16", **_SIGEO),
             most=0.12, form="{:.3f}"),
    Headline("memory", "of SiGeo's statistics, in copies of the parameters",
             of_rows("extra_in_copies_of_parameters", impl="sigeo"), most=3),
    Headline("memory", "of ZiCo's statistics, likewise",
             of_rows("extra_in_copies_of_parameters", impl="zico"), most=3),
    Headline("samples", "a pass with all statistics over a plain one, median of networks",
             of_rows("over_plain", impl=_ALL, shape=_NETWORKS), most=1.1),
    Headline("samples", "the same, the worst round of any network",
             of_rows("over_plain_worst", max, impl=_ALL, shape=_NETWORKS), most=1.25),
    Headline("samples", "norms alone, median of networks",
             of_rows("over_plain", impl=_NORMS, shape=_NETWORKS), most=1.05),
    Headline("samples", "Fisher-Rao products without `.grad`, median of networks",
             of_rows("over_plain", impl=_PRODUCTS, shape=_NETWORKS), most=0.9),
    Headline("samples", "peak memory over its bound, the largest", memory_bound, most=1),
    Headline("samples", "speed over `torch.func`'s vmap of grad, median",
             over_peer(_ALL, "vmap"), form="{:.1f}"),
    Headline("samples", "speed over Opacus' hooks, median",
             over_peer(_ALL, "Opacus hooks"), form="{:.1f}"),
    Headline("sample_moments", "the kernel over the layer's weight gradient, median of layers",
             of_rows("over_gradient", op="sample_moments_convolution", impl="kernel")),
    Headline("gram", "the tangent kernel over a plain pass, NAS-Bench-201, the larger",
             of_rows("over_plain", max, op="ntk", impl="ntk", shape=_CELLS), most=1.15),
    Headline("gram", "its speed over vmap of grad, NAS-Bench-201, the smaller",
             of_rows("speedup", min, op="ntk", impl="ntk", shape=_CELLS), least=1.4, form="{:.1f}"),
    Headline("gram", "the same, click-through model",
             of_rows("speedup", op="ntk", impl="ntk", shape="CTR 10,000 rows, batch 32"),
             least=5, form="{:.1f}"),
    Headline("pipeline", "networks a second over the plain route",
             of_rows("gain_in_candidates_per_s", impl="pipeline"), least=2),
    Headline("many", "16 subnets in one pass over one by one, median of workloads",
             of_rows("over_one_by_one", impl="together", op=_SCORING), most=1.02),
    Headline("elastic", "linear layers over plain torch's better route, median speed-up",
             of_rows("speedup", op="gather_slice_linear", impl="sigeo_ext")),
    Headline("elastic", "convolutions, likewise",
             of_rows("speedup", op="gather_slice_convolution", impl="sigeo_ext")),
    Headline("elastic", "embeddings, likewise",
             of_rows("speedup", op="gather_slice_embedding", impl="sigeo_ext")),
    Headline("grouped", "layers of many subnets over a loop of slices, median speed-up",
             of_rows("speedup", op="grouped linear, forward+backward", impl="sigeo_ext",
                     threads=1)),
    Headline("grouped", "statistics over subnets over plain torch, likewise",
             of_rows("speedup", op="grouped subnet_moments", impl="sigeo_ext", threads=1)),
    Headline("start", "`import sigeo_ext` after `import torch`, seconds",
             of_rows("p50_s", impl="sigeo_ext after torch"), most=0.15, form="{:.3f}"),
    Headline("start", "a build from scratch, seconds",
             of_rows("p50_s", op="build"), most=120, form="{:.0f}"),
)  # fmt: skip


def page(
    rows_of: Callable[[str], Mapping[str, Sequence[Row]]],
    table: Callable[[Sequence[str], Sequence[Sequence[str]]], str],
) -> str:
    """The table: a line a figure, a column a machine.

    Args:
        rows_of: A benchmark's rows by machine.
        table: (headings, rows) to Markdown.
    """
    found = {
        bench: {
            machine: [{**row, "p50_s": row["p50_us"] / 1e6} for row in rows]
            for machine, rows in rows_of(bench).items()
        }
        for bench in dict.fromkeys(headline.bench for headline in HEADLINES)
    }
    machines = sorted({machine for of_bench in found.values() for machine in of_bench})
    lines = [
        [
            headline.bench,
            headline.what,
            headline.aim(),
            *(headline.cell(found[headline.bench].get(machine, [])) for machine in machines),
        ]
        for headline in HEADLINES
    ]
    return table(["benchmark", "what", "aim", *(f"`{m}`" for m in machines)], lines)
