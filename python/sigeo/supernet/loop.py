"""Training of shared weights: any sampler, any objective, killed at any moment and gone on with."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sigeo.capture.state import device_of
from sigeo.errors import InputError, check_kind
from sigeo.kinds import named_arguments
from sigeo.spaces import Supernet
from sigeo.supernet.checkpoint import (
    OtherSettings,
    TrainingState,
    Weights,
    difference,
    load_checkpoint,
    load_weights,
    save_checkpoint,
)
from sigeo.supernet.objectives import CrossEntropy, LossHook, Objective
from sigeo.supernet.randomness import drawing
from sigeo.supernet.samplers import Sampler
from sigeo.supernet.settings import Batch, Progress, Source, Training
from sigeo.supernet.trainer import Trainer

_SECONDS_BETWEEN_SAVES = 10.0


@dataclass
class Budget:
    """What a training has cost.

    Attributes:
        trained: Processed images: one image forward and backward through one path is one.
        evaluated: Images that went forward only, through one path each: teachers, candidates.
    """

    trained: int = 0
    evaluated: int = 0

    def __add__(self, other: Budget) -> Budget:
        """Both together."""
        return Budget(self.trained + other.trained, self.evaluated + other.evaluated)


@named_arguments("train_supernet")
def train_supernet(
    supernet: Supernet[Any],
    config: Training,
    source: Source,
    sampler: Sampler[Any],
    objective: LossHook | None = None,
    *,
    settings: Mapping[str, Any],
    checkpoint: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
    kept: list[Weights] | None = None,
) -> Budget:
    """Train shared weights in place.

    Args:
        supernet: The weights.
        config: How long, and the optimiser.
        source: Of the images.
        sampler: Of the paths of each step.
        objective: Adds a step's gradients: an `Objective`, or a function of (supernet, paths,
            batch, step) that keeps nothing between steps; cross-entropy if left out.
        settings: All that the result depends on beside what the parts say of themselves, as JSON
            can hold it: space, data, seed of the weights, a function as objective.
        checkpoint: A safetensors file, written every few seconds and at the end, never half. If
            there is one of the same settings, the training goes on from it.
        progress: Called after each step with (steps taken, steps in all).
        kept: Gets the weights at the ends of the earlier passes that ``config.keep`` asks for,
            oldest first, on the CPU; fewer where the sampler ends the training in an earlier pass
            than the ``config.keep``-th.

    Returns:
        What it has cost, with the steps before an interruption.

    Raises:
        InputError: The sampler is no `Sampler`; the checkpoint is damaged, of other settings, or
            cannot be written; the settings are not what JSON can hold; or a loss or the weights are
            not finite, which is looked at every few seconds and at the end: the checkpoint is then
            the last one before.
    """
    check_kind(sampler, Sampler, "train: sampler")
    objective = CrossEntropy() if objective is None else objective
    parts: dict[str, Any] = {"training": config, "sampler": sampler, "objective": objective}
    if source.augment is not None:
        parts["augment"] = source.augment
    described = {name: p.describe() for name, p in parts.items() if hasattr(p, "describe")}
    complete = _as_kept({**settings, **described, "order": source.seed})
    return run(
        supernet,
        config,
        source,
        sampler,
        objective,
        settings=complete,
        checkpoint=checkpoint,
        progress=progress,
        kept=kept,
    )


def _as_kept(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings as they come back from a checkpoint: tuples are lists there.

    Raises:
        InputError: JSON cannot hold them.
    """
    try:
        kept: dict[str, Any] = json.loads(json.dumps(settings))
    except (TypeError, ValueError) as error:
        raise InputError(f"settings: must be what JSON can hold ({error})") from None
    return kept


def run(
    supernet: Supernet[Any],
    config: Training,
    source: Source,
    sampler: Sampler[Any],
    objective: LossHook,
    *,
    settings: dict[str, Any],
    checkpoint: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
    kept: list[Weights] | None = None,
) -> Budget:
    """As `train_supernet`, with all settings given.

    Raises:
        InputError: As `train_supernet`.
    """
    training = _Run(supernet, config, source, sampler, objective)
    path = None if checkpoint is None else Path(checkpoint)
    if path is not None and path.exists():
        training.resume(path, settings)
    saved = time.monotonic()
    while not training.done:
        training.take()
        if progress is not None:
            progress(training.trainer.step, config.steps)
        due = time.monotonic() - saved > _SECONDS_BETWEEN_SAVES
        if due or training.done:
            training.check()  # first: broken weights must not take the place of good ones
            if path is not None:
                training.save(path, settings)
            saved = time.monotonic()
    if kept is not None:
        kept.extend(training.kept)
    return training.budget


class _Run:
    """One training: the parts that move, and where they stand."""

    def __init__(
        self,
        supernet: Supernet[Any],
        config: Training,
        source: Source,
        sampler: Sampler[Any],
        objective: LossHook,
    ):
        self.supernet, self.config, self.source = supernet, config, source
        self.sampler, self.objective = sampler, objective
        self.module: nn.Module = supernet  # type: ignore[assignment]
        self.module.train()
        if isinstance(objective, Objective):
            objective.start(supernet)
        self.trainer = Trainer(self.module, self._backward, config)
        self.budget = Budget()
        self.kept: list[Weights] = []
        self._finite: list[Tensor] = []  # of each step since the last check; read then, as it waits

    @property
    def done(self) -> bool:
        """Whether there is no further step."""
        return self.trainer.step >= self.config.steps or self.sampler.done

    def take(self) -> None:
        """One step.

        Raises:
            InputError: The objective returns no tensor.
        """
        step = self.trainer.step
        if self.config.keep > 1 and step > 0 and step % self.config.steps_per_epoch == 0:
            self._keep()
        if hasattr(self.supernet, "start_step"):
            self.supernet.start_step(step, self.config.steps, self.source.seed)
        loss = self.trainer.take(self.source.take(self.config, step))
        if not isinstance(loss, Tensor):
            raise InputError(
                f"objective: must return the loss as a tensor, got {type(loss).__name__}"
            )
        self._finite.append(loss.isfinite().all())

    def check(self) -> None:
        """See that the losses since the last check and the weights are finite.

        Raises:
            InputError: They are not.
        """
        end = self.trainer.step
        losses = torch.stack(self._finite).tolist() if self._finite else []
        if not all(losses):
            step = end - len(losses) + losses.index(False) + 1
            raise self._diverged(f"the loss of step {step}")
        self._finite.clear()
        if not all(bool(p.isfinite().all()) for p in self.module.parameters()):
            raise self._diverged(f"a weight after step {end}")

    def _diverged(self, what: str) -> InputError:
        bound = ", or bound the gradients (clip)" if self.config.clip is None else ""
        return InputError(
            f"{self.config.what}: {what} of {self.config.steps} is not finite; take a smaller lr, "
            f"it is {self.config.lr:g}{bound}"
        )

    def _keep(self) -> None:
        """Keep the weights at the end of a pass, now that there is a step after it.

        A sampler may end the training after any step, so every pass may be one of the last.
        """
        state = self.module.state_dict()
        self.kept.append({n: t.detach().to("cpu", copy=True) for n, t in state.items()})
        del self.kept[: -(self.config.keep - 1)]

    def _backward(self, batch: Batch, step: int) -> Tensor:
        with drawing(f"{self.source.seed}/{step}", device_of(self.module)):
            return self._gradients(batch, step)

    def _gradients(self, batch: Batch, step: int) -> Tensor:
        before = self.sampler.evaluated
        paths = self.sampler.paths(step)
        self.budget.evaluated += self.sampler.evaluated - before
        self.budget.trained += len(paths) * len(batch[0])
        if isinstance(self.objective, Objective):
            forwards = self.objective.forwards(len(paths))
            self.budget.evaluated += forwards * len(batch[0])
        return self.objective(self.supernet, paths, batch, step)

    def save(self, path: Path, settings: dict[str, Any]) -> None:
        """Write a checkpoint."""
        state = self.trainer.state()
        if isinstance(self.objective, Objective):
            state.memory.update(self.objective.memory())
        state.progress.update(sampler=self.sampler.state(), budget=asdict(self.budget))
        save_checkpoint(path, replace(state, kept=self.kept), settings)

    def resume(self, path: Path, settings: dict[str, Any]) -> None:
        """Go on from a checkpoint.

        Raises:
            InputError: It is damaged, or of another network.
            OtherSettings: It is of other settings.
            OutOfMemoryError: A device has no room for it.
        """
        state, found = load_checkpoint(path)
        if found != settings:
            raise OtherSettings(
                f"checkpoint {path}: made with other settings than this {self.config.what} "
                f"({difference(found, settings)}); choose another folder or remove it"
            )
        load_weights(self.module, state, path)
        try:
            self._go_on(state)
        except torch.OutOfMemoryError:
            raise
        except (AttributeError, LookupError, TypeError, ValueError, RuntimeError) as error:
            what = " ".join(f"{type(error).__name__} {error}".split())[:200]
            raise InputError(
                f"checkpoint {path}: damaged, this {self.config.what} cannot go on from it ({what})"
            ) from error

    def _go_on(self, state: TrainingState) -> None:
        self.trainer.resume(state)
        self.kept = list(state.kept)
        self.sampler.resume(state.progress.get("sampler", {}))
        if isinstance(self.objective, Objective):
            self.objective.resume(state.memory)
        if "budget" in state.progress:
            self.budget = Budget(**state.progress["budget"])
        else:  # of a warm-up before budgets were counted: every step had as many paths
            paths = len(self.sampler.paths(0))
            self.budget = Budget(trained=paths * self.config.images_of(state.step))
