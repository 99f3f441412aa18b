"""The warm-up of sub-one-shot search: a little training, after which proxies say more.

A warm-up uses the first images of one seeded order of the training set, so a shorter warm-up's
images, batches and sampled paths are the beginning of a longer one's.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from sigeo.capture.state import device_of
from sigeo.data import Augmentation
from sigeo.errors import InputError, check_one_of
from sigeo.kinds import named_arguments
from sigeo.spaces import SearchSpace, Supernet
from sigeo.supernet.checkpoint import Weights
from sigeo.supernet.distillation import InPlaceDistillation
from sigeo.supernet.loop import Budget, run
from sigeo.supernet.objectives import CrossEntropy, Objective, smoothed_cross_entropy
from sigeo.supernet.pinas import CrossPath
from sigeo.supernet.randomness import drawing
from sigeo.supernet.samplers import ValidationLoss
from sigeo.supernet.samplers.named import NAMES, named
from sigeo.supernet.settings import Progress, Source, Training
from sigeo.supernet.trainer import Trainer

_UNIFORM = ("uniform", "operations")


@dataclass(frozen=True)
class WarmUp(Training):
    """A training of paths by a sampler's name, or of one network.

    All but the settings of `Training`, and of those ``keep``, are of shared weights only.

    Attributes:
        paths: Architectures that a step trains on its batch, in one pass; of uniform samplers.
        average: Whether the gradients of a step's paths, of any sampler that takes several, are
            averaged rather than summed; of "cross_entropy".
        sampler: Which paths a step trains, see `samplers.named`.
        balance: Of "balanced": the choice of the space whose options make the regions.
        objective: "cross_entropy"; "in_place" distillation from the step's first path, which
            "sandwich" makes the largest; "cross_path" learning, of "disjoint".
        label_smoothing: Of the objective's cross-entropy.
        augment: "crop" out of a margin of an eighth of the size, "flip" as well; None for neither.
            Cross-path learning makes its two views so, by default with "crop".
    """

    paths: int = 1
    average: bool = False
    sampler: str = "uniform"
    balance: str | None = None
    objective: Literal["cross_entropy", "in_place", "cross_path"] = "cross_entropy"
    label_smoothing: float = 0.0
    augment: Literal["crop", "flip"] | None = None

    what: ClassVar[str] = "warm-up"
    _later: ClassVar[tuple[str, ...]] = (
        *Training._later,
        "sampler",
        "balance",
        "objective",
        "label_smoothing",
        "augment",
    )

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            InputError: One is out of its range.
        """
        super().__post_init__()
        if self.paths < 1:
            raise InputError(f"warm-up: paths must be at least 1, got {self.paths}")
        check_one_of("warm-up: sampler", self.sampler, NAMES)
        if self.objective == "cross_path" and self.sampler != "disjoint":
            raise InputError(
                f"warm-up: objective cross_path needs sampler disjoint, got {self.sampler}"
            )
        uniform = self.sampler in _UNIFORM
        single = self.sampler == "greedy" or (uniform and self.paths == 1)
        if self.objective == "in_place" and single:
            raise InputError(
                "warm-up: objective in_place needs several paths a step, whose first teaches the "
                f"others; {self.sampler} takes one"
            )
        if self.average and (single or self.objective != "cross_entropy"):
            raise InputError(
                "warm-up: average is of cross_entropy and several paths a step, got objective "
                f"{self.objective} and sampler {self.sampler}"
            )
        smoothed_cross_entropy(self.label_smoothing)

    @classmethod
    def _of_paths(cls, paths: int, settings: dict[str, Any]) -> dict[str, Any]:
        uniform = settings.get("sampler", "uniform") in _UNIFORM
        return {**settings, "paths": paths} if uniform else settings

    @classmethod
    def published(cls, images: int, epochs: int = 10) -> WarmUp:
        """Each candidate alone, as SiGeo's code for vision does: SGD of lr 1, in order."""
        return cls(images, epochs, **cls.published_settings())

    @staticmethod
    def published_settings() -> dict[str, Any]:
        """What `published` sets beside the number of images and passes."""
        return {
            "batch_size": 128,
            "lr": 1.0,
            "momentum": 0.0,
            "weight_decay": 0.0,
            "clip": None,
            "shuffle": False,
        }

    def describe(self) -> dict[str, Any]:
        """All settings and the number of steps, as JSON can hold them."""
        settings = super().describe()
        if self.paths == 1 and not self.average:  # as it was before there were several
            del settings["paths"], settings["average"]
        return settings


@named_arguments("warm_up_alone")
def warm_up_alone(module: nn.Module, config: WarmUp, source: Source) -> None:
    """Train one network, in train mode and in place; what it draws follows from source and step."""
    module.train()

    def backward(batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        loss = nn.functional.cross_entropy(module(batch[0]), batch[1])
        loss.backward()
        return loss.detach()

    trainer = Trainer(module, backward, config)
    device = device_of(module)
    while trainer.step < config.steps:
        batch = source.take(config, trainer.step)
        with drawing(f"{source.seed}/{trainer.step}", device):
            trainer.take(batch)


@named_arguments("warm_up_supernet")
def warm_up_supernet(
    supernet: Supernet[Any],
    space: SearchSpace[Any],
    config: WarmUp,
    source: Source,
    *,
    settings: dict[str, Any],
    checkpoint: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
    kept: list[Weights] | None = None,
) -> Budget:
    """Train shared weights in place, one or more architectures a step.

    Greedy paths are scored on held-out images: the last ones of the order, a tenth of it or 1000.

    Args:
        supernet: The weights.
        space: Whose architectures are sampled.
        config: The warm-up.
        source: Of its images.
        settings: All that the result depends on, as JSON can hold it; kept in the checkpoint.
        checkpoint: A safetensors file, written every few seconds and at the end, never half. If
            there is one of the same settings, the warm-up goes on from it.
        progress: Called after each step with (steps taken, steps in all).
        kept: As of `train_supernet`.

    Returns:
        What it has cost, with the steps before an interruption.

    Raises:
        InputError: As `train_supernet`; or the sampler does not go with the space or the images.
    """
    sampler = named(
        config.sampler,
        space,
        seed=source.seed,
        steps=config.steps,
        paths=config.paths,
        balance=config.balance,
        score=_held_out(supernet, config, source) if config.sampler == "greedy" else None,
    )
    if config.augment is not None and config.objective != "cross_path":
        source = replace(source, augment=_augmentation(config, source))
    return run(
        supernet,
        config,
        source,
        sampler,
        _objective(config, source),
        settings=settings,
        checkpoint=checkpoint,
        progress=progress,
        kept=kept,
    )


def check_sampler(config: WarmUp, space: SearchSpace[Any]) -> None:
    """Check that the sampler of a warm-up goes with a space, whatever the images.

    Raises:
        InputError: It does not.
    """
    named(
        config.sampler,
        space,
        seed=0,
        steps=config.steps,
        paths=config.paths,
        balance=config.balance,
        score=lambda archs: torch.zeros(len(archs)),
    )


def _objective(config: WarmUp, source: Source) -> Objective:
    if config.objective == "in_place":
        return InPlaceDistillation(label_smoothing=config.label_smoothing)
    if config.objective == "cross_path":
        views = _augmentation(config, source)
        return CrossPath(views, label_smoothing=config.label_smoothing)
    return CrossEntropy(label_smoothing=config.label_smoothing, average=config.average)


def _augmentation(config: WarmUp, source: Source) -> Augmentation:
    """Of images of the source's size, 4 pixels of a margin for 32."""
    size = source.batch(source.order[:1])[0].shape[-1]
    padding = max(1, size // 8)
    return Augmentation(seed=source.seed, flip=config.augment == "flip", padding=padding)


def _held_out(supernet: Supernet[Any], config: WarmUp, source: Source) -> ValidationLoss:
    """A score on images that the warm-up does not train on.

    Raises:
        InputError: It trains on too many of them.
    """
    available = len(source.order)
    count = min(1000, available // 10)
    if count < 2 or config.images + count > available:
        raise InputError(
            f"warm-up: greedy paths need {max(2, count)} held-out images beside the "
            f"{config.images} to train on, the data has {available}"
        )
    held = source.order[-count:]
    return ValidationLoss(supernet, [source.batch(places) for places in even_parts(held, 256)])


def even_parts(places: Tensor, size: int) -> tuple[Tensor, ...]:
    """Places in as few parts of at most ``size`` as there can be, as equal as they can be."""
    return places.tensor_split(-(-len(places) // size))
