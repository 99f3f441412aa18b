"""The one-shot to few-shot training scheme on a tiny elastic ResNet, judged by trainings alone.

    python -m bench.study_gradual

Two stages of three widths, CIFAR-10 images at 8 px, one thread: some fifteen minutes.
Kendall's tau of 20 subnets after each training of the scheme (1, 2, 3 groups), as published and
with larger step sizes, and of one supernet that spends the whole budget undivided. All is kept in
runs/gradual, so the same command goes on after a kill. Results go to bench/results/gradual.json.
Needs the data folder beside the checkout (SIGEO_SHARED) with data/cifar10_jpeg.npz.
"""

from __future__ import annotations

import random
import sys
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from bench.harness import NOT_MEASURED, RESULTS, SHARED, read_study, write_study
from sigeo import data, spaces
from sigeo.fewshot import recipes, whole_space
from sigeo.fewshot.develop import develop
from sigeo.fewshot.family import Family
from sigeo.fewshot.study import Study
from sigeo.scoring import standalone
from sigeo.store import RunStore
from sigeo.supernet import WarmUp, load_checkpoint, load_weights
from sigeo.tables import Estimate, repeated_kendall

RUN = RESULTS.parent.parent / "runs" / "gradual"
SIZES = {"channels": 8, "depths": (2, 2), "ratios": (0.5, 0.75, 1)}
SUBNETS, RUNS, SEEDS = 20, 2, (0, 1)
ALONE = {"images": 50_000, "epochs": 1, "batch_size": 64, "lr": 0.1, "schedule": "cosine"}
STEPS = 1120  # of four paths: 800 with one group, 160 with two and with three
SUPERNET = {"batch_size": 64, "lr": 0.1, "schedule": "cosine"}
CALIBRATION, HELD_OUT = 16, 1000
VARIANTS: dict[str, dict[str, Any]] = {
    "published": {},
    "larger steps": {"rates": [1, 0.1, 0.2]},
    "undivided": {"groups": 1},
}


def run() -> int:
    """Measure, and write the result file."""
    torch.set_num_threads(1)
    images = data.load(str(SHARED / "data" / "cifar10_jpeg.npz")).resized(8)
    space = spaces.get("resnet", spaces.InputShape(3, 8, 10), **SIZES)
    archs = spaces.distinct(space, SUBNETS, random.Random(0))
    truth = _truth(space, images, archs)
    budget = STEPS * 4 * SUPERNET["batch_size"]  # type: ignore[operator]
    study = Study(space, images, budget, HELD_OUT, SUPERNET)
    rows, trainings = [], {}
    for variant, options in VARIANTS.items():
        done = [_rankings(study, archs, variant, options, seed) for seed in SEEDS]
        found = [rankings for rankings, _ in done]
        trainings[variant] = done[0][1]
        for number, rankings in enumerate(zip(*found, strict=True)):
            for by in ("accuracy", "-loss"):
                tau = repeated_kendall([r[by] for r in rankings], truth.accuracy.mean(1))
                single = [float(repeated_kendall([r[by]], truth.accuracy.mean(1)).value)
                          for r in rankings]  # fmt: skip
                mean = float(np.mean([r["accuracy"] for r in rankings]))
                row = {"variant": variant, "groups": number + 1, "by": by, "seeds": single}
                rows.append({**row, "kendall": asdict(tau), "mean_accuracy": mean})
                print(variant, number + 1, by, _shown(tau), f"mean accuracy {mean:.3f}")
    document = {
        "space": space.describe(),
        "study": study.describe(),
        "trainings": trainings,  # of each what it has in the place of the study's settings
        "alone": ALONE,
        "runs": RUNS,
        "noise": truth.noise,
        "ceiling": truth.ceiling,
        "subnets": {
            str(arch): row
            for arch, row in zip(archs, truth.accuracy.tolist(), strict=True)
        },
        "calibration": CALIBRATION,
        "rows": rows,
    }  # fmt: skip
    write_study("gradual", "study_gradual", document)
    return 0


def _truth(space: Any, images: Any, archs: list[Any]) -> standalone.Measurements:
    """Test accuracies of the subnets trained alone."""
    config = WarmUp(**ALONE, clip=None)  # type: ignore[arg-type]
    protocol = standalone.Standalone(config, RUNS)
    RUN.mkdir(parents=True, exist_ok=True)
    with RunStore(RUN / "alone.sqlite", standalone.settings(space, images, protocol)) as store:
        return standalone.measure(space, images, archs, protocol, store)


def _rankings(
    study: Study, archs: list[Any], variant: str, options: dict[str, Any], seed: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """What each training leaves says of the subnets, on the images held out; and its settings."""
    recipe = recipes.get("gradual", study.space, calibration=CALIBRATION, **options)
    folder = RUN / variant.replace(" ", "-") / str(seed)
    trainings = develop(recipe, study, seed, folder=folder).trainings
    assert recipe.gradual is not None
    supernet = study.supernet(seed)
    calibration = study.calibration(seed, recipe.calibration)
    found = []
    for number in range(recipe.gradual.levels + 1):
        supernet = recipe.gradual.grow(supernet, number)
        path = folder / f"stage-{number}.safetensors"
        load_weights(supernet, load_checkpoint(path)[0], path)  # type: ignore[arg-type]
        family = Family(whole_space(study.space), (supernet,))
        accuracy, loss = family.evaluated(archs, study.validation(), calibration)
        found.append({"accuracy": accuracy, "-loss": -loss})
    return found, list(trainings)


def page(table: Any) -> str:
    """The table of the documentation.

    Args:
        table: (headings, rows) to Markdown.
    """
    content = read_study("gradual")
    if content is None:
        return NOT_MEASURED
    kinds = {row["by"]: {} for row in content["rows"]}  # type: dict[str, dict[Any, Any]]
    for row in content["rows"]:
        kinds[row["by"]][row["variant"], row["groups"]] = row
    lines = []
    for (variant, groups), row in kinds["accuracy"].items():
        loss = kinds["-loss"][variant, groups]
        taus = [_shown(Estimate(**found["kendall"])) for found in (row, loss)]
        seeds = ", ".join(f"{tau:.3f}" for tau in row["seeds"])
        accuracy = f"{100 * row['mean_accuracy']:.1f}"
        lines.append([variant, str(groups), taus[0], seeds, taus[1], accuracy])
    heads = ["step sizes", "groups", "Kendall, accuracy [95 %]", "by seed", "Kendall, -loss"]
    return (
        f"`{content['command']}`, torch {content['torch']}, commit {content['sha']}; "
        f"{len(content['subnets'])} subnets, {content['runs']} trainings of each alone, "
        f"{content['noise']:.2f} points the standard deviation of one's accuracy (pooled over "
        f"subnets) and {content['ceiling']:.3f} Kendall's tau between two.\n\n"
        + str(table([*heads, "mean accuracy"], lines))
    )


def _shown(found: Estimate) -> str:
    return f"{found.value:.3f} [{found.low:.3f}, {found.high:.3f}]"


if __name__ == "__main__":
    sys.exit(run())
