"""Models of every kind that `capture` meets, each with inputs and labels of a number of samples."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from tests.sigeo.zoo.bare_parameters import bare_matrix, mixed_operation, parametrized, slices
from tests.sigeo.zoo.categories import click_inputs, click_through, many_tables
from tests.sigeo.zoo.convolutional import (
    batch_norm,
    convolutions,
    inverted_residual,
    layer_scale,
    norms,
    signals,
    smooth_convolutions,
    transposed,
)
from tests.sigeo.zoo.parts import CLASSES, Function, head, images, tokens
from tests.sigeo.zoo.sequences import (
    attention_with_weights,
    flattened,
    recurrent,
    tied_embedding,
    transformer,
    vision_transformer,
    windows,
)
from tests.sigeo.zoo.wiring import (
    branch,
    in_place_sum,
    shared_module,
    siamese,
    towers,
    unused_operation,
)

__all__ = ["CLASSES", "MODELS", "Function", "head", "images", "made", "tokens"]


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[int], tuple[Tensor, ...]]]] = {
    "convolutions": (convolutions, images),
    "smooth convolutions": (smooth_convolutions, images),
    "batch norm": (batch_norm, images),
    "inverted residual": (inverted_residual, images),
    "layer scale": (layer_scale, images),
    "vision transformer": (vision_transformer, images),
    "transformer": (transformer, tokens),
    "transformer, sequence first": (lambda: transformer(False), tokens),
    "attention with weights": (attention_with_weights, tokens),
    "tied embedding": (tied_embedding, tokens),
    "lstm": (recurrent(nn.LSTM), tokens),
    "gru": (recurrent(nn.GRU, bidirectional=True), tokens),
    "siamese": (siamese, images),
    "towers": (towers, images),
    "windows": (windows, images),
    "flattened, samples first": (flattened(True), tokens),
    "flattened, tokens first": (flattened(False), tokens),
    "click-through": (click_through, click_inputs),
    "many tables": (many_tables, lambda samples: (torch.randint(0, 6, (samples, 7)),)),
    "slices": (slices, images),
    "mixed operation": (mixed_operation, images),
    "parametrized": (parametrized, images),
    "in-place sum": (in_place_sum, images),
    "shared module": (shared_module, images),
    "unused operation": (unused_operation, images),
    "branch": (branch, images),
    "bare matrix": (bare_matrix, images),
    "norms": (norms, images),
    "transposed": (transposed, images),
    "signals and volumes": (signals, images),
}


def made(name: str, samples: int) -> tuple[nn.Module, tuple[Tensor, ...], Tensor]:
    """A model in float64, its inputs and labels."""
    build, inputs = MODELS[name]
    return build().double(), inputs(samples), torch.arange(samples) % CLASSES
