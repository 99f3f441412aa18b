"""A tiny ground for systems: images that a small network learns in a few steps."""

from __future__ import annotations

import torch

from sigeo import spaces
from sigeo.data import ImageData, Split
from sigeo.fewshot.study import Study

SPACE = spaces.get("nasbench201", spaces.InputShape(1, 8, 2), channels=3, cells=1)


def images(count, seed):
    """Bright or dark halves."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 2, (count,), generator=generator)
    noise = torch.randint(0, 100, (count, 1, 8, 8), generator=generator)
    noise[labels == 1, :, :4] += 100
    return Split(noise.to(torch.uint8), labels)


DATA = ImageData("halves", images(120, 0), images(10, 1), classes=2)


def study(budget=1600, **changes):
    settings = {"batch_size": 8, "lr": 0.05, "schedule": "cosine"}
    return Study(SPACE, DATA, budget, **{"held_out": 24, "settings": settings, **changes})


SMALL = {
    "gm-nas": {"repeats": 1, "batch": 8},
    "nas-lid": {"repeats": 1, "batch": 8, "k": 4, "before": [2, 2], "after": 4},
    "hep-nas": {"repeats": 1, "batch": 8, "rounds": 2, "judged": 1},
    "greedy": {"images": 8, "sampled": 4, "kept": 2, "pool": 10},
    "metric-driven": {"batch": 8},
}
"""Options with which the recipes fit a small budget."""
