"""Modules that run twice, or not always, or whose result nobody takes."""

from __future__ import annotations

import torch
from torch import nn

from tests.sigeo.zoo.parts import CLASSES, Function


def siamese() -> nn.Module:
    """One encoder twice, on the two halves of the image."""

    def run(m, x):
        return m.out(torch.cat([m.encode(x[..., :4]), m.encode(x[..., 4:])], 1))

    encoder = nn.Sequential(nn.Conv2d(3, 5, 3), nn.Tanh(), nn.Flatten())
    return Function(run, encode=encoder, out=nn.Linear(2 * 5 * 6 * 2, CLASSES))


def towers() -> nn.Module:
    """Two towers stacked along the batch, one call for both."""

    def run(m, x):
        both = m.encode(torch.cat([x[..., :4], x[..., 4:]], 0))
        left, right = both.chunk(2)
        return m.out(left * right)

    encoder = nn.Sequential(nn.Conv2d(3, 5, 3), nn.GroupNorm(1, 5), nn.Tanh(), nn.Flatten())
    return Function(run, encode=encoder, out=nn.Linear(5 * 6 * 2, CLASSES))


def in_place_sum() -> nn.Module:
    def run(m, x):
        y = m.a(x)
        y += m.b(x)
        return m.out(torch.relu_(y).mean((2, 3)))

    return Function(run, a=nn.Conv2d(3, 6, 1), b=nn.Conv2d(3, 6, 1), out=nn.Linear(6, CLASSES))


def shared_module() -> nn.Module:
    def run(m, x):
        return m.out(m.conv(torch.tanh(m.conv(x))).mean((2, 3)))

    return Function(run, conv=nn.Conv2d(3, 3, 3, padding=1), out=nn.Linear(3, CLASSES))


def unused_operation() -> nn.Module:
    def run(m, x):
        m.unused(x)
        return m.out(torch.tanh(m.used(x)).mean((2, 3)))

    return Function(
        run, used=nn.Conv2d(3, 4, 3), unused=nn.Conv2d(3, 4, 3), out=nn.Linear(4, CLASSES)
    )


def branch() -> nn.Module:
    """Takes one way or another by the data's sign as a whole."""

    def run(m, x):
        y = m.a(x) if float(x.shape[-1]) > 4 else m.b(x)
        return m.out(torch.tanh(y).mean((2, 3)))

    return Function(run, a=nn.Conv2d(3, 4, 3), b=nn.Conv2d(3, 4, 3), out=nn.Linear(4, CLASSES))
