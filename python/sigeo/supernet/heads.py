"""Other last layers for a supernet: projections to embeddings, new classifiers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from sigeo.errors import InputError
from sigeo.kinds import checked_seed
from sigeo.spaces import Supernet


def project(
    supernet: Supernet[Any],
    *,
    seed: int,
    size: int = 128,
    hidden: int | None = None,
    classifier: str = "head.linear",
) -> None:
    """Give a supernet a projection to embeddings in the place of its classifier, in place.

    Linear, ReLU, linear, as published behind average pooling.

    Args:
        supernet: Its outputs become [B, size].
        seed: Of the new weights.
        size: Numbers of an embedding.
        hidden: Width between the two layers; None for that of the features.
        classifier: Name of the linear layer that is replaced.

    Raises:
        InputError: There is no such layer.
    """
    old = _head(supernet, classifier)
    inputs = old.in_features
    width = inputs if hidden is None else hidden
    layers = nn.Linear(inputs, width), nn.Linear(width, size)
    _draw(layers, seed)
    new = nn.Sequential(layers[0], nn.ReLU(), layers[1])
    _replace(supernet, classifier, new.to(old.weight.device, old.weight.dtype))


def classify(
    supernet: Supernet[Any], classes: int, *, seed: int, classifier: str = "head.linear"
) -> None:
    """Give a trained supernet a new linear classifier, and freeze all other weights, in place.

    `train_supernet` on random paths then trains the classifier alone, the published second stage.

    Args:
        supernet: One that `project` changed, or any other.
        classes: Outputs.
        seed: Of the new weights.
        classifier: Name of the layer that is replaced.

    Raises:
        InputError: There is no such layer.
    """
    old = _head(supernet, classifier)
    module: nn.Module = supernet  # type: ignore[assignment]
    module.requires_grad_(False)
    layer = nn.Linear(old.in_features, classes)
    _draw((layer,), seed)
    _replace(supernet, classifier, layer.to(old.weight.device, old.weight.dtype))


def _head(supernet: Supernet[Any], name: str) -> nn.Linear:
    """The linear layer of a name, or the first one of a projection.

    Raises:
        InputError: There is none.
    """
    module: nn.Module = supernet  # type: ignore[assignment]
    try:
        found = module.get_submodule(name)
    except AttributeError:
        found = None
    if isinstance(found, nn.Sequential) and len(found):
        found = found[0]
    if type(found) is not nn.Linear:  # an elastic one is known by its place
        raise InputError(f"classifier: {type(supernet).__name__} has no linear layer {name!r}")
    return found


def _replace(supernet: Supernet[Any], name: str, layer: nn.Module) -> None:
    module: nn.Module = supernet  # type: ignore[assignment]
    parent, _, last = name.rpartition(".")
    setattr(module.get_submodule(parent), last, layer.train(module.training))


@torch.no_grad()
def _draw(layers: Sequence[nn.Linear], seed: int) -> None:
    """Uniform within +-1/sqrt(fan in), from a generator of their own.

    Raises:
        InputError: It is no seed, see `checked_seed`.
    """
    generator = torch.Generator().manual_seed(checked_seed(seed))
    for layer in layers:
        bound = 1 / math.sqrt(layer.in_features)
        for parameter in layer.parameters():
            parameter.uniform_(-bound, bound, generator=generator)
