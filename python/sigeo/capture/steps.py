"""The optimiser steps that some proxies take between their batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import nn

from sigeo.errors import InputError
from sigeo.kinds import check_fields

Step = Callable[[], None]

LARGEST_STEP = 1e38
"""Larger ones go beyond the numbers that weights in float32 are multiplied with."""


@dataclass(frozen=True)
class SGD:
    """Plain gradient descent, as SiGeo's computer-vision code steps (lr 1).

    Attributes:
        lr: Step size.
    """

    lr: float = 1.0

    changes_gradients = False

    def __post_init__(self) -> None:
        """Check the step size.

        Raises:
            InputError: It is no number from 0 to `LARGEST_STEP`.
        """
        _check_steps(self, "sgd", self.lr)

    def start(self, parameters: Iterable[nn.Parameter]) -> Step:
        """A function that takes the next step from the gradients that are there."""
        optimizer = torch.optim.SGD(parameters, lr=self.lr)

        def step() -> None:
            optimizer.step()

        return step


@dataclass(frozen=True)
class ClippedAdagrad:
    """Adagrad on gradients clipped by their global norm, as SiGeo's recommendation code steps.

    The gradients are clipped in place, before they are measured. The step size warms up linearly
    to ``peak``: step k of the few that a proxy takes uses ``max(floor, peak * k / warmup)``.

    Attributes:
        peak: Step size at the end of the warm-up.
        warmup: Steps of the warm-up.
        floor: Smallest step size.
        eps: Adagrad's.
        max_norm: Of all gradients together.
    """

    peak: float = 0.04
    warmup: int = 50
    floor: float = 1e-8
    eps: float = 1e-2
    max_norm: float = 5.0

    changes_gradients = True

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            InputError: One is out of its range.
        """
        _check_steps(self, "adagrad", self.peak, self.floor)
        if self.warmup < 1:
            raise InputError(f"adagrad: warmup must be at least 1, got {self.warmup}")

    def start(self, parameters: Iterable[nn.Parameter]) -> Step:
        """A function that takes the next step from the gradients that are there."""
        chosen = list(parameters)
        optimizer = torch.optim.Adagrad(chosen, lr=self.floor, eps=self.eps)
        taken = 0

        def step() -> None:
            nonlocal taken
            torch.nn.utils.clip_grad_norm_(chosen, self.max_norm)
            for group in optimizer.param_groups:
                group["lr"] = max(self.floor, self.peak * taken / self.warmup)
            optimizer.step()
            taken += 1

        return step


Steps = SGD | ClippedAdagrad


def _check_steps(steps: Steps, name: str, *sizes: float) -> None:
    check_fields(steps, name)
    for size in sizes:
        if not 0 <= size <= LARGEST_STEP:
            raise InputError(f"{name}: step sizes must be from 0 to {LARGEST_STEP:g}, got {size}")
