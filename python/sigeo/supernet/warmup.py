"""The warm-up of sub-one-shot search: a little training, after which proxies say more.

A warm-up uses the first images of one seeded order of the training set, so a shorter warm-up's
images, batches and sampled paths are the beginning of a longer one's.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

from sigeo.errors import InputError
from sigeo.spaces import SearchSpace, Supernet
from sigeo.supernet.loop import run
from sigeo.supernet.objectives import CrossEntropy
from sigeo.supernet.samplers import Uniform
from sigeo.supernet.settings import Progress, Source, Training
from sigeo.supernet.trainer import Trainer


@dataclass(frozen=True)
class WarmUp(Training):
    """A training of random paths, or of one network.

    Attributes:
        paths: Architectures that a step trains on its batch, in one pass; of shared weights only.
        average: Whether their gradients are averaged rather than summed.
    """

    paths: int = 1
    average: bool = False

    what: ClassVar[str] = "warm-up"

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            InputError: One is out of its range.
        """
        super().__post_init__()
        if self.paths < 1:
            raise InputError(f"warm-up: paths must be at least 1, got {self.paths}")

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
        if self.paths == 1:  # as warm-ups were described before there were several
            del settings["paths"], settings["average"]
        return settings


def warm_up_alone(module: nn.Module, config: WarmUp, source: Source) -> None:
    """Train one network, in train mode and in place."""
    module.train()

    def backward(batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        loss = nn.functional.cross_entropy(module(batch[0]), batch[1])
        loss.backward()
        return loss.detach()

    trainer = Trainer(module, backward, config)
    while trainer.step < config.steps:
        trainer.take(source.take(config, trainer.step))


def warm_up_supernet(
    supernet: Supernet[Any],
    space: SearchSpace[Any],
    config: WarmUp,
    source: Source,
    *,
    settings: dict[str, Any],
    checkpoint: Path | None = None,
    progress: Progress | None = None,
) -> None:
    """Train shared weights in place, one or more random architectures a step.

    Args:
        supernet: The weights.
        space: Whose architectures are sampled.
        config: The warm-up.
        source: Of its images.
        settings: All that the result depends on, as JSON can hold it; kept in the checkpoint.
        checkpoint: A safetensors file, written every few seconds and at the end, never half. If
            there is one of the same settings, the warm-up goes on from it.
        progress: Called after each step with (steps taken, steps in all).

    Raises:
        InputError: The checkpoint is damaged, of other settings, or cannot be written.
    """
    run(
        supernet,
        config,
        source,
        Uniform(space, seed=source.seed, paths=config.paths),
        CrossEntropy(average=config.average),
        settings=settings,
        checkpoint=checkpoint,
        progress=progress,
    )
