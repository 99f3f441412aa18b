"""Consistency shift: how differently paths treat the weights that they share (Pi-NAS)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sigeo.errors import InputError
from sigeo.spaces import Supernet
from sigeo.supernet.buffers import kept_buffers

_Layer = (nn.modules.conv._ConvNd, nn.Linear)


@dataclass(frozen=True)
class FeatureShift:
    """How far the statistics of a layer's input lie apart between paths.

    Attributes:
        mean: Mean over pairs of paths of the distance of their channel means.
        variance: The same of their channel variances.
        paths: Paths that run through the layer.
    """

    mean: float
    variance: float
    paths: int


@torch.no_grad()
def feature_shift(
    supernet: Supernet[Any], archs: Sequence[Any], inputs: Tensor
) -> dict[str, FeatureShift]:
    """The feature shift of every convolution and linear layer that two of the paths share.

    A layer's input has a mean and a variance in each channel, over images and pixels; a distance is
    the root of the mean squared difference over channels: over those that both paths have, the
    first ones, where paths of an elastic space differ in width. Draw the paths at random; what lies
    before a layer then differs, and the distance would be 0 if it did not matter.

    Args:
        supernet: The shared weights; they and the running statistics stay as they are. Runs in the
            mode that it is in.
        archs: At least two paths.
        inputs: A batch.

    Returns:
        By the layer's name, in float64.

    Raises:
        InputError: Fewer than two paths.
    """
    if len(archs) < 2:
        raise InputError(f"archs: feature shift needs at least two paths, got {len(archs)}")
    module: nn.Module = supernet  # type: ignore[assignment]
    found: dict[str, list[tuple[Tensor, Tensor]]] = {}

    def watch(name: str) -> Any:
        def hook(layer: nn.Module, args: tuple[Tensor, ...]) -> None:
            values = args[0].double()
            if not isinstance(layer, nn.Linear):  # [B, C, *]; of linear layers [B, ..., features]
                values = values.movedim(1, -1)
            values = values.flatten(0, -2)
            statistics = values.mean(0), values.var(0, correction=0)
            found.setdefault(name, []).append(statistics)

        return hook

    handles = [
        layer.register_forward_pre_hook(watch(name))
        for name, layer in module.named_modules()
        if isinstance(layer, _Layer)
    ]
    try:
        with kept_buffers(module):
            for arch in archs:
                supernet(inputs, arch)
    finally:
        for handle in handles:
            handle.remove()
    return {
        name: FeatureShift(
            _mean_distance([mean for mean, _ in paths]),
            _mean_distance([variance for _, variance in paths]),
            len(paths),
        )
        for name, paths in found.items()
        if len(paths) > 1
    }


def _mean_distance(points: list[Tensor]) -> float:
    """Mean over pairs of the root mean squared difference, of the channels that both have."""
    if len({len(point) for point in points}) == 1:
        stacked = torch.stack(points)
        return float(torch.pdist(stacked).mean()) / math.sqrt(stacked.shape[1])
    found = []
    for one, other in itertools.combinations(points, 2):
        common = min(len(one), len(other))
        found.append((one[:common] - other[:common]).square().mean().sqrt())
    return float(torch.stack(found).mean())


class ParameterShift:
    """How much successive updates of a shared weight agree: the cosine between them.

    ``record`` after each step; a tensor that a step did not reach has no update in it, and its next
    one is compared with the last that it had. Cosines near 1 are updates that agree, below 0 ones
    that undo each other.
    """

    def __init__(self, module: nn.Module):
        """Take the weights from which the first update counts.

        Args:
            module: A supernet; called a module as its parameters are all that is looked at.
        """
        self._module = module
        self._weights = {n: p.detach().clone() for n, p in module.named_parameters()}
        self._updates: dict[str, Tensor] = {}
        self._sums: dict[str, float] = {}
        self._counts: dict[str, int] = {}

    @torch.no_grad()
    def record(self) -> None:
        """Compare the updates since the last call with those before them."""
        for name, parameter in self._module.named_parameters():
            update = (parameter.detach() - self._weights[name]).double().flatten()
            if not bool(update.any()):
                continue
            last = self._updates.get(name)
            if last is not None:
                cosine = float(torch.dot(last, update) / (last.norm() * update.norm()))
                self._sums[name] = self._sums.get(name, 0.0) + cosine
                self._counts[name] = self._counts.get(name, 0) + 1
            self._updates[name] = update
            self._weights[name] = parameter.detach().clone()

    def cosines(self) -> dict[str, float]:
        """Mean cosine of each tensor with two updates or more, by its name."""
        return {name: total / self._counts[name] for name, total in self._sums.items()}
