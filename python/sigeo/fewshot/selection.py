"""Which checkpoint of several trainings is served: the one that ranks known networks best.

The one-shot to few-shot training scheme (arXiv 2206.05896) takes Kendall's tau of 30 networks that
were trained alone after every epoch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from sigeo.errors import InputError
from sigeo.fewshot.known import Known
from sigeo.spaces import Supernet
from sigeo.supernet import Budget, TrainingState, evaluate, load_checkpoint
from sigeo.supernet.checkpoint import OtherSettings, Weights, difference, save_checkpoint
from sigeo.supernet.settings import Batch
from sigeo.tables import kendall


@dataclass(frozen=True)
class Judged:
    """A supernet at the end of a pass of a training.

    Attributes:
        phase: Of the training.
        step: Its steps by then.
        tau: Kendall's tau-b of accuracies and known values; -1 where all accuracies are equal.
    """

    phase: str
    step: int
    tau: float


class Selection:
    """Judges a supernet at the ends of passes and keeps the weights with the highest tau.

    Of equal ones the last are kept.

    Attributes:
        judged: All that was judged, in its order, before a kill as well.
        weights: Those kept, on the CPU.
    """

    def __init__(
        self,
        known: Known,
        batches: Sequence[Batch],
        calibration: Sequence[Batch] = (),
        *,
        file: Path | None = None,
        settings: Mapping[str, Any] | None = None,
    ):
        """Begin, or go on from a file.

        Args:
            known: The networks and their values.
            batches: What accuracies are measured on.
            calibration: Training batches on which batch norm is recalibrated for each network; with
                none it uses the statistics of each batch.
            file: A safetensors file, written at every `judge`; None for nowhere.
            settings: What the trainings depend on, as JSON can hold it.

        Raises:
            InputError: The file is damaged.
            OtherSettings: It is of other settings or values.
        """
        self.known, self.batches, self.calibration, self.file = known, batches, calibration, file
        self.settings = {**(settings or {}), "known": known.fingerprint()}
        self.judged: list[Judged] = []
        self.weights: Weights = {}
        if file is not None and file.exists():
            self._resume(file)

    @property
    def images(self) -> int:
        """Images through one network each, forward only, that judging once takes."""
        each = sum(len(labels) for _, labels in (*self.batches, *self.calibration))
        return len(self.known.archs) * each

    @property
    def best(self) -> Judged:
        """Whose weights are kept."""
        return max(reversed(self.judged), key=lambda one: one.tau)

    def of(self, phase: str) -> list[Judged]:
        """Those of one training."""
        return [one for one in self.judged if one.phase == phase]

    def cost(self, phase: str, passes: int) -> Budget:
        """Images that it took to judge a training after each of its passes.

        Raises:
            InputError: It was not judged after each.
        """
        found = len(self.of(phase))
        if found != passes:  # a training that was done before is not taken again
            raise InputError(
                f"checkpoint {self.file}: expected {passes} passes of {phase}, got {found}; remove "
                "the other checkpoints of its folder as well"
            )
        return Budget(0, found * self.images)

    def judge(self, supernet: Supernet[Any], phase: str, step: int) -> None:
        """Judge weights, unless those of this step were judged before a kill.

        Raises:
            InputError: The file cannot be written.
        """
        if any(one.step == step for one in self.of(phase)):
            return
        found = evaluate(
            supernet,
            self.known.archs,
            self.batches,
            norm="recalibrated" if self.calibration else "batch",
            calibration=self.calibration,
        )
        tau = kendall(found.accuracy.numpy(), self.known.values)
        self.judged.append(Judged(phase, step, -1.0 if math.isnan(tau) else tau))
        if self.best is self.judged[-1]:
            module: nn.Module = supernet  # type: ignore[assignment]
            self.weights = {
                name: tensor.detach().to("cpu", copy=True)
                for name, tensor in module.state_dict().items()
            }
        if self.file is not None:
            # One file for both: weights and what tells them the best are never of different passes.
            rows = [[one.phase, one.step, one.tau] for one in self.judged]
            state = TrainingState(self.best.step, self.weights, {}, progress={"judged": rows})
            save_checkpoint(self.file, state, self.settings)

    def _resume(self, file: Path) -> None:
        state, found = load_checkpoint(file)
        if found != self.settings:
            raise OtherSettings(
                f"checkpoint {file}: made with other settings than this selection "
                f"({difference(found, self.settings)}); choose another folder or remove it"
            )
        try:
            rows = state.progress["judged"]
            self.judged = [Judged(str(phase), int(step), float(tau)) for phase, step, tau in rows]
        except (KeyError, TypeError, ValueError):
            raise InputError(f"checkpoint {file}: damaged, or something else") from None
        self.weights = state.weights
