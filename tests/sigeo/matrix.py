"""The model matrix: kinds of models that tools for per-sample gradients are known to fail on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.sigeo import zoo
from tests.sigeo.zoo import CLASSES, Function, head, images, tokens


@dataclass(frozen=True)
class Row:
    """One kind of model.

    Attributes:
        build: Makes it; in the mode, training or evaluation, that the row is about.
        inputs: Of a number of samples.
        samples_are: Whether each sample's loss is its own, or what couples the samples.
    """

    build: Callable[[], nn.Module]
    inputs: Callable[[int], tuple[Tensor, ...]] = images
    samples_are: Literal["apart", "coupled"] = "apart"


def plain() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.Tanh(), nn.MaxPool2d(2), *head(6))


def in_place_relu() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.ReLU(inplace=True), nn.Conv2d(6, 6, 3), nn.ReLU(inplace=True),
        *head(6),
    )  # fmt: skip


def depthwise() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.Tanh(), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 6, 1), *head(6)
    )


def batch_norm(*, track: bool, training: bool) -> Callable[[], nn.Module]:
    def made() -> nn.Module:
        norm = nn.BatchNorm2d(6, track_running_stats=track)
        model = nn.Sequential(nn.Conv2d(3, 6, 3), norm, nn.Tanh(), *head(6))
        if track:
            norm.running_mean.uniform_(-1, 1)
            norm.running_var.uniform_(0.5, 2)
        return model.train(training)

    return made


def normed(norm: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 6, 3), norm, nn.Tanh(), nn.Conv2d(6, 5, 3), *head(5))


def functional_weight() -> nn.Module:
    """A module that never runs: others use its weight."""

    def run(m, x):
        z = torch.tanh(F.conv2d(x, m.owner.weight, m.owner.bias, padding=1))
        z = torch.tanh(F.conv2d(z, m.owner.weight.transpose(0, 1), padding=1))
        return m.out(z.mean((2, 3)))

    return Function(run, owner=nn.Conv2d(3, 6, 3), out=nn.Linear(3, CLASSES))


def data_dependent_branch() -> nn.Module:
    """Takes a way by the values of its input."""

    def run(m, x):
        z = m.bright(x) if float(x.amin()) > 0 else m.dark(x)
        return m.out(torch.tanh(z).mean((2, 3)))

    return Function(
        run, bright=nn.Conv2d(3, 4, 3), dark=nn.Conv2d(3, 4, 3), out=nn.Linear(4, CLASSES)
    )


def bright_images(samples: int) -> tuple[Tensor, ...]:
    return (torch.rand(samples, 3, 8, 8, dtype=torch.float64) + 0.1,)


def drop_path() -> nn.Module:
    """A residual branch that is dropped for some samples, by numbers drawn in the forward pass."""

    def run(m, x):
        z = m.stem(x)
        kept = torch.rand(len(z), 1, 1, 1, dtype=z.dtype).add(0.5).floor()
        return m.out((z + m.block(z) * kept / 0.5).mean((2, 3)))

    return Function(
        run, stem=nn.Conv2d(3, 6, 1), out=nn.Linear(6, CLASSES),
        block=nn.Sequential(nn.Conv2d(6, 6, 3, padding=1), nn.Tanh(), nn.Conv2d(6, 6, 1)),
    )  # fmt: skip


def embedding_bag() -> nn.Module:
    return nn.Sequential(
        nn.EmbeddingBag(20, 8, mode="sum"), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, CLASSES)
    )


def sparse_embedding() -> nn.Module:
    return nn.Sequential(
        nn.Embedding(20, 8, sparse=True), nn.Linear(8, 8), nn.Tanh(), nn.Flatten(),
        nn.LazyLinear(CLASSES),
    )  # fmt: skip


MATRIX: dict[str, Row] = {
    "plain": Row(plain),
    "inplace_relu": Row(in_place_relu),
    "inplace_add": Row(zoo.in_place_sum),
    "shared_module": Row(zoo.shared_module),
    "unused_op": Row(zoo.unused_operation),
    "bare_parameter": Row(zoo.layer_scale),
    "depthwise": Row(depthwise),
    "bn_train": Row(batch_norm(track=True, training=True), samples_are="coupled"),
    "bn_notrack": Row(batch_norm(track=False, training=True), samples_are="coupled"),
    "bn_notrack_eval": Row(batch_norm(track=False, training=False), samples_are="coupled"),
    "bn_eval": Row(batch_norm(track=True, training=False)),
    "gn": Row(lambda: normed(nn.GroupNorm(2, 6))),
    "in": Row(lambda: normed(nn.InstanceNorm2d(6, affine=True))),
    "sliced_weight": Row(zoo.slices),
    "functional_weight": Row(functional_weight),
    "darts_mixed_op": Row(zoo.mixed_operation),
    "data_dependent_branch": Row(data_dependent_branch, bright_images),
    "drop_path": Row(drop_path),
    "layer_norm": Row(lambda: normed(nn.LayerNorm([6, 6, 6]))),
    "embedding_bag": Row(embedding_bag, tokens),
    "sparse_embedding": Row(sparse_embedding, tokens),
    "tied_embedding": Row(zoo.tied_embedding, tokens),
    "multihead": Row(zoo.attention_with_weights, tokens),
    "encoder_layer": Row(zoo.transformer, tokens),
    "lstm": Row(zoo.recurrent(nn.LSTM), tokens),
}


def made(name: str, samples: int) -> tuple[nn.Module, tuple[Tensor, ...], Tensor]:
    """A row's model in float64, its inputs and labels."""
    row = MATRIX[name]
    model, inputs = row.build().double(), row.inputs(samples)
    if any(isinstance(p, nn.UninitializedParameter) for p in model.parameters()):
        model(*inputs)  # makes lazy layers
    return model, inputs, torch.arange(samples) % CLASSES
