"""A teacher that follows the student slowly, only where the student's path goes."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from sigeo.errors import InputError
from sigeo.spaces import Supernet


def used_parameters(supernet: Supernet[Any], arch: Any) -> list[str]:
    """Names of the shared parameters that a path runs through.

    Raises:
        InputError: The subnets of this supernet have weights of their own.
    """
    module: nn.Module = supernet  # type: ignore[assignment]
    own = {id(parameter) for parameter in supernet.subnet(arch).parameters()}
    names = [name for name, parameter in module.named_parameters() if id(parameter) in own]
    if len(names) < len(own):
        raise InputError(
            f"supernet: {type(supernet).__name__} does not say which of its weights a path uses, "
            "as its subnets are no views of them"
        )
    return names


def checked_decay(decay: float) -> float:
    """The share of the earlier mean, as it is.

    Raises:
        InputError: It is no share.
    """
    if not 0 <= decay <= 1:
        raise InputError(f"teacher: decay must be from 0 to 1, got {decay}")
    return decay


class MeanTeacher:
    """A copy of a supernet whose weights are exponential means of the student's over the steps.

    Only the weights on the given path move (Peng et al., Pi-NAS, ICCV 2021): the rest of the
    teacher stays stale. It runs without dropout, and its norms use the statistics of the batch.

    Attributes:
        supernet: The teacher; without gradients.
        decay: Share of the earlier mean in a new one.
    """

    def __init__(self, student: Supernet[Any], *, decay: float = 0.999):
        """Copy the student.

        Args:
            student: The supernet in training.
            decay: From 0 to 1.

        Raises:
            InputError: It is not.
        """
        self.student, self.decay = student, checked_decay(decay)
        self.supernet: Supernet[Any] = copy.deepcopy(student)
        self._module: nn.Module = self.supernet  # type: ignore[assignment]
        self._module.requires_grad_(False)
        for parameter in self._module.parameters():
            parameter.grad = None
        self._module.eval()
        for part in self._module.modules():
            if isinstance(part, nn.modules.batchnorm._BatchNorm):
                part.training, part.track_running_stats = True, False
                part.running_mean = part.running_var = part.num_batches_tracked = None

    @torch.no_grad()
    def update(self, arch: Any) -> None:
        """Move the weights on a path towards the student's."""
        student: nn.Module = self.student  # type: ignore[assignment]
        theirs, mine = dict(student.named_parameters()), dict(self._module.named_parameters())
        for name in used_parameters(self.student, arch):
            mine[name].lerp_(theirs[name].detach(), 1 - self.decay)

    @torch.no_grad()
    def __call__(self, inputs: Tensor, arch: Any) -> Tensor:
        """The teacher's outputs."""
        return self.supernet(inputs, arch)

    def memory(self) -> dict[str, Tensor]:
        """Its weights, not copied."""
        return dict(self._module.state_dict())

    def resume(self, memory: dict[str, Tensor]) -> None:
        """Go on where `memory` was taken."""
        self._module.load_state_dict(memory)
