"""How SiGeo and ZiCo rank NAS-Bench-201, cold and warm.

    python -m bench.study_ranking full        full-size networks: cold, and on a warmed supernet
    python -m bench.study_ranking candidate   reduced networks, each warmed up alone
    python -m bench.study_ranking search      reduced supernets: choose a setting on 100 cells
    python -m bench.study_ranking confirm     and confirm it on 200 others

Each command can be stopped and run again: scores are kept in runs/study. Results go to
bench/results/ranking-<command>.json. Needs the data folder beside the checkout (SIGEO_SHARED) with
nasbench201.csv.gz, cifar10_raw_subset.npz and, for warm supernets, cifar10_jpeg.npz.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import random
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bench.harness import RESULTS, commit, machine
from sigeo import data, proxies, spaces
from sigeo.data import ImageData
from sigeo.scoring.networks import Networks, Protocol
from sigeo.scoring.rank import Row, rank
from sigeo.store import RunStore
from sigeo.supernet import WarmUp
from sigeo.tables import Estimate, Table, correlate, read_table, spearman, spearman_difference

SHARED = Path(os.environ.get("SIGEO_SHARED", Path(__file__).resolve().parents[2] / "shared"))
FOLDER = Path("runs") / "study"
METRIC = "cifar10.test"
FULL = {"channels": 16, "cells": 5}
REDUCED = {"channels": 8, "cells": 1}

Values = NDArray[np.float64]


def table() -> Table:
    """The public part of NAS-Bench-201."""
    return read_table(SHARED / "data" / "nasbench201.csv.gz")


def draw(seed: int, count: int, without: Sequence[str] = ()) -> list[str]:
    """Random public architectures."""
    taken = set(without)
    archs = [arch for arch in table().archs if arch not in taken]
    return random.Random(seed).sample(archs, count)


def pixels() -> ImageData:
    """Exact CIFAR-10 pixels."""
    return data.load(SHARED / "data" / "cifar10_raw_subset.npz")


def space_of(sizes: Mapping[str, int]) -> Any:
    """The space in networks of a size."""
    return spaces.get("nasbench201", spaces.InputShape(3, 32, 10), **sizes)


def scored(networks: Networks, archs: Sequence[str], what: str) -> dict[str, Row]:
    """Rank, with the scores kept, and say how far it is."""

    def progress(done: int, total: int) -> None:
        if done % 20 == 0 or done == total:
            print(f"{what}: {done} of {total}", file=sys.stderr, flush=True)

    FOLDER.mkdir(parents=True, exist_ok=True)
    cells = [networks.space.parse(arch) for arch in archs]
    with RunStore(FOLDER / "scores.sqlite", networks.settings()) as store:
        return {row.arch: row for row in rank(networks, cells, store, progress=progress)}


def columns(rows: Mapping[str, Row], archs: Sequence[str]) -> dict[str, Values]:
    """Scores and terms, with the combinations of SiGeo's published weights; NaN if not finite."""

    def column(get: Any) -> Values:
        values = [get(rows[arch]) for arch in archs]
        return np.array([math.nan if v is None else v for v in values], dtype=np.float64)

    found = {
        name: column(lambda row, name=name: row.scores[name])
        for name in next(iter(rows.values())).scores
        if name != "sigeo"
    }
    if "sigeo" in next(iter(rows.values())).scores:
        terms = {
            term: column(lambda row, term=term: row.terms["sigeo"][term])
            for term in ("zico", "fr", "loss")
        }
        found["ZiCo term with steps"] = terms["zico"]
        found["FR term"] = terms["fr"]
        found["-loss"] = -terms["loss"]
        for lambdas in ((1, 1, 0), (1, 1, 1), (1, 50, 1)):
            a, b, c = lambdas
            name = f"SiGeo({a},{b},{c})"
            found[name] = a * terms["zico"] + b * terms["fr"] - c * terms["loss"]
    return found


def estimate(value: Estimate) -> list[float]:
    """Value, low, high, rounded."""
    return [round(v, 4) for v in (value.value, value.low, value.high)]


def correlations(found: Mapping[str, Values], truth: Values) -> dict[str, Any]:
    """Spearman and Kendall with intervals of every column."""
    result = {}
    for name, scores in found.items():
        c = correlate(scores, truth)
        result[name] = {
            "spearman": estimate(c.spearman),
            "kendall": estimate(c.kendall),
            "not_finite": c.not_finite,
        }
    return result


def save(command: str, content: dict[str, Any]) -> None:
    """Write one result file."""
    path = RESULTS / f"ranking-{command}.json"
    head = {
        "command": f"python -m bench.study_ranking {command}",
        "sha": commit(),
        "torch": torch.__version__,
        "machine": machine(),
        "threads": torch.get_num_threads(),
        "metric": METRIC,
    }
    path.write_text(json.dumps(head | content, indent=1) + "\n")
    print(path)


def chosen(*names: str, **sigeo_options: Any) -> tuple[Any, ...]:
    """Proxies by name; SiGeo with options."""
    return tuple(proxies.get(n, **sigeo_options) if n == "sigeo" else proxies.get(n) for n in names)


def full() -> None:
    """200 architectures at full size: cold, then on a supernet warmed on 1, 5, 10 %."""
    archs = draw(0, 200)
    truth = np.array([table().lookup(METRIC)[arch] for arch in archs])
    wanted = chosen("sigeo", "zico", "params", "flops")
    space, exact = space_of(FULL), pixels()
    levels: dict[str, Any] = {}
    cold = Networks(space, exact, Protocol(wanted))
    found = columns(scored(cold, archs, "cold"), archs)
    levels["0 %"] = {"steps": 0, "images": 0, "proxies": correlations(found, truth)}
    save("full", {"architectures": 200, "networks": FULL, "levels": levels})
    streams = data.load(SHARED / "data" / "cifar10_jpeg.npz")
    for percent in (1, 5, 10):
        warmup = WarmUp(round(len(streams.train) * percent / 100))
        FOLDER.mkdir(parents=True, exist_ok=True)
        warmed = Networks(space, streams, Protocol(wanted, "supernet", warmup), folder=FOLDER)
        path = warmed.checkpoint_path(FOLDER)
        # Warmed on JPEG images, scored on the same exact pixels as the cold networks.
        on_pixels = Networks(space, exact, Protocol(wanted, "supernet", checkpoint=path))
        found = columns(scored(on_pixels, archs, f"{percent} %"), archs)
        levels[f"{percent} %"] = {
            "steps": warmup.steps,
            "images": warmup.images,
            "proxies": correlations(found, truth),
        }
        save("full", {"architectures": 200, "networks": FULL, "levels": levels})


def candidate() -> None:
    """200 architectures in reduced networks, each warmed up alone as published."""
    archs = draw(0, 200)
    truth = np.array([table().lookup(METRIC)[arch] for arch in archs])
    space, exact = space_of(REDUCED), pixels()
    levels: dict[str, Any] = {}
    for epochs in (0, 1, 3, 10):
        protocol = (
            Protocol(chosen("sigeo", "zico", "params", "flops"))
            if epochs == 0
            else Protocol(
                chosen("sigeo", "zico", "params", "flops"),
                "candidate",
                WarmUp.published(6000, epochs),
            )
        )
        networks = Networks(space, exact, protocol)
        found = columns(scored(networks, archs, f"{epochs} epochs"), archs)
        still = Networks(
            space, exact, Protocol(chosen("sigeo", inner_lr=0), protocol.init, protocol.warmup)
        )
        rows = scored(still, archs, f"{epochs} epochs, no steps")
        terms = {
            t: np.array([_number(rows[a].terms["sigeo"][t]) for a in archs]) for t in ("fr", "loss")
        }
        found["FR term without steps"] = terms["fr"]
        found["-loss without steps"] = -terms["loss"]
        best = {
            name: estimate(spearman_difference(found[name], found["params"], truth))
            for name in ("SiGeo(1,50,1)", "SiGeo(1,1,1)", "zico")
        }
        levels[f"{epochs} epochs"] = {
            "steps": 0 if protocol.warmup is None else protocol.warmup.steps,
            "images": 0 if protocol.warmup is None else protocol.warmup.images,
            "proxies": correlations(found, truth),
            "spearman_minus_that_of_params": best,
        }
        save("candidate", {"architectures": 200, "networks": REDUCED, "levels": levels})


def _number(value: float | None) -> float:
    return math.nan if value is None else value


# The search: every combination is one warmed supernet, scored with and without inner steps.
GRID = {
    "channels": (4, 8, 16),
    "steps": (78, 312, 782, 3128),
    "lr": (0.025, 0.1, 0.4),
    "inner_lr": (0.0, 0.1, 1.0),
}
LAMBDAS = {
    "fr": (0.0, 0.1, 0.3, 1.0, 3.0, 10.0, 50.0),
    "loss": (0.0, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0),
}


def setting_columns(
    setting: Mapping[str, Any], archs: Sequence[str], what: str
) -> dict[str, Values]:
    """Terms of a supernet setting, and the baselines."""
    space = space_of({"channels": setting["channels"], "cells": 1})
    streams = data_once("cifar10_jpeg.npz")
    images = 64 * setting["steps"]
    epochs = max(1, math.ceil(images / len(streams.train)))
    warmup = WarmUp(min(len(streams.train), images // epochs), epochs, lr=setting["lr"])
    FOLDER.mkdir(parents=True, exist_ok=True)
    trained = Networks(
        space, streams, Protocol(chosen("params"), "supernet", warmup, batches=1), folder=FOLDER
    )
    path = trained.checkpoint_path(FOLDER)
    wanted = chosen("sigeo", "params", "flops", inner_lr=setting["inner_lr"])
    protocol = Protocol(wanted, "supernet", checkpoint=path)
    rows = scored(Networks(space, data_once("cifar10_raw_subset.npz"), protocol), archs, what)
    names = ("zico", "fr", "loss")
    terms = {t: np.array([_number(rows[a].terms["sigeo"][t]) for a in archs]) for t in names}
    return terms | {
        n: np.array([_number(rows[a].scores[n]) for a in archs]) for n in ("params", "flops")
    }


_DATA: dict[str, ImageData] = {}


def data_once(name: str) -> ImageData:
    """A data set, loaded once."""
    if name not in _DATA:
        _DATA[name] = data.load(SHARED / "data" / name)
    return _DATA[name]


def combined(terms: Mapping[str, Values], fr: float, loss: float) -> Values:
    """SiGeo with lambda1 = 1."""
    return terms["zico"] + fr * terms["fr"] - loss * terms["loss"]


def cold_zico(archs: Sequence[str]) -> Values:
    """ZiCo of the cold full-size networks: the rival that needs no training."""
    networks = Networks(
        space_of(FULL), data_once("cifar10_raw_subset.npz"), Protocol(chosen("zico"))
    )
    rows = scored(networks, archs, "cold ZiCo")
    return np.array([_number(rows[a].scores["zico"]) for a in archs])


def search() -> None:
    """Choose the supernet setting on 100 architectures."""
    archs = draw(1, 100)
    truth = np.array([table().lookup(METRIC)[arch] for arch in archs])
    results = []
    for values in itertools.product(*GRID.values()):
        setting = dict(zip(GRID, values, strict=True))
        terms = setting_columns(setting, archs, str(setting))
        for fr, loss in itertools.product(*LAMBDAS.values()):
            rho = spearman(np.nan_to_num(combined(terms, fr, loss), nan=-np.inf), truth)
            results.append({**setting, "lambdas": [1.0, fr, loss], "spearman": round(rho, 4)})
        singles = {
            t: round(spearman(np.nan_to_num(s * terms[t], nan=-np.inf), truth), 4)
            for t, s in (("zico", 1), ("fr", 1), ("loss", -1))
        }
        print(
            json.dumps({**setting, **singles, "best": max(r["spearman"] for r in results[-49:])}),
            flush=True,
        )
        results.sort(key=lambda r: -r["spearman"])
        save(
            "search",
            {
                "architectures": 100,
                "tried": len(results),
                "params": round(spearman(terms["params"], truth), 4),
                "best": results[:20],
            },
        )


def confirm() -> None:
    """The chosen setting on 200 other architectures, against ZiCo and params, paired."""
    first = draw(1, 100)
    archs = draw(2, 200, without=first)
    truth = np.array([table().lookup(METRIC)[arch] for arch in archs])
    best = json.loads((RESULTS / "ranking-search.json").read_text())["best"][0]
    terms = setting_columns(best, archs, "confirm")
    found = {
        "SiGeo, chosen": combined(terms, *best["lambdas"][1:]),
        "ZiCo term of the same supernet": terms["zico"],
        "cold ZiCo, full size": cold_zico(archs),
        "params": terms["params"],
        "flops": terms["flops"],
    }
    differences = {
        f"SiGeo, chosen - {name}": estimate(
            spearman_difference(found["SiGeo, chosen"], scores, truth)
        )
        for name, scores in found.items()
        if name != "SiGeo, chosen"
    }
    save(
        "confirm",
        {
            "architectures": 200,
            "setting": best,
            "proxies": correlations(found, truth),
            "paired_differences_of_spearman": differences,
        },
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("command", choices=("full", "candidate", "search", "confirm"))
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    {"full": full, "candidate": candidate, "search": search, "confirm": confirm}[given.command]()
