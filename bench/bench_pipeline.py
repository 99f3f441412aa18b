"""Candidates a second: the scoring pipeline against the plain route, with the same weights.

SiGeo over 4 batches of 64 images of random NAS-Bench-201 networks, full size. The plain route takes
NCHW images, runs every edge and keeps every gradient in NumPy. Both routes score the same
candidates in turn, in one process. What equal networks save comes on top and is counted apart.

    python bench/run.py --only pipeline
"""

from __future__ import annotations

import random
import statistics
import time
from typing import Any

import numpy as np
import torch

from bench import harness, published
from bench.harness import Times
from sigeo import proxies, spaces
from sigeo.data import ImageData, Split, load
from sigeo.scoring.networks import Networks, Protocol
from sigeo.tables import spearman


def images(count: int = 256) -> ImageData:
    """CIFAR-10 if the data folder beside the checkout holds it, else random pixels of its shape."""
    path = harness.SHARED / "data" / "cifar10_raw_subset.npz"
    if path.exists():
        return load(path)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, 3, 32, 32), generator=generator, dtype=torch.uint8)
    labels = torch.randint(0, 10, (count,), generator=generator)
    split = Split(pixels, labels)
    return ImageData("random", split, Split(pixels[:0], labels[:0]), 10)


def rows(candidates: int = 100, threads: int = 1) -> list[dict[str, Any]]:
    """Both routes over the same random candidates."""
    data = images()
    space = spaces.get("nasbench201", spaces.InputShape(3, 32, 10))
    sigeo = proxies.get("sigeo")
    cells = [space.sample(random.Random(f"candidate {i}")) for i in range(candidates + 1)]
    seconds: dict[str, list[float]] = {"pipeline": [], "plain": []}
    scores: dict[str, list[float]] = {"pipeline": [], "plain": []}
    order = data.order(0)[:256].view(4, 64)
    nchw = [data.batch(places) for places in order]
    nchw = [(x.contiguous(), y) for x, y in nchw]
    with harness.thread_count(threads):
        protocol = Protocol((sigeo,), deduplicate=False)
        networks = Networks(space, data, protocol)

        def pipeline(cell: Any) -> float:
            value = networks.score(cell, (sigeo,))["sigeo"].value
            return float("-inf") if value is None else value

        def plain(cell: Any) -> float:
            return published.sigeo(published.plain_network(space.build(cell, seed=0)), nchw)

        for index, cell in enumerate(cells):
            routes = [("pipeline", pipeline), ("plain", plain)]
            for name, run in routes if index % 2 else routes[::-1]:
                begin = time.process_time()
                value = run(cell)
                if index > 0:  # the first warms both up
                    seconds[name].append(time.process_time() - begin)
                    scores[name].append(value)
        times = {name: Times(tuple(values)) for name, values in seconds.items()}
        functions = {space.representative(cell) for cell in cells[1:]}
        rho = spearman(np.array(scores["pipeline"]), np.array(scores["plain"]))
        return [
            harness.row(
                "candidates",
                name,
                measured,
                shape="SiGeo 4 x 64, C=16, N=5",
                baseline="plain",
                speedup=harness.ratio(times["plain"], measured),
                mode="4 passes",
                images=data.name,
                candidates=candidates,
                candidates_per_s=candidates / sum(measured.seconds),
                gain_in_candidates_per_s=sum(times["plain"].seconds) / sum(measured.seconds),
                spearman_with_plain=rho,
                median_relative_difference=statistics.median(
                    abs(a - b) / abs(b)
                    for a, b in zip(scores["pipeline"], scores["plain"], strict=True)
                ),
                further_gain_from_equal_functions=candidates / len(functions),
            )
            for name, measured in times.items()
        ]
