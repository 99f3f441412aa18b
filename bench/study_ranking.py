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
import functools
import itertools
import json
import math
import random
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bench.harness import RESULTS, SHARED, write_study
from sigeo import data, proxies, spaces
from sigeo.data import ImageData
from sigeo.proxies import Proxy
from sigeo.scoring.networks import Networks, Protocol
from sigeo.scoring.rank import Row, rank
from sigeo.store import RunStore
from sigeo.supernet import WarmUp
from sigeo.tables import Estimate, Table, correlate, read_table, spearman, spearman_difference

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


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def terms_of(rows: Mapping[str, Row], archs: Sequence[str], proxy: str) -> dict[str, Values]:
    """SiGeo's three terms, as ``proxy`` measured them; NaN if not finite."""
    return {
        term: np.array([_number(rows[arch].terms[proxy][term]) for arch in archs])
        for term in ("zico", "fr", "loss")
    }


def scores_of(rows: Mapping[str, Row], archs: Sequence[str], proxy: str) -> Values:
    """One proxy's scores; NaN if not finite."""
    return np.array([_number(rows[arch].scores[proxy]) for arch in archs])


def combined(terms: Mapping[str, Values], lambdas: Sequence[float]) -> Values:
    """SiGeo with other weights; a term of weight 0 is left out, whatever it is."""
    signed = (terms["zico"], terms["fr"], -terms["loss"])
    weighted = [w * values for w, values in zip(lambdas, signed, strict=True) if w]
    return np.sum(weighted, axis=0)


def columns(rows: Mapping[str, Row], archs: Sequence[str]) -> dict[str, Values]:
    """Baselines, terms with and without steps, and SiGeo with the published weights."""
    found = {name: scores_of(rows, archs, name) for name in ("zico", "params", "flops")}
    moved, still = terms_of(rows, archs, "sigeo"), terms_of(rows, archs, STILL.name)
    found["ZiCo term with steps"] = moved["zico"]
    for name, terms in (("with steps", moved), ("without steps", still)):
        found[f"FR term {name}"] = terms["fr"]
        found[f"-loss {name}"] = -terms["loss"]
    for lambdas in ((1, 1, 0), (1, 1, 1), (1, 50, 1)):
        found["SiGeo({},{},{})".format(*lambdas)] = combined(moved, lambdas)
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
    """Write one result file, named after the command without its options."""
    shared = {"threads": torch.get_num_threads(), "metric": METRIC}
    name = f"ranking-{command.partition(' ')[0]}"
    write_study(name, f"study_ranking {command}", {**shared, **content})


def chosen(*names: str) -> tuple[Proxy, ...]:
    """Proxies by name."""
    return tuple(proxies.get(name) for name in names)


# The same preset under its long name, without steps: one set of passes then gives both.
STILL = proxies.get("sigeo_cv_official", inner_lr=0)


def full() -> None:
    """200 architectures at full size: cold, then on a supernet warmed on 1, 5, 10 %."""
    archs = draw(0, 200)
    truth = np.array([table().lookup(METRIC)[arch] for arch in archs])
    wanted = (*chosen("sigeo"), STILL, *chosen("zico", "params", "flops"))
    space, exact = space_of(FULL), data_once("cifar10_raw_subset.npz")
    levels: dict[str, Any] = {}
    cold = Networks(space, exact, Protocol(wanted))
    found = columns(scored(cold, archs, "cold"), archs)
    levels["0 %"] = {"steps": 0, "images": 0, "proxies": correlations(found, truth)}
    save("full", {"architectures": 200, "networks": FULL, "levels": levels})
    streams = data_once("cifar10_jpeg.npz")
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


def candidate(count: int = 200) -> None:
    """The last ``count`` of 200 architectures in reduced networks, each warmed up as published."""
    archs = draw(0, 200)[-count:]
    truth = np.array([table().lookup(METRIC)[arch] for arch in archs])
    space, exact = space_of(REDUCED), data_once("cifar10_raw_subset.npz")
    wanted = (*chosen("sigeo"), STILL, *chosen("zico", "params", "flops"))
    levels: dict[str, Any] = {}
    for epochs in (0, 1, 3, 10):
        protocol = (
            Protocol(wanted)
            if epochs == 0
            else Protocol(wanted, "candidate", WarmUp.published(6000, epochs))
        )
        rows = scored(Networks(space, exact, protocol), archs, f"{epochs} epochs")
        found = columns(rows, archs)
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
        content = {"architectures": count, "networks": REDUCED, "levels": levels}
        save("candidate" if count == 200 else f"candidate --archs {count}", content)


# The search: every combination is one warmed supernet, scored with and without inner steps.
GRID = {
    "channels": (4, 8),
    "steps": (78, 312, 782, 3128),
    "lr": (0.025, 0.1, 0.4),
}
LAMBDAS = {
    "fr": (0.0, 0.1, 0.3, 1.0, 3.0, 10.0, 50.0),
    "loss": (0.0, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0),
}
STEPS = {1.0: "sigeo", 0.0: STILL.name}


def warmed(setting: Mapping[str, Any], archs: Sequence[str], what: str) -> dict[str, Row]:
    """Score architectures on the supernet of a setting."""
    space = space_of({"channels": setting["channels"], "cells": 1})
    streams, exact = data_once("cifar10_jpeg.npz"), data_once("cifar10_raw_subset.npz")
    images = 64 * setting["steps"]
    epochs = math.ceil(images / len(streams.train))
    warmup = WarmUp(min(len(streams.train), images // epochs), epochs, lr=setting["lr"])
    FOLDER.mkdir(parents=True, exist_ok=True)
    training = Protocol(chosen("params"), "supernet", warmup, batches=1)
    path = Networks(space, streams, training, folder=FOLDER).checkpoint_path(FOLDER)
    wanted = (*chosen("sigeo"), STILL, *chosen("params", "flops"))
    networks = Networks(space, exact, Protocol(wanted, "supernet", checkpoint=path))
    return scored(networks, archs, what)


@functools.cache
def data_once(name: str) -> ImageData:
    """A data set, loaded once."""
    return data.load(SHARED / "data" / name)


def cold_zico(archs: Sequence[str]) -> Values:
    """ZiCo of the cold full-size networks: the rival that needs no training."""
    exact = data_once("cifar10_raw_subset.npz")
    networks = Networks(space_of(FULL), exact, Protocol(chosen("zico")))
    return scores_of(scored(networks, archs, "cold ZiCo"), archs, "zico")


def rho(scores: Values, truth: Values) -> float:
    """Spearman; what is not finite ranks last."""
    return round(spearman(np.nan_to_num(scores, nan=-np.inf), truth), 4)


def search() -> None:
    """Choose the supernet setting on 100 architectures."""
    archs = draw(1, 100)
    truth = np.array([table().lookup(METRIC)[arch] for arch in archs])
    results: list[dict[str, Any]] = []
    singles: list[dict[str, Any]] = []
    for values in itertools.product(*GRID.values()):
        setting = dict(zip(GRID, values, strict=True))
        rows = warmed(setting, archs, str(setting))
        for inner_lr, name in STEPS.items():
            terms = terms_of(rows, archs, name)
            tried = {**setting, "inner_lr": inner_lr}
            alone = {
                t: rho(sign * terms[t], truth) for t, sign in (("zico", 1), ("fr", 1), ("loss", -1))
            }
            singles.append({**tried, **alone})
            for fr, loss in itertools.product(*LAMBDAS.values()):
                lambdas = [1.0, fr, loss]
                value = rho(combined(terms, lambdas), truth)
                results.append({**tried, "lambdas": lambdas, "spearman": value})
            print(json.dumps(singles[-1]), flush=True)
        results.sort(key=lambda r: -r["spearman"])
        content = {
            "architectures": 100,
            "tried": len(results),
            "params": rho(scores_of(rows, archs, "params"), truth),
            "best": results[:10],
            "best_of_each": best_of_each(results),
            "terms_alone": singles,
        }
        save("search", content)


def best_of_each(results: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Of results, best first, the best of each width, number of steps and step size."""
    found: dict[tuple[Any, ...], Mapping[str, Any]] = {}
    for result in results:
        found.setdefault(tuple(result[name] for name in GRID), result)
    return list(found.values())


def confirm() -> None:
    """The chosen setting on 200 other architectures, against ZiCo and params, paired."""
    archs = draw(2, 200, without=draw(1, 100))
    truth = np.array([table().lookup(METRIC)[arch] for arch in archs])
    best = json.loads((RESULTS / "ranking-search.json").read_text())["best"][0]
    rows = warmed(best, archs, "confirm")
    terms = terms_of(rows, archs, STEPS[best["inner_lr"]])
    found = {
        "SiGeo, chosen": combined(terms, best["lambdas"]),
        "ZiCo term of the same supernet": terms["zico"],
        "cold ZiCo, full size": cold_zico(archs),
        "params": scores_of(rows, archs, "params"),
        "flops": scores_of(rows, archs, "flops"),
    }
    ours = found["SiGeo, chosen"]
    differences = {
        f"SiGeo, chosen - {name}": estimate(spearman_difference(ours, scores, truth))
        for name, scores in found.items()
        if scores is not ours
    }
    content = {
        "architectures": 200,
        "setting": best,
        "proxies": correlations(found, truth),
        "paired_differences_of_spearman": differences,
    }
    save("confirm", content)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("command", choices=("full", "candidate", "search", "confirm"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--archs", type=int, default=200, help="of candidate")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.command == "candidate":
        candidate(given.archs)
    else:
        {"full": full, "search": search, "confirm": confirm}[given.command]()
