"""Cross-path learning with a mean teacher (Peng et al., Pi-NAS, ICCV 2021), with labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sigeo.errors import InputError
from sigeo.spaces import Supernet
from sigeo.supernet.distillation import divergence, positive
from sigeo.supernet.objectives import Objective, smoothed_cross_entropy
from sigeo.supernet.settings import Augment, Batch
from sigeo.supernet.teacher import MeanTeacher, checked_decay


class TwoPaths(Objective):
    """What the objectives of two disjoint paths share: a mean teacher that follows on each path."""

    def __init__(self, views: Augment, decay: float):
        """Set it up.

        Args:
            views: Makes views of the images.
            decay: Of the mean teacher.

        Raises:
            InputError: A decay that is not from 0 to 1.
        """
        self.views, self.decay = views, checked_decay(decay)
        self._teacher: MeanTeacher | None = None

    def start(self, supernet: Supernet[Any]) -> None:
        """The teacher begins as the student."""
        self._teacher = MeanTeacher(supernet, decay=self.decay)

    @property
    def teacher(self) -> MeanTeacher:
        """The mean teacher.

        Raises:
            InputError: Training has not begun.
        """
        if self._teacher is None:
            raise InputError(f"{self.name}: has no teacher before `start`")
        return self._teacher

    def forwards(self, paths: int) -> int:
        """Both paths of the teacher."""
        return paths

    def taught(self, paths: Sequence[Any], views: Sequence[Tensor]) -> list[Tensor]:
        """The teacher's output of each path on its view, its weights on the path moved first.

        Raises:
            InputError: Another number of paths than two.
        """
        if len(paths) != 2:
            raise InputError(f"{self.name}: expected two paths a step, got {len(paths)}")
        outputs = []
        for path, view in zip(paths, views, strict=True):
            self.teacher.update(path)
            outputs.append(self.teacher(view, path))
        return outputs

    def memory(self) -> dict[str, Tensor]:
        """The teacher."""
        return {f"teacher/{name}": value for name, value in self.teacher.memory().items()}

    def resume(self, memory: dict[str, Tensor]) -> None:
        """Go on where `memory` was taken."""
        prefix = "teacher/"
        self.teacher.resume(
            {n.removeprefix(prefix): v for n, v in memory.items() if n.startswith(prefix)}
        )


class CrossPath(TwoPaths):
    """Two disjoint paths on two views of the batch, each taught by the other's mean teacher.

    ``CE(s0) + CE(s1) + KL(t1 || s0) + KL(t0 || s1)``, where ``s_i`` is the student's path i on view
    i and ``t_i`` the teacher's path i on view i, after the teacher's weights on path i have moved.
    It is the published self-supervised step (`contrastive.CrossPathContrast`) with labels in the
    place of negative samples. For `Disjoint` sampling.
    """

    name = "cross_path"

    def __init__(
        self,
        views: Augment,
        *,
        decay: float = 0.999,
        temperature: float = 1.0,
        label_smoothing: float = 0.0,
    ):
        """Set it up.

        Args:
            views: Makes the two views of the images.
            decay: Of the mean teacher.
            temperature: Of the divergences.
            label_smoothing: Of the cross-entropies.

        Raises:
            InputError: A temperature that is not positive, a decay or a share of smoothing that is
                not from 0 to 1.
        """
        super().__init__(views, decay)
        self.label_smoothing = label_smoothing
        self.temperature = positive(temperature, "cross_path: temperature")
        self._loss = smoothed_cross_entropy(label_smoothing)

    def __call__(
        self, supernet: Supernet[Any], paths: Sequence[Any], batch: Batch, step: int
    ) -> Tensor:
        """Add the gradients of the two paths; the sum of the four terms.

        Raises:
            InputError: Another number of paths.
        """
        inputs, labels = batch
        views = [self.views(inputs, step, view) for view in range(2)]
        taught = self.taught(paths, views)
        total = torch.zeros((), device=inputs.device)
        for view, path, teacher in zip(views, paths, reversed(taught), strict=True):
            logits = supernet(view, path)
            loss = self._loss(logits, labels)
            loss = loss + divergence(teacher, logits, temperature=self.temperature)
            loss.backward()
            total = total + loss.detach()
        return total

    def describe(self) -> dict[str, Any]:
        """Name and settings."""
        return {
            "name": self.name,
            "views": self.views.describe(),
            "decay": self.decay,
            "temperature": self.temperature,
            "label_smoothing": self.label_smoothing,
        }
