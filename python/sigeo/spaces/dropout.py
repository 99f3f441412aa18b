"""Dropout of a supernet's edges and features that follows from the step of training."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sigeo.errors import InputError
from sigeo.seeds import seed_of


def path_keep(layer: int, layers: int, step: int, steps: int, rate: float) -> float:
    """Probability that an edge stays: falls with depth and over the training (arXiv 2110.01154).

    ``k1 = 1 - (l + 1) / L * rate`` and ``k = 1 - (s + 1) / S * (1 - k1)``.

    Args:
        layer: l, 0 to L - 1.
        layers: L.
        step: s, 0 to S - 1.
        steps: S.
        rate: Of drops in the last layer at the last step.
    """
    by_depth = 1 - (layer + 1) / layers * rate
    return 1 - (step + 1) / steps * (1 - by_depth)


class ScheduledDropout:
    """Random zeros for a supernet in training, from a generator of its own.

    Attributes:
        active: Whether any rate is above 0.
    """

    def __init__(self, path_rate: float, feature_rate: float, *, layers: int, seed: int = 0):
        """Set it up; before `start_step` it is the last step of one.

        Args:
            path_rate: As of `path_keep`.
            feature_rate: Share of features that are dropped, in every step.
            layers: Layers of the network that have paths.
            seed: Of the draws before `start_step`.

        Raises:
            InputError: A rate that is not from 0 to below 1.
        """
        for name, rate in (("path_dropout", path_rate), ("dropout", feature_rate)):
            if not 0 <= rate < 1:
                raise InputError(f"supernet: {name} must be from 0 to below 1, got {rate}")
        self._path_rate, self._feature_rate, self._layers = path_rate, feature_rate, layers
        self.active = path_rate > 0 or feature_rate > 0
        self.start_step(0, 1, seed)

    def start_step(self, step: int, steps: int, seed: int) -> None:
        """Begin a step: the draws follow from its number and the seed."""
        self._seed = seed_of(f"dropout/{seed}/{step}")
        self._draws = 0
        self._step, self._steps = step, steps

    def path(self, layer: int) -> Callable[[Tensor], Tensor]:
        """What drops whole samples [B, ...] of an edge in a layer, and scales the others up."""
        keep = path_keep(layer, self._layers, self._step, self._steps, self._path_rate)
        return lambda x: self._dropped(x, [len(x)] + [1] * (x.dim() - 1), keep)

    def features(self, x: Tensor) -> Tensor:
        """Single features [B, C] dropped, the others scaled up."""
        return self._dropped(x, list(x.shape), 1 - self._feature_rate)

    def _dropped(self, x: Tensor, shape: list[int], keep: float) -> Tensor:
        if keep == 1:
            return x
        generator = torch.Generator().manual_seed(self._seed + self._draws)
        self._draws += 1
        stays = torch.rand(shape, generator=generator, device="cpu", dtype=torch.float32) < keep
        return x * (stays.to(x.device, x.dtype) / keep)
