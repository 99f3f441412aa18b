"""Parameters that are no layer's weight, and weights that are computed or used in part."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from tests.sigeo.zoo.parts import CLASSES, Function


def slices() -> nn.Module:
    """Elastic widths: prefixes of the weights are used."""

    def run(m, x):
        z = F.conv2d(x, m.weight[:8], padding=1) * m.scale[:8]
        z = F.group_norm(torch.tanh(z), 2, m.gain[:8], m.shift[:8])
        return F.linear(z.mean((2, 3)), m.out.weight[:, :8], m.out.bias)

    return Function(
        run, weight=nn.Parameter(torch.randn(12, 3, 3, 3)), out=nn.Linear(12, CLASSES),
        scale=nn.Parameter(torch.rand(12, 1, 1) + 0.5), gain=nn.Parameter(torch.rand(12) + 0.5),
        shift=nn.Parameter(torch.randn(12)),
    )  # fmt: skip


def mixed_operation() -> nn.Module:
    """DARTS-like: operations weighed by the softmax of bare parameters."""

    def run(m, x):
        weights = m.alpha.softmax(0)
        z = torch.tanh(weights[0] * m.a(x) + weights[1] * m.b(x) + weights[2] * m.c(x))
        return m.out(z.mean((2, 3)))

    return Function(
        run, a=nn.Conv2d(3, 6, 3, padding=1), b=nn.Conv2d(3, 6, 1), c=nn.Conv2d(3, 6, 5, padding=2),
        alpha=nn.Parameter(torch.randn(3)), out=nn.Linear(6, CLASSES),
    )  # fmt: skip


def parametrized() -> nn.Module:
    return nn.Sequential(
        nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 6, 3)), nn.Tanh(), nn.Flatten(),
        nn.utils.parametrizations.orthogonal(nn.Linear(216, CLASSES)),
    )  # fmt: skip


def bare_matrix() -> nn.Module:
    def run(m, x):
        return torch.tanh(x.flatten(1) @ m.weight + m.bias) @ m.out.t()

    return Function(
        run, weight=nn.Parameter(0.1 * torch.randn(192, 7)), bias=nn.Parameter(torch.randn(7)),
        out=nn.Parameter(torch.randn(CLASSES, 7)),
    )  # fmt: skip
