"""Distillation between paths, and between the supernets of a split space."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sigeo.errors import InputError
from sigeo.spaces import Region, SearchSpace, Supernet
from sigeo.supernet.buffers import kept_buffers
from sigeo.supernet.many import add_joint_gradients
from sigeo.supernet.objectives import Objective, smoothed_cross_entropy
from sigeo.supernet.samplers.base import draw_connected, generator
from sigeo.supernet.settings import Batch


def divergence(teacher: Tensor, student: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Kullback-Leibler divergence of predictions, ``KL(teacher || student)``, mean over the batch.

    Times the squared temperature, so that gradients keep their size (Hinton et al., 2015). Nothing
    flows to the teacher.

    Args:
        teacher: Logits [B, classes].
        student: Logits [B, classes].
        temperature: Both logits are divided by it.
    """
    target = F.log_softmax(teacher.detach() / temperature, dim=-1)
    answer = F.log_softmax(student / temperature, dim=-1)
    mean = F.kl_div(answer, target, reduction="batchmean", log_target=True)
    return mean * temperature**2


def mutual_distillation(
    logits: Tensor,
    labels: Tensor,
    *,
    parent: Tensor | None = None,
    siblings: Sequence[Tensor] = (),
    temperature: float = 1.0,
    label_smoothing: float = 0.0,
) -> Tensor:
    """The loss of one of several children of a split (search-space mutual distillation).

    ``CE(z, y) + KL(parent || z) + mean over siblings of KL(sibling || z)``, each term with weight
    1 (HEP-NAS, arXiv 2412.10723). Nothing flows to the teachers.

    Args:
        logits: Of the child [B, classes].
        labels: [B].
        parent: Logits of the supernet before the split; None for no such term.
        siblings: Logits of the other children; none for no such term.
        temperature: Of the divergences.
        label_smoothing: Of the cross-entropy.

    Raises:
        InputError: A share of smoothing that is not from 0 to 1.
    """
    loss = smoothed_cross_entropy(label_smoothing)(logits, labels)
    if parent is not None:
        loss = loss + divergence(parent, logits, temperature=temperature)
    if siblings:
        terms = [divergence(s, logits, temperature=temperature) for s in siblings]
        loss = loss + torch.stack(terms).mean()
    return loss


@dataclass(frozen=True)
class Teacher:
    """A supernet that teaches, and which of its paths does.

    Attributes:
        supernet: Runs in the mode that it is in, without gradients; its running statistics stay
            as they are.
        path: (the student's path, step) to the teacher's; None for the same path.
    """

    supernet: Supernet[Any]
    path: Callable[[Any, int], Any] | None = None

    @classmethod
    def of_region(
        cls, supernet: Supernet[Any], space: SearchSpace[Any], region: Region[Any], *, seed: int
    ) -> Teacher:
        """One that runs a random path of a region at each step, as a sibling does."""
        return cls(supernet, lambda _, step: draw_connected(space, region, generator(seed, step)))

    def begin(self, step: int, place: int) -> None:
        """Let scheduled dropout follow from the step, at the rates of a training's last step.

        Args:
            step: Of the student's training.
            place: The teacher's among several, from 0 on: each draws its own.
        """
        if hasattr(self.supernet, "start_step"):
            self.supernet.start_step(step, step + 1, -1 - place)  # no student's seed

    @torch.no_grad()
    def logits(self, inputs: Tensor, path: Any, step: int) -> Tensor:
        """[B, classes]."""
        chosen = path if self.path is None else self.path(path, step)
        module: nn.Module = self.supernet  # type: ignore[assignment]
        with kept_buffers(module):
            return self.supernet(inputs, chosen)


class MutualDistillation(Objective):
    """Every path by `mutual_distillation`, with teachers as they are at the step.

    A sibling does not hold the student's path; `Teacher.of_region` runs one of its own.
    """

    name = "mutual_distillation"

    def __init__(
        self,
        parent: Teacher | None = None,
        siblings: Sequence[Teacher] = (),
        *,
        temperature: float = 1.0,
        label_smoothing: float = 0.0,
    ):
        """Set it up.

        Args:
            parent: The supernet before the split; None for none.
            siblings: The other children; may be none.
            temperature: Of the divergences.
            label_smoothing: Of the cross-entropy.

        Raises:
            InputError: No teacher at all, a temperature that is not positive, or a share of
                smoothing that is not from 0 to 1.
        """
        if parent is None and not siblings:
            raise InputError("mutual_distillation: expected a parent or siblings, got neither")
        self.parent, self.siblings = parent, tuple(siblings)
        self.temperature = positive(temperature, "mutual_distillation: temperature")
        smoothed_cross_entropy(label_smoothing)  # which refuses a wrong share
        self.label_smoothing = label_smoothing

    def forwards(self, paths: int) -> int:
        """One pass a path and teacher."""
        return paths * (len(self.siblings) + (self.parent is not None))

    def __call__(
        self, supernet: Supernet[Any], paths: Sequence[Any], batch: Batch, step: int
    ) -> Tensor:
        """Add the gradients of all paths; their mean loss."""
        inputs, labels = batch
        teaching = (*self.siblings, *([] if self.parent is None else [self.parent]))
        for place, teacher in enumerate(teaching):
            if teacher.supernet is not supernet:  # whose step has begun
                teacher.begin(step, place)
        teachers = [
            (
                None if self.parent is None else self.parent.logits(inputs, path, step),
                [sibling.logits(inputs, path, step) for sibling in self.siblings],
            )
            for path in paths
        ]

        def losses(outputs: Tensor) -> Tensor:
            terms = [
                mutual_distillation(
                    logits,
                    labels,
                    parent=parent,
                    siblings=siblings,
                    temperature=self.temperature,
                    label_smoothing=self.label_smoothing,
                )
                for logits, (parent, siblings) in zip(outputs, teachers, strict=True)
            ]
            return torch.stack(terms)

        return add_joint_gradients(supernet, paths, inputs, losses).mean()

    def describe(self) -> dict[str, Any]:
        """Name and settings; the teachers' weights are the caller's to describe."""
        return {
            "name": self.name,
            "parent": self.parent is not None,
            "siblings": len(self.siblings),
            "temperature": self.temperature,
            "label_smoothing": self.label_smoothing,
        }


class InPlaceDistillation(Objective):
    """The first path on the labels, all others on its predictions alone.

    For `Sandwich`, whose first path is the largest (Yu et al., BigNAS, ECCV 2020).
    """

    name = "in_place_distillation"

    def __init__(self, *, temperature: float = 1.0, label_smoothing: float = 0.0):
        """Set it up.

        Args:
            temperature: Of the divergence.
            label_smoothing: Of the first path's cross-entropy.

        Raises:
            InputError: A temperature that is not positive, or a share of smoothing that is not from
                0 to 1.
        """
        self.temperature = positive(temperature, "in_place_distillation: temperature")
        self.label_smoothing = label_smoothing
        self._loss = smoothed_cross_entropy(label_smoothing)

    def __call__(
        self, supernet: Supernet[Any], paths: Sequence[Any], batch: Batch, step: int
    ) -> Tensor:
        """Add the gradients of all paths; the first one's loss."""
        inputs, labels = batch

        def losses(outputs: Tensor) -> Tensor:
            first, *others = outputs
            told = [divergence(first, other, temperature=self.temperature) for other in others]
            return torch.stack([self._loss(first, labels), *told])

        return add_joint_gradients(supernet, paths, inputs, losses)[0]

    def describe(self) -> dict[str, Any]:
        """Name and settings."""
        settings = {"temperature": self.temperature, "label_smoothing": self.label_smoothing}
        return {"name": self.name, **settings}


def positive(value: float, what: str) -> float:
    """A number above 0.

    Raises:
        InputError: It is not.
    """
    if not value > 0:
        raise InputError(f"{what} must be above 0, got {value}")
    return value
