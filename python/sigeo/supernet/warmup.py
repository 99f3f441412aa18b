"""The warm-up of sub-one-shot search: a little training, after which proxies say more.

A warm-up uses the first images of one seeded order of the training set, so a shorter warm-up's
images, batches and sampled paths are the beginning of a longer one's.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sigeo.errors import InputError
from sigeo.spaces import SearchSpace, Supernet
from sigeo.supernet.checkpoint import TrainingState, load_checkpoint, save_checkpoint
from sigeo.supernet.many import add_gradients

Batch = tuple[Tensor, Tensor]
Progress = Callable[[int, int], None]
_SECONDS_BETWEEN_SAVES = 10.0


@dataclass(frozen=True)
class WarmUp:
    """How long and how to train.

    Attributes:
        images: Number of training images, gone through ``epochs`` times.
        epochs: Passes over them.
        batch_size: Images a step.
        lr: Step size of SGD.
        schedule: "constant", or "cosine" down to 4 % of ``lr``.
        momentum: Of SGD, Nesterov's where it is not 0.
        weight_decay: Of SGD.
        clip: Largest norm of all gradients together; None for no bound.
        shuffle: Whether every pass after the first takes the images in another order.
        limit: Steps after which it ends, if the passes hold more; None for no such end.
        paths: Architectures that a step trains on its batch, in one pass; of shared weights only.
        average: Whether their gradients are averaged rather than summed.
    """

    images: int
    epochs: int = 1
    batch_size: int = 64
    lr: float = 0.025
    schedule: Literal["constant", "cosine"] = "constant"
    momentum: float = 0.9
    weight_decay: float = 5e-4
    clip: float | None = 5.0
    shuffle: bool = True
    limit: int | None = None
    paths: int = 1
    average: bool = False

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            InputError: One is out of its range.
        """
        for name, low in (("images", 0), ("epochs", 1), ("batch_size", 2), ("paths", 1)):
            if getattr(self, name) < low:
                raise InputError(
                    f"warm-up: {name} must be at least {low}, got {getattr(self, name)}"
                )
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise InputError(f"warm-up: lr must be above 0, got {self.lr}")

    @classmethod
    def of_steps(cls, steps: int, available: int, **settings: Any) -> WarmUp:
        """A warm-up of a number of steps, on as many of the images as they take.

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
                f"warm-up: steps must be at least 1 on at least 2 images, "
                f"got {steps} on {available}"
            )
        one_pass = cls(min(available, steps * size), **settings)
        epochs = -(-steps // one_pass.steps_per_epoch)
        return replace(one_pass, epochs=epochs, limit=steps)

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

    @property
    def steps_per_epoch(self) -> int:
        """Steps of one pass; a last batch of a single image is left out, batch norm needs two."""
        return self.images // self.batch_size + (self.images % self.batch_size >= 2)

    @property
    def steps(self) -> int:
        """Steps of the whole warm-up."""
        steps = self.epochs * self.steps_per_epoch
        return steps if self.limit is None else min(steps, self.limit)

    def lr_at(self, step: int) -> float:
        """The step size of a step."""
        if self.schedule == "constant":
            return self.lr
        low = 0.04 * self.lr
        return low + (self.lr - low) * (1 + math.cos(math.pi * step / max(1, self.steps))) / 2

    def indices(self, order: Tensor, step: int, seed: int) -> Tensor:
        """The images of a step, as places in the training set."""
        epoch, place = divmod(step, self.steps_per_epoch)
        images = order[: self.images]
        if epoch > 0 and self.shuffle:
            generator = torch.Generator().manual_seed(seed + epoch)
            images = images[torch.randperm(len(images), generator=generator)]
        return images[place * self.batch_size : (place + 1) * self.batch_size]

    def describe(self) -> dict[str, Any]:
        """All settings and the number of steps, as JSON can hold them."""
        return {**asdict(self), "steps": self.steps}


class Trainer:
    """Takes the steps of a warm-up; can stop after any step and go on from its state."""

    def __init__(
        self,
        module: nn.Module,
        backward: Callable[[Batch, int], Tensor],
        config: WarmUp,
    ):
        """Set up the optimiser.

        Args:
            module: Whose parameters are trained.
            backward: (batch, step) to the loss; adds its gradients to the parameters'.
            config: The warm-up.
        """
        self.module, self.backward, self.config = module, backward, config
        self.parameters = dict(module.named_parameters())
        self.optimizer = torch.optim.SGD(
            self.parameters.values(),
            lr=config.lr,
            momentum=config.momentum,
            nesterov=config.momentum > 0,
            weight_decay=config.weight_decay,
        )
        self.step = 0

    def take(self, batch: Batch) -> Tensor:
        """Train on one batch; returns its loss, not synchronised."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.lr_at(self.step)
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.backward(batch, self.step)
        if self.config.clip is not None:
            nn.utils.clip_grad_norm_(self.parameters.values(), self.config.clip)
        self.optimizer.step()
        self.step += 1
        return loss

    def state(self) -> TrainingState:
        """Weights, momentum and number of steps, not copied."""
        momentum = {
            name: buffer
            for name, parameter in self.parameters.items()
            if (buffer := self.optimizer.state[parameter].get("momentum_buffer")) is not None
        }
        return TrainingState(self.step, dict(self.module.state_dict()), momentum)

    def resume(self, state: TrainingState) -> None:
        """Go on where `state` was taken."""
        self.step = state.step
        self.module.load_state_dict(state.weights)
        for name, buffer in state.momentum.items():
            parameter = self.parameters[name]
            self.optimizer.state[parameter]["momentum_buffer"] = buffer.to(parameter.device)


def uniform_path(space: SearchSpace[Any], seed: int, step: int, path: int = 0) -> Any:
    """An architecture that a step trains: any whose output depends on its input, uniformly.

    Args:
        space: Where it is from.
        seed: Of the training.
        step: Of the training.
        path: Its number, where a step trains several.
    """
    rng = random.Random(f"{seed}/{step}/{path}" if path else f"{seed}/{step}")
    while True:
        arch = space.sample(rng)
        if space.connected(arch):
            return arch


@dataclass(frozen=True)
class Source:
    """Where the images of a warm-up come from.

    Attributes:
        order: The seeded order of the training set.
        batch: Places in the training set to images and labels, on the right device.
        seed: Of the order and of the sampled paths.
    """

    order: Tensor
    batch: Callable[[Tensor], Batch]
    seed: int


def single_loss(outputs: Tensor, labels: Tensor) -> Tensor:
    """The mean loss of a batch, with its gradients added to the parameters'; not synchronised."""
    loss = nn.functional.cross_entropy(outputs, labels)
    loss.backward()
    return loss.detach()


def warm_up_alone(module: nn.Module, config: WarmUp, source: Source) -> None:
    """Train one network, in train mode and in place."""
    module.train()
    trainer = Trainer(module, lambda batch, _: single_loss(module(batch[0]), batch[1]), config)
    while trainer.step < config.steps:
        trainer.take(source.batch(config.indices(source.order, trainer.step, source.seed)))


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
    module: nn.Module = supernet  # type: ignore[assignment]
    module.train()

    def backward(batch: Batch, step: int) -> Tensor:
        archs = [uniform_path(space, source.seed, step, path) for path in range(config.paths)]
        if len(archs) == 1:
            return single_loss(supernet(batch[0], archs[0]), batch[1])
        return add_gradients(supernet, archs, *batch, average=config.average).mean()

    trainer = Trainer(module, backward, config)
    if checkpoint is not None and checkpoint.exists():
        state, found = load_checkpoint(checkpoint)
        if found != settings:
            raise InputError(
                f"checkpoint {checkpoint}: made with other settings than this warm-up; "
                "choose another folder or remove it"
            )
        trainer.resume(state)
    saved = time.monotonic()
    while trainer.step < config.steps:
        trainer.take(source.batch(config.indices(source.order, trainer.step, source.seed)))
        if progress is not None:
            progress(trainer.step, config.steps)
        due = time.monotonic() - saved > _SECONDS_BETWEEN_SAVES
        if checkpoint is not None and (due or trainer.step == config.steps):
            save_checkpoint(checkpoint, trainer.state(), settings)
            saved = time.monotonic()
