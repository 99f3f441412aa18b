"""What one-shot and few-shot systems are tried on: networks, images, and how much training."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from sigeo.capture import Batches, image_format
from sigeo.data import ImageData
from sigeo.errors import InputError
from sigeo.kinds import check_fields, checked_seed
from sigeo.scoring.devices import parse_device, put_on
from sigeo.scoring.shared_weights import make_supernet
from sigeo.scoring.sized import check_sized
from sigeo.spaces import SearchSpace, Supernet
from sigeo.supernet import Augment, Source, Training
from sigeo.supernet.settings import Batch

FORWARD_SHARE = 1 / 3
"""What an image that only goes forward counts for, of one that goes forward and backward."""


@dataclass(frozen=True)
class Study:
    """The same ground for every system.

    Attributes:
        space: The networks, sized for the data.
        data: Its training images are divided once: some are held out, to evaluate on.
        budget: Processed images: one image forward and backward through one path is one, and one
            that goes forward only a third.
        held_out: Training images that are never trained on.
        settings: Of every `Training`: ``batch_size``, ``lr``, ``schedule`` and so on.
        augment: What is done to training images; None for nothing.
        device: Where.
    """

    space: SearchSpace[Any]
    data: ImageData
    budget: int
    held_out: int = 1000
    settings: dict[str, Any] = field(default_factory=dict)
    augment: Augment | None = None
    device: str | torch.device = "cpu"

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            InputError: Images of other sizes than the networks take, or too few; a setting that
                `Training` does not have; a budget that pays for no step; or no such device.
        """
        check_fields(self, "study")
        parse_device(self.device)
        check_sized(self.space, self.data)
        known = [one.name for one in fields(Training) if one.name != "images"]
        if other := [name for name in self.settings if name not in known]:
            raise InputError(
                f"study: settings must be some of {', '.join(known)}, got {', '.join(other)}"
            )
        size = self.batch_size
        if self.held_out < 2 or len(self.data.train) < self.held_out + size:
            raise InputError(
                f"study: holding {self.held_out} images out needs as many and a batch of {size} "
                f"more, {self.data.name} has {len(self.data.train)}"
            )
        if self.budget < size:
            raise InputError(
                f"study: a budget must pay for at least one batch of {size}, got {self.budget}"
            )

    @property
    def batch_size(self) -> int:
        """Images a step."""
        return Training(0, **self.settings).batch_size

    @property
    def keep(self) -> int:
        """Checkpoints of the trainings at the end over which evaluations are averaged."""
        return Training(0, **self.settings).keep

    @property
    def lr(self) -> float:
        """The first step size."""
        return Training(0, **self.settings).lr

    def supernet(self, seed: int, *, width: float = 1.0, **options: Any) -> Supernet[Any]:
        """Weights as drawn, of all channels or a share of them.

        Args:
            seed: Of the draw.
            width: The share.
            **options: Of the space's supernet.

        Raises:
            InputError: The space has no narrower networks, or its supernet no such option.
        """
        supernet = make_supernet(narrowed(self.space, width), seed, options)
        put_on(torch.device(self.device), supernet, self._layout)
        return supernet

    def source(self, seed: int) -> Source:
        """The training images in the order of a seed.

        Raises:
            InputError: The seed is none.
        """
        seed = checked_seed(seed)
        places = self._places()[: -self.held_out]
        order = torch.randperm(
            len(places), generator=torch.Generator().manual_seed(seed), device="cpu"
        )
        return Source(places[order], self._batch, seed, self.augment)

    def validation(self, size: int = 250) -> list[Batch]:
        """The images held out, the same for every seed, in batches."""
        return [self._batch(p) for p in self._places()[-self.held_out :].split(size) if len(p) > 1]

    def metric_batches(self, seed: int, size: int, count: int) -> Batches:
        """Training batches that metrics measure on, from the end of a seed's order.

        Raises:
            InputError: There are not so many images.
        """
        module: Any = self.supernet(seed)
        return Batches(self.calibration(seed, count, size), module, torch.device(self.device))

    def calibration(self, seed: int, count: int, size: int | None = None) -> list[Batch]:
        """Training batches from the end of a seed's order, as many as there are of those asked for.

        Args:
            seed: Of the order.
            count: How many.
            size: Images of one; None for those of a step.

        Raises:
            InputError: There are not so many images.
        """
        order = self.source(seed).order
        size = self.batch_size if size is None else size
        if len(order) < size:
            raise InputError(f"study: a batch needs {size} training images, got {len(order)}")
        count = min(count, len(order) // size)
        return [self._batch(p) for p in order.flip(0)[: size * count].view(count, size)]

    def training(self, steps: int, **own: Any) -> Training:
        """The settings of so many steps, some of them not the study's."""
        available = len(self.data.train) - self.held_out
        return Training.of_steps(steps, available, **{**self.settings, **own})

    def describe(self) -> dict[str, Any]:
        """All that results depend on beside system and seed, as JSON can hold it."""
        data = {"name": self.data.name, "fingerprint": self.data.fingerprint}
        return {
            "space": self.space.describe(),
            "data": data,
            "budget": self.budget,
            "held_out": self.held_out,
            "training": Training(0, **self.settings).describe(),
            "augment": None if self.augment is None else self.augment.describe(),
            "device": torch.device(self.device).type,
        }

    def _places(self) -> Tensor:
        return self.data.order(0)

    def _batch(self, places: Tensor) -> Batch:
        images, labels = self.data.batch(places)
        return images.to(self.device, memory_format=self._layout), labels.to(self.device)

    @cached_property
    def _layout(self) -> torch.memory_format:
        """The order of images that the space's networks take."""
        module: Any = make_supernet(self.space, 0, {})
        return image_format(module, torch.device(self.device))


def narrowed(space: SearchSpace[Any], width: float) -> SearchSpace[Any]:
    """The same architectures in networks of a share of the channels, rounded, at least one.

    Raises:
        InputError: A share out of (0, 1], or a space that has no narrower networks.
    """
    if width == 1:
        return space
    if not 0 < width <= 1:
        raise InputError(f"width: must be above 0 and at most 1, got {width}")
    make = getattr(space, "narrowed", None)
    if make is None:
        raise InputError(
            f"width: {space.name} has no narrower networks of the same architectures, as "
            "nasbench201 and mobilenet have"
        )
    narrow: SearchSpace[Any] = make(width)
    return narrow
