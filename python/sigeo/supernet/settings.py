"""How long and how to train, and on which images."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, ClassVar, Literal, Protocol, TypeVar

import torch
from torch import Tensor

from sigeo.capture.steps import LARGEST_STEP
from sigeo.errors import InputError
from sigeo.kinds import check_fields, is_of, named_arguments

Batch = tuple[Tensor, Tensor]
Progress = Callable[[int, int], None]
"""Called with (how much is done, how much there is in all)."""
T = TypeVar("T", bound="Training")


@dataclass(frozen=True)
class Training:
    """Settings of a training by SGD.

    Attributes:
        images: Number of training images, gone through ``epochs`` times.
        epochs: Passes over them.
        batch_size: Images a step.
        lr: Step size of SGD.
        schedule: "constant"; "cosine" or "linear" down to ``floor`` times ``lr``; "steps" to a
            tenth at each of ``milestones``.
        momentum: Of SGD, Nesterov's where it is not 0.
        weight_decay: Of SGD.
        clip: Bound of the gradients, see ``clip_by``; None for no bound.
        shuffle: Whether every pass after the first takes the images in another order.
        limit: Steps after which it ends, if the passes hold more; None for no such end.
        floor: Where a schedule ends, as a share of ``lr``.
        rise: First steps, over which the step size grows linearly to ``lr``; the schedule follows.
        milestones: Of "steps": shares of the training, ascending.
        clip_by: Whether ``clip`` bounds the norm of all gradients together, or each value.
        decay_norms: Whether weight decay acts on norms and biases (tensors of one dimension) too.
        scales: Pairs of a prefix of parameters' names and the factor of their step size; of several
            that fit the first counts.
        autocast: Type of the operations that torch's autocast runs in lower precision; None for
            full precision.
        keep: Last passes at whose ends the weights are kept, to average evaluations over; the
            training's end counts as that of its last pass, whole or not.
    """

    images: int
    epochs: int = 1
    batch_size: int = 64
    lr: float = 0.025
    schedule: Literal["constant", "cosine", "linear", "steps"] = "constant"
    momentum: float = 0.9
    weight_decay: float = 5e-4
    clip: float | None = 5.0
    shuffle: bool = True
    limit: int | None = None
    floor: float = 0.04
    rise: int = 0
    milestones: tuple[float, ...] = (0.6, 0.8)
    clip_by: Literal["norm", "value"] = "norm"
    decay_norms: bool = True
    scales: tuple[tuple[str, float], ...] = ()
    autocast: Literal["bfloat16"] | None = None
    keep: int = 1

    what: ClassVar[str] = "training"
    # Left out of `describe` where they are as ever, so that older checkpoints' settings stay equal.
    _later: ClassVar[tuple[str, ...]] = (
        "floor",
        "rise",
        "milestones",
        "clip_by",
        "decay_norms",
        "scales",
        "autocast",
        "keep",
    )

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            InputError: One is out of its range.
        """
        check_fields(self, self.what)
        least = {"images": 0, "epochs": 1, "batch_size": 2, "rise": 0, "limit": 0, "keep": 1}
        for name, low in least.items():
            value = getattr(self, name)
            if value is not None and value < low:
                raise InputError(
                    f"{self.what}: {name} must be a whole number of at least {low}, got {value!r}"
                )
        self._check_numbers()
        for pair in self.scales:
            right = len(pair) == 2 and isinstance(pair[0], str) and is_of(pair[1], float)
            if not (right and 0 <= pair[1] < math.inf):
                raise InputError(
                    f"{self.what}: scales must be pairs of a prefix and a factor of at least 0, "
                    f"got {pair!r}"
                )
        if self.steps and self.keep > self.passes:  # of no step: settings of trainings to be made
            raise InputError(
                f"{self.what}: keep must be at most {self.passes}, its passes over {self.images} "
                f"images, got {self.keep}"
            )

    def _check_numbers(self) -> None:
        for name, right, expected in (
            ("lr", 0 < self.lr <= LARGEST_STEP, f"above 0 and at most {LARGEST_STEP:g}"),
            ("momentum", 0 <= self.momentum < 1, "from 0 to below 1"),
            ("weight_decay", 0 <= self.weight_decay <= LARGEST_STEP, f"from 0 to {LARGEST_STEP:g}"),
            ("clip", self.clip is None or self.clip > 0, "above 0, or none"),
            ("floor", 0 <= self.floor <= 1, "from 0 to 1"),
            (
                "milestones",
                all(0 <= share <= 1 for share in self.milestones)
                and list(self.milestones) == sorted(self.milestones),
                "ascending shares from 0 to 1",
            ),
        ):
            if not right:
                raise InputError(
                    f"{self.what}: {name} must be {expected}, got {getattr(self, name)}"
                )

    @classmethod
    @named_arguments("of_steps")
    def of_steps(cls: type[T], steps: int, available: int, **settings: Any) -> T:
        """A training of a number of steps, on as many of the images as they take.

        Args:
            steps: How many, 1 or more.
            available: Training images that there are; gone through again where they are too few.
            **settings: As for the class, ``batch_size`` for example.

        Raises:
            InputError: A number out of its range, or fewer images than two.
        """
        size = cls(0, **settings).batch_size
        if steps < 1 or available < 2:
            raise InputError(
                f"{cls.what}: steps must be at least 1 on at least 2 images, "
                f"got {steps} on {available}"
            )
        one_pass = cls(min(available, steps * size), **{**settings, "keep": 1})
        epochs = -(-steps // one_pass.steps_per_epoch)
        return replace(one_pass, epochs=epochs, limit=steps, keep=settings.get("keep", 1))

    @classmethod
    @named_arguments("of_budget")
    def of_budget(
        cls: type[T], processed: int, available: int, *, paths: int, **settings: Any
    ) -> T:
        """The training that a budget of processed images pays for, in full batches.

        An image that goes forward and backward through one path is one processed image, so steps of
        more paths are fewer.

        Args:
            processed: The budget.
            available: Training images that there are.
            paths: Of a step, as the sampler gives them; uniform ones of a warm-up take so many.
            **settings: As for the class.

        Raises:
            InputError: It does not pay for a step, or a number out of its range.
        """
        settings = cls._of_paths(paths, settings)
        size = cls(0, **settings).batch_size
        if paths < 1 or processed < paths * size:
            raise InputError(
                f"{cls.what}: a budget must pay for at least one step of {paths} paths on {size} "
                f"images, got {processed}"
            )
        return cls.of_steps(processed // (paths * size), available, **settings)

    @classmethod
    def _of_paths(cls, paths: int, settings: dict[str, Any]) -> dict[str, Any]:
        """Settings with which a step takes so many paths."""
        return settings

    @property
    def steps_per_epoch(self) -> int:
        """Steps of one pass; a last batch of a single image is left out, batch norm needs two."""
        return self.images // self.batch_size + (self.images % self.batch_size >= 2)

    @property
    def steps(self) -> int:
        """Steps of the whole training."""
        steps = self.epochs * self.steps_per_epoch
        return steps if self.limit is None else min(steps, self.limit)

    @property
    def passes(self) -> int:
        """Passes that its steps begin, whole or not."""
        return -(-self.steps // max(1, self.steps_per_epoch))

    def lr_at(self, step: int) -> float:
        """The step size of a step."""
        if step < self.rise:
            return self.lr * (step + 1) / self.rise
        return self.lr_of((step - self.rise) / max(1, self.steps - self.rise))

    def lr_of(self, done: float) -> float:
        """The step size where a share of the schedule is done."""
        if self.schedule == "constant":
            return self.lr
        if self.schedule == "steps":
            return self.lr * 0.1 ** sum(done >= share for share in self.milestones)
        low = self.floor * self.lr
        share = 1 - done if self.schedule == "linear" else (1 + math.cos(math.pi * done)) / 2
        return low + (self.lr - low) * share

    def indices(self, order: Tensor, step: int, seed: int) -> Tensor:
        """The images of a step, as places in the training set."""
        epoch, place = divmod(step, self.steps_per_epoch)
        images = order[: self.images]
        if epoch > 0 and self.shuffle:
            generator = torch.Generator().manual_seed(seed + epoch)
            images = images[torch.randperm(len(images), generator=generator, device="cpu")]
        return images[place * self.batch_size : (place + 1) * self.batch_size]

    def images_of(self, steps: int) -> int:
        """How many images the first steps take together."""
        epochs, rest = divmod(steps, max(1, self.steps_per_epoch))
        single = self.images % self.batch_size == 1
        return epochs * (self.images - single) + min(rest * self.batch_size, self.images)

    def describe(self) -> dict[str, Any]:
        """All settings and the number of steps, as JSON can hold them."""
        usual = {field.name: field.default for field in fields(self)}
        settings = {
            name: value
            for name, value in asdict(self).items()
            if name not in self._later or value != usual[name]
        }
        if "scales" in settings:
            settings["scales"] = [list(pair) for pair in self.scales]
        if "milestones" in settings:
            settings["milestones"] = list(self.milestones)
        return {**settings, "steps": self.steps}


class Augment(Protocol):
    """A random change of images that follows from the step alone."""

    def __call__(self, images: Tensor, step: int, view: int = 0) -> Tensor:
        """Changed images of the same shape; another ``view`` of the same step is another draw."""
        ...

    def describe(self) -> dict[str, Any]:
        """What it does, as JSON can hold it."""
        ...


@dataclass(frozen=True)
class Source:
    """Where the images of a training come from.

    Attributes:
        order: The seeded order of the training set.
        batch: Places in the training set to images and labels, on the right device.
        seed: Of the order and of the sampled paths.
        augment: What is done to a step's images; None for nothing.
    """

    order: Tensor
    batch: Callable[[Tensor], Batch]
    seed: int
    augment: Augment | None = None

    def __repr__(self) -> str:
        """The number of images and the seed, not the order."""
        changed = "" if self.augment is None else f", augment={self.augment!r}"
        return f"Source({len(self.order)} images, seed={self.seed}{changed})"

    def take(self, config: Training, step: int) -> Batch:
        """The batch of a step.

        Raises:
            InputError: There are fewer images than the training takes.
        """
        if config.images > len(self.order):
            raise InputError(
                f"{config.what}: takes {config.images} images, got a source of {len(self.order)}; "
                "of_steps and of_budget go through the ones there are again"
            )
        images, labels = self.batch(config.indices(self.order, step, self.seed))
        return images if self.augment is None else self.augment(images, step), labels
