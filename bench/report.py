"""Puts the results into the pages that show them: ``python -m bench.report``.

A page holds ``<!-- numbers: NAME -->`` and ``<!-- end of numbers -->``; what stands between them is
written here from bench/results. ``--check`` writes nothing and fails if a page is out of date.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from bench import headlines, study_gradual, study_norms, study_systems
from bench.harness import NOT_MEASURED, RESULTS, read_study

ROOT = RESULTS.parent.parent
PAGES = (
    "README.md",
    "docs/benchmarks.md",
    "docs/compare.md",
    "docs/elastic.md",
    "docs/grouped.md",
    "docs/ranking.md",
    "docs/sample_moments.md",
    "docs/training.md",
)
_PART = re.compile(r"(<!-- numbers: ([\w-]+) -->\n).*?(<!-- end of numbers -->)", re.DOTALL)

Row = dict[str, Any]


def rows_of(bench: str) -> dict[str, list[Row]]:
    """The rows of one benchmark by machine."""
    found: dict[str, list[Row]] = {}
    for path in sorted(RESULTS.glob("*.jsonl")):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        if chosen := [row for row in rows if row["bench"] == bench]:
            found[path.stem] = chosen
    return found


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown; all columns aligned to the left."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def benchmark(bench: str) -> str:
    """All rows of one benchmark, a table a machine."""
    parts = []
    for machine, rows in rows_of(bench).items():
        shas = sorted({row["sha"] for row in rows})
        parts.append(f"On `{machine}`, torch {rows[0]['torch']}, commit {', '.join(shas)}:\n")
        heads = ["what", "route", "shape", "threads", "median [p20, p80] ms"]
        heads += ["GB/s", "of stream", "speed-up", "more"]
        parts.append(table(heads, map(_cells, rows)))
    return "\n".join(parts) if parts else NOT_MEASURED


def _cells(row: Row) -> list[str]:
    low, median, high = (row[f"p{q}_us"] / 1e3 for q in (20, 50, 80))
    time = f"{median:.4g} [{low:.4g}, {high:.4g}]" if median else ""
    speedup = "" if row["speedup"] is None else f"{row['speedup']:.2f} x {row['baseline']}"
    more = ", ".join(f"{_words(k)} {_short(v)}" for k, v in row["config"].items())
    if row["peak_mib"] is not None:
        more = f"peak {row['peak_mib']:.0f} MiB, {more}"
    return [
        row["op"],
        row["impl"],
        row["shape"],
        str(row["threads"]),
        time,
        "" if row["gb_per_s"] is None else f"{row['gb_per_s']:.1f}",
        "" if row["share"] is None else f"{100 * row['share']:.0f} %",
        speedup,
        more,
    ]


def _words(name: str) -> str:
    return name.replace("_", " ")


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _find(bench: str, **wanted: object) -> Row | None:
    """The first row of the first machine that fits; None if there is none."""
    for rows in rows_of(bench).values():
        for row in rows:
            if all(row[k] == v for k, v in wanted.items()):
                return row
    return None


def summary() -> str:
    """The figures of the README."""
    lines: list[list[str]] = []

    def add(what: str, row: Row | None, figure: Callable[[Row], str]) -> None:
        if row is not None:
            lines.append([what, figure(row)])

    for threads in (1, 2):
        add(
            f"add a gradient of 10 M coordinates to the statistics, {threads} thread(s)",
            _find("moments", op="moments_update_", impl="kernel", shape="10 M", threads=threads),
            lambda r: (
                f"{r['gb_per_s']:.0f} GB/s, {100 * r['share']:.0f} % of an in-place stream, "
                f"{r['speedup']:.1f} times three torch statements"
            ),
        )
    for shape in (
        "NAS-Bench-201 batch 64",
        "ResNet-50 224 px batch 16",
        "ResNet-50 32 px batch 16",
    ):
        ours = _find("statistics", op="statistics of sigeo", impl="kernels", shape=shape, threads=1)
        theirs = _find(
            "statistics", op="statistics of sigeo", impl="published", shape=shape, threads=1
        )
        if ours and theirs:
            a, b = (row["config"]["over_passes"] for row in (ours, theirs))
            lines.append(
                [
                    f"time in SiGeo's statistics over that of its passes, {shape}",
                    f"{a:.4f} (published route {b:.3f})",
                ]
            )
    add(
        "SiGeo scores a second on random NAS-Bench-201 networks, over the plain route",
        _find("pipeline", impl="pipeline"),
        lambda r: (
            f"{r['config']['gain_in_candidates_per_s']:.2f} times, Spearman "
            f"{r['config']['spearman_with_plain']:.4f} between the two; equal networks give "
            f"{r['config']['further_gain_from_equal_functions']:.2f} more"
        ),
    )
    add(
        "`import sigeo_ext` after `import torch`",
        _find("start", impl="sigeo_ext after torch"),
        lambda r: f"{r['p50_us'] / 1e3:.0f} ms",
    )
    return table(["what", "figure (CPU, medians)"], lines) if lines else NOT_MEASURED


def ranking(command: str) -> str:
    """One part of the ranking study."""
    content = read_study(f"ranking-{command}")
    if content is None:
        return NOT_MEASURED
    facts = (
        f"`{content['command']}`: {content['architectures']} random public architectures, "
        f"`{content['metric']}`, torch {content['torch']}, commit {content['sha']}.\n"
    )
    return f"{facts}\n{_RANKING[command](content)}"


def _interval(values: Sequence[float]) -> str:
    return "{:.3f} [{:.3f}, {:.3f}]".format(*values)


def _levels(content: Row) -> str:
    """A row a proxy, a column a warm-up."""
    levels = content["levels"]
    heads = ["Spearman [95 %]"]
    heads += [f"{name} ({level['steps']} steps)" for name, level in levels.items()]
    proxies = next(iter(levels.values()))["proxies"]
    rho = [
        [name, *(_interval(level["proxies"][name]["spearman"]) for level in levels.values())]
        for name in proxies
    ]
    tau = [
        [name, *(_interval(level["proxies"][name]["kendall"]) for level in levels.values())]
        for name in proxies
    ]
    parts = [table(heads, rho), table(["Kendall [95 %]", *heads[1:]], tau)]
    if "spearman_minus_that_of_params" in next(iter(levels.values())):
        names = next(iter(levels.values()))["spearman_minus_that_of_params"]
        over = [
            [
                f"{name} - params",
                *(
                    _interval(level["spearman_minus_that_of_params"][name])
                    for level in levels.values()
                ),
            ]
            for name in names
        ]
        parts.append(table(["paired difference of Spearman", *heads[1:]], over))
    return "\n".join(parts)


def _setting(entry: Row) -> list[str]:
    return [str(entry[k]) for k in ("channels", "steps", "lr", "inner_lr")]


def _search(content: Row) -> str:
    heads = ["C", "steps", "lr", "steps between batches, lr"]
    best = [
        [*_setting(e), ", ".join(map(str, e["lambdas"])), f"{e['spearman']:.3f}"]
        for e in content["best_of_each"]
    ]
    alone = [
        [*_setting(e), *(f"{e[term]:.3f}" for term in ("zico", "fr", "loss"))]
        for e in content["terms_alone"]
    ]
    return "\n".join(
        [
            f"{content['tried']} settings; params alone gives {content['params']:.3f}. The best "
            "lambdas of each supernet:\n",
            table([*heads, "lambdas", "Spearman"], best),
            "Spearman of each term alone, by setting:\n",
            table([*heads, "ZiCo term", "FR term", "-loss"], alone),
        ]
    )


def _confirm(content: Row) -> str:
    setting = ", ".join(
        f"{k} {v}" for k, v in content["setting"].items() if k not in ("spearman", "hidden")
    )
    proxies = [
        [name, _interval(entry["spearman"]), _interval(entry["kendall"])]
        for name, entry in content["proxies"].items()
    ]
    over = [
        [name, _interval(values)]
        for name, values in content["paired_differences_of_spearman"].items()
    ]
    return "\n".join(
        [
            f"The setting chosen by the search: {setting}.\n",
            table(["proxy", "Spearman [95 %]", "Kendall [95 %]"], proxies),
            table(["paired difference of Spearman", "[95 %]"], over),
        ]
    )


_RANKING: dict[str, Callable[[Row], str]] = {
    "full": _levels,
    "candidate": _levels,
    "search": _search,
    "confirm": _confirm,
}


def accuracy() -> str:
    """The study of accuracy: a row a case, a column a statistic, kernels beside plain torch."""
    content = read_study("accuracy")
    if content is None:
        return NOT_MEASURED

    def cell(entry: Row, statistic: str) -> str:
        if statistic not in entry["kernels"]:
            return ""
        errors = [entry[route][statistic] for route in ("kernels", "torch")]
        if statistic == "m2":
            errors.append(entry["naive m2"])
        return " / ".join("0" if e == 0 else f"{e:.0e}" for e in errors)

    names = list(content["entries"][0]["kernels"])
    rows = [
        [entry["layer"], entry["case"], *(cell(entry, s) for s in names)]
        for entry in content["entries"]
    ]
    facts = (
        f"`{content['command']}` on `{content['machine']}`, torch {content['torch']}, "
        f"commit {content['sha']}:\n"
    )
    return f"{facts}\n{table(['layer', 'case', *names], rows)}"


def elastic() -> str:
    """Speed-ups of slices over the better plain route, medians over the cases with the extremes."""
    parts = []
    for machine, rows in rows_of("elastic").items():
        found: dict[tuple[str, ...], list[float]] = {}
        memory: list[list[str]] = []
        for row in rows:
            if row["mode"] == "memory":
                memory.append([row["impl"], row["config"]["selection"], f"{row['peak_mib']:.0f}"])
            elif row["impl"].startswith("sigeo_ext"):
                layer = row["op"].removeprefix("gather_slice_")
                kind = "list" if row["config"]["selection"] == "list" else "prefix, chunk"
                key = (layer, kind, row["mode"], row["impl"].removeprefix("sigeo_ext, "))
                found.setdefault(key, []).append(row["speedup"])
        parts.append(f"On `{machine}`, torch {rows[0]['torch']}, commit {rows[0]['sha']}:\n")
        lines = [
            [*key, str(len(v)), f"{statistics.median(v):.2f} [{min(v):.2f}, {max(v):.2f}]"]
            for key, v in sorted(found.items())
        ]
        heads = ["layer", "selection", "mode", "route", "cases", "speed-up: median [least, most]"]
        parts.append(table(heads, lines))
        if memory:
            parts.append("Memory that a pass adds at its peak, linear, 256 MiB of super-weights:\n")
            parts.append(table(["route", "selection", "MiB"], memory))
    return "\n".join(parts) if parts else NOT_MEASURED


def grouped() -> str:
    """Speed-ups of grouped products, a row a case, a column a pass and number of threads."""
    parts = []
    for machine, rows in rows_of("grouped").items():
        kinds = {(row["op"], row["threads"]) for row in rows}
        columns = sorted(kinds, key=lambda kind: (kind[1], kind[0]))
        cases: dict[str, dict[tuple[str, int], str]] = {}
        for row in rows:
            if row["impl"] != "sigeo_ext":
                continue
            text = f"{row['speedup']:.2f}"
            if "over_slices" in row["config"]:
                text += f" ({row['config']['over_slices']:.2f})"
            cases.setdefault(row["shape"], {})[row["op"], row["threads"]] = text
        heads = ["super-weight, subnets, rows of one"]
        heads += [f"{op.removeprefix('grouped ')}, {threads} thread(s)" for op, threads in columns]
        lines = [[case, *(found[kind] for kind in columns)] for case, found in cases.items()]
        parts.append(
            f"On `{machine}`, torch {rows[0]['torch']}, commit {rows[0]['sha']}; over plain "
        )
        parts[-1] += "torch in a loop, and in brackets over `slices.linear` in a loop:\n"
        parts.append(table(heads, lines))
    return "\n".join(parts) if parts else NOT_MEASURED


_PARTS: dict[str, Callable[[], str]] = {
    "summary": summary,
    "headlines": lambda: headlines.page(rows_of, table),
    "accuracy": accuracy,
    "elastic-summary": elastic,
    "grouped-summary": grouped,
    "systems": lambda: study_systems.page(table),
    "norms": lambda: study_norms.page(table),
    "gradual": lambda: study_gradual.page(table),
}


def part(name: str) -> str:
    """What stands in the part of a name."""
    if name in _PARTS:
        return _PARTS[name]()
    kind, _, rest = name.partition("-")
    return ranking(rest) if kind == "ranking" else benchmark(name)


def main() -> int:
    """Write or check the pages."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--check", action="store_true", help="fail if a page is out of date")
    check = parser.parse_args().check
    old = []
    for page in PAGES:
        path: Path = ROOT / page
        text = path.read_text()
        new = _PART.sub(lambda m: f"{m[1]}\n{part(m[2])}\n{m[3]}", text)
        if new != text:
            old.append(page)
            if not check:
                path.write_text(new)
    if old:
        print(("out of date: " if check else "written: ") + ", ".join(old))
    return 1 if check and old else 0


if __name__ == "__main__":
    sys.exit(main())
