"""What models are made of, and their inputs."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

CLASSES = 5


def images(samples: int) -> tuple[Tensor, ...]:
    return (torch.randn(samples, 3, 8, 8, dtype=torch.float64),)


def tokens(samples: int) -> tuple[Tensor, ...]:
    """As many tokens as samples, so that no size tells the two apart."""
    return (torch.randint(0, 20, (samples, samples)),)


def head(channels: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, CLASSES)]


class Function(nn.Module):
    """A module of given parts and a function of them."""

    def __init__(self, function: Callable[..., Tensor], **parts: nn.Module | nn.Parameter):
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)
        self.function = function

    def forward(self, *inputs):
        return self.function(self, *inputs)
