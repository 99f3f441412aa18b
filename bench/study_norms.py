"""What batch norm at evaluation is worth to a supernet's ranking.

    python -m bench.study_norms

The networks, images, budget and architectures of study_systems; one random path a step, with and
without learned scales and shifts, three seeds each. The same weights are then evaluated with batch
norm by the statistics of each batch, by the running statistics of the training, and by statistics
re-estimated for each architecture on 16 training batches. Some 20 minutes on one core; trainings
are kept in runs/norms, so the same command goes on after a kill. Results go to
bench/results/norms.json.
"""

from __future__ import annotations

import random
import sys
from dataclasses import asdict
from typing import Any, Literal

import numpy as np
import torch

from bench.harness import NOT_MEASURED, RESULTS, SHARED, read_study, write_study
from sigeo import data, spaces
from sigeo.fewshot.study import Study
from sigeo.supernet import Uniform, evaluate, train_supernet
from sigeo.tables import read_table, repeated_kendall

RUN = RESULTS.parent.parent / "runs" / "norms"
SIZES = {"channels": 8, "cells": 1}
IMAGES, BUDGET, HELD_OUT, ARCHITECTURES, SEEDS = 16, 192_000, 500, 120, (0, 1, 2)
SETTINGS = {"batch_size": 32, "lr": 0.2, "schedule": "cosine"}
CALIBRATION = 16
METRIC = "cifar10.test"
MODES: tuple[Literal["batch", "tracked", "recalibrated"], ...] = (
    "batch",
    "tracked",
    "recalibrated",
)
AFFINE = {True: "scales and shifts", False: "no scales and shifts"}


def run() -> int:
    """Train, evaluate, and keep what came of it."""
    torch.set_num_threads(1)
    images = data.load(SHARED / "data" / "cifar10_jpeg.npz").resized(IMAGES)
    shape = spaces.InputShape(images.channels, images.size, images.classes)
    space = spaces.get("nasbench201", shape, **SIZES)
    measured = read_table(SHARED / "data" / "nasbench201.csv.gz").lookup(METRIC)
    names = sorted(measured)
    random.Random(0).shuffle(names)
    archs = [space.parse(name) for name in names[:ARCHITECTURES]]
    truth = np.array([measured[name] for name in names[:ARCHITECTURES]])
    study = Study(space, images, BUDGET, HELD_OUT, dict(SETTINGS))

    rankings: dict[tuple[bool, str], list[Any]] = {}
    for seed in SEEDS:
        for affine in AFFINE:
            print(f"seed {seed}, {AFFINE[affine]}", flush=True)
            found = _accuracies(study, archs, seed, affine)
            for mode, accuracy in found.items():
                rankings.setdefault((affine, mode), []).append(accuracy)
    first = rankings[True, "batch"]
    rows = [
        {
            "affine": affine,
            "norm": mode,
            "accuracy": float(np.mean(runs)),
            "kendall": asdict(repeated_kendall(runs, truth)),
            "gain": None
            if runs is first
            else asdict(repeated_kendall(runs, truth, baseline=first)),
            "each": [repeated_kendall([r], truth, resamples=1).value for r in runs],
        }
        for (affine, mode), runs in rankings.items()
    ]
    _save(rows)
    return 0


def _accuracies(study: Study, archs: list[Any], seed: int, affine: bool) -> dict[str, Any]:
    """By what batch norm uses: the accuracy of each architecture on the images held out."""
    supernet = study.space.supernet(seed=seed, affine=affine, track=True)
    supernet.to(memory_format=torch.channels_last)
    config = study.training(BUDGET // SETTINGS["batch_size"])
    source = study.source(seed)
    RUN.mkdir(parents=True, exist_ok=True)
    train_supernet(
        supernet,
        config,
        source,
        Uniform(study.space, seed=seed),
        settings={**study.describe(), "seed": seed, "affine": affine},
        checkpoint=RUN / f"{'affine' if affine else 'plain'}-{seed}.safetensors",
    )
    calibration = [source.take(config, step) for step in range(CALIBRATION)]
    found = {}
    for mode in MODES:
        batches = calibration if mode == "recalibrated" else []
        judged = evaluate(supernet, archs, study.validation(), norm=mode, calibration=batches)
        found[mode] = judged.accuracy.numpy()
    return found


def _save(rows: list[dict[str, Any]]) -> None:
    content = {
        "settings": {**SIZES, "image_size": IMAGES, "budget": BUDGET, "held_out": HELD_OUT}
        | {"metric": METRIC, "architectures": ARCHITECTURES, "seeds": list(SEEDS)}
        | {"calibration": CALIBRATION, **SETTINGS},
        "rows": rows,
    }
    write_study("norms", "study_norms", content)


def page(table: Any) -> str:
    """The table of the documentation.

    Args:
        table: (headings, rows) to Markdown.
    """
    content = read_study("norms")
    if content is None:
        return NOT_MEASURED

    def estimate(found: dict[str, float]) -> str:
        return f"{found['value']:.3f} [{found['low']:.3f}, {found['high']:.3f}]"

    heads = ["trained with", "batch norm at evaluation by", "mean accuracy", "Kendall [95 %]"]
    heads += ["less the first", "each seed"]
    lines = [
        [
            AFFINE[row["affine"]],
            row["norm"],
            f"{row['accuracy']:.3f}",
            estimate(row["kendall"]),
            "" if row["gain"] is None else estimate(row["gain"]),
            ", ".join(f"{tau:.3f}" for tau in row["each"]),
        ]
        for row in content["rows"]
    ]
    return f"`{content['command']}`, commit {content['sha']}:\n\n" + table(heads, lines)


if __name__ == "__main__":
    sys.exit(run())
