"""Greedy paths: sample several, train the better ones (You et al., GreedyNAS, CVPR 2020)."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from sigeo.errors import InputError
from sigeo.kinds import checked_seed
from sigeo.spaces import Region, SearchSpace, Supernet
from sigeo.supernet.evaluation import check_batches, evaluate
from sigeo.supernet.samplers.base import describe_region, draw_connected, generator
from sigeo.supernet.samplers.pool import CandidatePool
from sigeo.supernet.settings import Batch

Score = Callable[[Sequence[Any]], Tensor]
"""Architectures to their scores [K], lower ones better."""


def confidence(sampled: int, kept: int, share: float) -> float:
    """How probable it is that all paths that are kept are good ones.

    ``sum over j >= kept of C(sampled, j) share^j (1 - share)^(sampled - j)``: at least ``kept`` of
    the ``sampled`` are good, and a perfect ranking keeps those.

    Args:
        sampled: Paths sampled.
        kept: The best of them, that are trained.
        share: Of good paths among those sampled from.

    Raises:
        InputError: ``kept`` is not from 0 to ``sampled``, or ``share`` not from 0 to 1.
    """
    if not 0 <= kept <= sampled or not 0 <= share <= 1:
        raise InputError(
            "confidence: expected 0 <= kept <= sampled and a share from 0 to 1, "
            f"got {kept}, {sampled}, {share}"
        )
    return math.fsum(
        math.comb(sampled, j) * share**j * (1 - share) ** (sampled - j)
        for j in range(kept, sampled + 1)
    )


class ValidationLoss:
    """The mean loss of paths on the same few held-out images, batch norm by the batch's statistics.

    Attributes:
        images: Of one path's score.
    """

    def __init__(self, supernet: Supernet[Any], batches: Sequence[Batch], *, at_once: int = 4):
        """Set it up.

        Args:
            supernet: The weights in training; a score is of the weights at that time.
            batches: Held-out images and labels.
            at_once: Paths in one pass.

        Raises:
            InputError: No batch, or no pairs.
        """
        check_batches(batches)
        self.supernet, self.batches, self.at_once = supernet, batches, at_once
        self.images = sum(len(inputs) for inputs, _ in batches)

    def __call__(self, archs: Sequence[Any]) -> Tensor:
        """Losses [K]."""
        return evaluate(self.supernet, archs, self.batches, at_once=self.at_once).loss


class Greedy:
    """Rounds of sampled paths, of which the best are trained, one a step.

    In each round ``sampled`` paths are scored on the same images and the best ``kept`` of them are
    trained in the steps that follow. All go into a pool of the best known; each sampled path comes
    from the pool with the probability `epsilon_at` of the step, else from the region, uniformly.
    Before step ``start`` paths are uniform and nothing is scored.

    Attributes:
        pool: The best paths known.
        turnover: Share of the pool that was replaced in the last full window; None before it.
    """

    def __init__(
        self,
        space: SearchSpace[Any],
        score: Score,
        *,
        seed: int,
        start: int,
        full: int,
        region: Region[Any] | None = None,
        sampled: int = 10,
        kept: int = 5,
        pool: int = 1000,
        epsilon: float = 0.8,
        memory: float = 0.0,
        accept: Callable[[Any], bool] | None = None,
        alpha: float | None = 0.08,
        window: int | None = None,
    ):
        """Set it up.

        Args:
            space: Whose architectures.
            score: Of paths; has an attribute ``images`` where it takes images to know it.
            seed: The draws follow from it, the step and the scores.
            start: First step with scores.
            full: Step from which ``epsilon`` is reached; it grows linearly from 0 at ``start``.
            region: The part of the space to draw from; None for all of it.
            sampled: Paths of a round.
            kept: Those that are trained.
            pool: Paths in the pool at most.
            epsilon: Probability in the end that a path comes from the pool.
            memory: Share of a path's earlier score in its new one, 0 for the latest score alone.
            accept: Which paths may enter the pool, by their cost for example; None for all.
            alpha: The training ends when no more than this share of the pool was replaced in a
                window; None for no such end.
            window: Rounds of a window; None for so many that they could fill the pool.

        Raises:
            InputError: A number out of its range, or a seed that is not one.
        """
        self.space, self.score, self.region = space, score, region
        self.seed = checked_seed(seed)
        self.start, self.full, self.epsilon = start, full, epsilon
        self.sampled, self.kept, self.accept, self.alpha = sampled, kept, accept, alpha
        self.pool: CandidatePool[Any] = CandidatePool(pool, memory=memory)
        self.window = -(-pool // max(1, sampled)) if window is None else window
        self._check()
        self.turnover: float | None = None
        self.evaluated = 0
        self._rounds = 0
        self._queue: list[Any] = []
        self._mark: frozenset[Any] = frozenset()

    def _check(self) -> None:
        for wrong, message in (
            (not 1 <= self.kept <= self.sampled, f"kept must be 1 to sampled, got {self.kept}"),
            (not 0 <= self.start <= self.full, f"start must be 0 to full, got {self.start}"),
            (not 0 <= self.epsilon <= 1, f"epsilon must be from 0 to 1, got {self.epsilon}"),
            (self.window < 1, f"window must be at least 1, got {self.window}"),
        ):
            if wrong:
                raise InputError(f"greedy: {message}")

    def epsilon_at(self, step: int) -> float:
        """The probability that a path comes from the pool: linear from ``start`` to ``full``."""
        if step < self.start:
            return 0.0
        if step >= self.full:
            return self.epsilon
        return self.epsilon * (step - self.start) / (self.full - self.start)

    @property
    def done(self) -> bool:
        """Whether the pool hardly changes, at the end of a round."""
        still = self.turnover is not None and self.alpha is not None and self.turnover <= self.alpha
        return still and not self._queue

    def paths(self, step: int) -> list[Any]:
        """The one architecture of a step."""
        if step < self.start:
            return [self._draw(generator(self.seed, step))]
        if not self._queue:
            self._queue = self._round(step)
        return [self._queue.pop(0)]

    def _round(self, step: int) -> list[Any]:
        """Sample, score, keep."""
        sampled = self._sample(generator(self.seed, step), self.epsilon_at(step))
        scores = torch.as_tensor(self.score(sampled), dtype=torch.float64, device="cpu").tolist()
        self.evaluated += len(sampled) * int(getattr(self.score, "images", 0))
        for arch, score in zip(sampled, scores, strict=True):
            if self.accept is None or self.accept(arch):
                self.pool.put(arch, score)
        self.pool.cut()
        self._rounds += 1
        members = frozenset(self.pool)
        if self._rounds % self.window == 0 and members:
            if self._mark:
                self.turnover = 1 - len(members & self._mark) / len(members)
            self._mark = members
        by_score = sorted(zip(scores, sampled, strict=True), key=lambda pair: _order(pair[0]))
        return [arch for _, arch in by_score[: self.kept]]

    def _sample(self, rng: random.Random, epsilon: float) -> list[Any]:
        """The paths of a round, none twice where there are others."""
        known = list(self.pool)
        chosen: dict[Hashable, None] = {}
        for _ in range(100 * self.sampled):
            pooled = bool(known) and rng.random() < epsilon
            chosen.setdefault(rng.choice(known) if pooled else self._draw(rng))
            if len(chosen) == self.sampled:
                break
        return list(chosen)

    def _draw(self, rng: random.Random) -> Any:
        return draw_connected(self.space, self.region or self.space, rng)

    def state(self) -> dict[str, Any]:
        """Pool, queue and counters."""
        return {
            "pool": [[str(arch), score] for arch, score in self.pool.items()],
            "queue": [str(arch) for arch in self._queue],
            "mark": sorted(map(str, self._mark)),
            "rounds": self._rounds,
            "turnover": self.turnover,
            "evaluated": self.evaluated,
        }

    def resume(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken."""
        self.pool.replace((self.space.parse(text), score) for text, score in state["pool"])
        self._queue = [self.space.parse(text) for text in state["queue"]]
        self._mark = frozenset(map(self.space.parse, state["mark"]))
        self._rounds, self.turnover = state["rounds"], state["turnover"]
        self.evaluated = state["evaluated"]

    def describe(self) -> dict[str, Any]:
        """Name and settings; of a rule of acceptance, that there is one."""
        names = ("seed", "start", "full", "sampled", "kept", "epsilon", "alpha", "window")
        return {
            "name": "greedy",
            **{name: getattr(self, name) for name in names},
            "pool": self.pool.size,
            "memory": self.pool.memory,
            "accept": self.accept is not None,
            "images": int(getattr(self.score, "images", 0)),
            **describe_region(self.region),
        }


def _order(score: float) -> tuple[bool, float]:
    """Sorts what is no number last."""
    return (math.isnan(score), score)
