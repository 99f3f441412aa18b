"""The best paths known, by their latest scores."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Iterator
from typing import Generic, TypeVar

from sigeo.errors import InputError

A = TypeVar("A", bound=Hashable)


class CandidatePool(Generic[A]):
    """Architectures with scores, each once; lower scores are better, and the worst are dropped.

    Attributes:
        size: Architectures that `cut` leaves at most.
        memory: Share of the earlier score in a new one.
    """

    def __init__(self, size: int, *, memory: float = 0.0):
        """Make an empty pool.

        Args:
            size: At least 1.
            memory: 0 keeps the latest score alone; below 1.

        Raises:
            InputError: A number out of its range.
        """
        if size < 1 or not 0 <= memory < 1:
            raise InputError(
                f"pool: size must be at least 1 and memory from 0 to below 1, got {size}, {memory}"
            )
        self.size, self.memory = size, memory
        self._scores: dict[A, float] = {}

    def __len__(self) -> int:
        """Architectures in it."""
        return len(self._scores)

    def __contains__(self, arch: object) -> bool:
        """Whether an architecture is in it."""
        return arch in self._scores

    def __iter__(self) -> Iterator[A]:
        """The architectures, after `cut` the best first."""
        return iter(self._scores)

    def items(self) -> Iterable[tuple[A, float]]:
        """Architectures with their scores."""
        return self._scores.items()

    def put(self, arch: A, score: float) -> None:
        """Add an architecture or refresh its score; a score that is not finite takes it out."""
        if not math.isfinite(score):
            self._scores.pop(arch, None)
        elif self.memory and arch in self._scores:
            self._scores[arch] = self.memory * self._scores[arch] + (1 - self.memory) * score
        else:
            self._scores[arch] = score

    def cut(self) -> None:
        """Sort, and drop the worst beyond the size; of equal scores the earlier stays."""
        ordered = sorted(self._scores.items(), key=lambda item: item[1])
        self._scores = dict(ordered[: self.size])

    def replace(self, items: Iterable[tuple[A, float]]) -> None:
        """Take other contents, in their order."""
        self._scores = dict(items)
