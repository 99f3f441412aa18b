"""A part of a training's schedule."""

from __future__ import annotations

from dataclasses import dataclass

from sigeo.supernet import Training


@dataclass(frozen=True)
class Stretch(Training):
    """A training that is a part of a longer one's schedule.

    Attributes:
        begin: Share of the whole schedule that lies before it.
        end: Share at its end; the same where it stays at one place of the schedule.
    """

    begin: float = 0.0
    end: float = 1.0

    def lr_at(self, step: int) -> float:
        """The step size of a step, on the way from ``begin`` to ``end``.

        The steps of ``rise`` are the first of the whole schedule.
        """
        if self.end <= self.begin:
            rising = min(1.0, (step + 1) / self.rise) if self.begin == 0 and self.rise else 1.0
            return rising * self.lr_of(self.begin)
        whole = max(1, self.steps) / (self.end - self.begin)  # steps of the whole schedule
        place = self.begin * whole + step
        if place < self.rise:
            return self.lr * (place + 1) / self.rise
        return self.lr_of((place - self.rise) / max(1.0, whole - self.rise))
