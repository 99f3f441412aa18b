"""The elastic spaces of the tests: as small as they can be and still have every choice."""

from __future__ import annotations

import random

import torch

from sigeo import data, spaces

SHAPE = spaces.InputShape(1, 8, 10)
DIGITS = data.load("digits")
SIZES = {
    "mlp": {"widths": (5, 8), "depths": (1, 2, 3)},
    "mobilenet": {
        "channels": (4, 6),
        "blocks": (1, 3),
        "strides": (1, 2),
        "stem": 5,
        "first": 4,
        "last": 9,
        "kernels": (3, 5),
        "expansions": (2, 3),
    },
    "resnet": {"channels": 8, "depths": (2, 2), "ratios": (0.6, 0.8, 1)},
    "transformer": {
        "patch": 4,
        "widths": (6, 8),
        "depths": (1, 2),
        "heads": (1, 2),
        "ratios": (1.5, 2),
        "head_width": 3,
    },
}
NAMES = sorted(SIZES)


def space(name: str, **changed):
    return spaces.get(name, SHAPE, **{**SIZES[name], **changed})


def archs_of(chosen, count=5, seed=0):
    """Drawn ones, the largest, the smallest, and one of them again."""
    rng = random.Random(seed)
    drawn = [chosen.sample(rng) for _ in range(count)]
    smallest = chosen.decode([0] * len(chosen.choices))
    return [*drawn, chosen.largest, smallest, drawn[0]]


def supernet(chosen, dtype=torch.float32):
    """With norms that scale and shift, as after some training."""
    made = chosen.supernet(seed=0).to(dtype)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.dim() == 1:
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator).to(dtype)
    return made


def batches(dtype=torch.float32, *, count=3, size=12):
    order = DIGITS.order(0)[: count * size].view(count, size)
    return [(x.to(dtype), y) for x, y in map(DIGITS.batch, order)]
