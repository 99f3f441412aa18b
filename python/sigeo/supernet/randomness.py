"""Random numbers of modules that draw from torch's own generators, such as dropout."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from sigeo.seeds import seed_of


@contextlib.contextmanager
def drawing(key: str, device: torch.device) -> Iterator[None]:
    """Let what is drawn inside follow from a key alone; the generators come back as they were.

    Args:
        key: For example a seed and a step.
        device: Where modules run, beside the CPU.

    Yields:
        Once, when the generators are set.
    """
    seed = seed_of(f"draws/{key}")
    cuda = device.type == "cuda"
    with torch.random.fork_rng([device] if cuda else []):
        torch.default_generator.manual_seed(seed)
        if cuda:
            torch.cuda.default_generators[device.index or 0].manual_seed(seed)
        yield
