"""One-shot and few-shot systems on equal budgets, judged by NAS-Bench-201's published accuracies.

    python -m bench.study_systems

Reduced networks on CIFAR-10 images of half the size, 192,000 processed images a system and seed,
three seeds: some two hours on two cores. Trainings are kept in runs/systems, so the same command
goes on after a kill. Results go to bench/results/systems.json. Needs the data folder beside the
checkout (SIGEO_SHARED) with data/cifar10_jpeg.npz and data/nasbench201.csv.gz.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from bench.harness import NOT_MEASURED, RESULTS, SHARED, read_study, write_study
from sigeo.cli import main as sigeo

RUN = RESULTS.parent.parent / "runs" / "systems"
SYSTEMS = (
    "one-shot",
    "one-shot:width=0.375",
    "fair",
    "balanced",
    "efs-nas",
    "few-shot",
    "random-split",
    "gm-nas:repeats=4,batch=32",
    "nas-lid:repeats=2,batch=64",
    "metric-driven",
    'metric-driven:metric="synflow"',
    'metric-driven:metric="sigeo"',
    "hep-nas:repeats=4,batch=32,judged=4",
    "greedy:images=64",
    "pi-nas",
)
SETTINGS = (
    "--space nasbench201 --channels 8 --cells 1 --image-size 16 --metric cifar10.test --archs 120 "
    "--budget 192000 --held-out 500 --batch-size 32 --lr 0.2 --seeds 3 --threads 1 "
    "--proxy sigeo,zico"
)


def run() -> int:
    """Compare, and keep what came of it."""
    files = ["--data", str(SHARED / "data" / "cifar10_jpeg.npz")]
    files += ["--table", str(SHARED / "data" / "nasbench201.csv.gz"), "--out", str(RUN)]
    code: int = sigeo(["compare", *SETTINGS.split(), *files, "--recipes", *SYSTEMS])
    if code == 0:
        found = json.loads((RUN / "comparison.json").read_text())
        del found["table"]  # a path of this machine
        write_study("systems", "study_systems", {"settings": SETTINGS, **found})
    return code


def page(table: Any) -> str:
    """The tables of the documentation.

    Args:
        table: (headings, rows) to Markdown.
    """
    content = read_study("systems")
    if content is None:
        return NOT_MEASURED
    systems = content["systems"]
    kinds = list(dict.fromkeys(system["by"] for system in systems))
    by_label: dict[str, dict[str, Any]] = {}
    for system in systems:
        by_label.setdefault(system["system"], {})[system["by"]] = system
    heads = ["system", "Kendall [95 %]", "less one-shot", "between seeds"]
    top = systems[0]["quality"][0]["top"]
    heads += [f"Kendall, best {top}", "percentile", "regret", "MiB", "seconds"]
    main = [[f"`{label}`", *_row(found["accuracy"])] for label, found in by_label.items()]
    others = [
        [f"`{label}`", *(_estimate(found[kind]["kendall"]) for kind in kinds)]
        for label, found in by_label.items()
    ]
    sizes = [
        [f"`{label}`", ", ".join(map(str, found["accuracy"]["sizes"][0]))]
        for label, found in by_label.items()
        if len(found["accuracy"]["sizes"][0]) > 1
    ]
    return "\n".join(
        [
            f"`{content['command']}` (`{content['settings']}`), torch {content['env']['torch']}, "
            f"commit {content['sha']}; {content['architectures']} architectures, seeds "
            f"{', '.join(map(str, content['seeds']))}; Kendall's tau between the table's own runs: "
            f"{_number(content['ceiling'], 3)}.\n",
            "Ranked by accuracy on the images held out:\n",
            table(heads, main),
            "Kendall's tau on the same trained weights, by what ranks the subnets:\n",
            table(["system", *kinds], others),
            "How the space was divided with the first seed:\n",
            table(["system", "architectures of each supernet"], sizes),
        ]
    )


def _row(system: dict[str, Any]) -> list[str]:
    quality = system["quality"]

    def mean(values: list[float | None], digits: int) -> str:
        finite = [value for value in values if value is not None]
        return _number(sum(finite) / len(finite) if len(finite) == len(values) else None, digits)

    spread = system["spread"]
    return [
        _estimate(system["kendall"]),
        "" if system["gain"] is None else _estimate(system["gain"]),
        "" if spread is None else f"{spread:.3f}",
        mean([q["top_kendall"] for q in quality], 3),
        mean([q["pick"]["percentile"] for q in quality], 1),
        mean([q["pick"]["regret"] for q in quality], 2),
        f"{system['weights'] / 2**20:.2f}",
        f"{system['seconds']:.0f}",
    ]


def _number(value: float | None, digits: int) -> str:
    return "undefined" if value is None else f"{value:.{digits}f}"


def _estimate(found: dict[str, Any]) -> str:
    if found["value"] is None:
        return "undefined"
    return f"{found['value']:.3f} [{found['low']:.3f}, {found['high']:.3f}]"


if __name__ == "__main__":
    sys.exit(run())
