"""The space that the tests divide, small enough to train in a moment."""

from __future__ import annotations

import torch

from sigeo import spaces
from sigeo.capture import Batches

SPACE = spaces.get("nasbench201", spaces.InputShape(3, 8, 10), channels=4, cells=1)
WHOLE = spaces.Product.whole(SPACE)
EVERYTHING = [SPACE.at(index) for index in range(SPACE.size)]


def batches(count: int = 2, size: int = 16, *, seed: int = 0) -> Batches:
    """Random images and labels."""
    generator = torch.Generator().manual_seed(seed)
    pairs = [
        (
            torch.randn(size, 3, 8, 8, generator=generator),
            torch.randint(10, (size,), generator=generator),
        )
        for _ in range(count)
    ]
    return Batches(pairs, SPACE.supernet(), torch.device("cpu"))
