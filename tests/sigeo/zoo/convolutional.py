"""Convolutional networks, and the norms in them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from tests.sigeo.zoo.parts import CLASSES, Function, head


def convolutions() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 12, 3, stride=2, padding=1, groups=4),
        nn.GroupNorm(3, 12),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        *head(12),
    )


def smooth_convolutions() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 20, 3, padding="same"), nn.GELU(), nn.Conv2d(20, 9, 2, bias=False), nn.Tanh(),
        *head(9),
    )  # fmt: skip


def batch_norm() -> nn.Module:
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6), nn.Tanh(), nn.Conv2d(6, 7, 1),
        nn.BatchNorm2d(7, affine=False), *head(7),
    )  # fmt: skip
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
    return model.eval()


def inverted_residual() -> nn.Module:
    """MobileNetV2-like: expansion, depthwise, projection, and a residual sum."""
    block = nn.Sequential(
        nn.Conv2d(8, 24, 1, bias=False), nn.GroupNorm(4, 24), nn.ReLU6(),
        nn.Conv2d(24, 24, 3, padding=1, groups=24, bias=False), nn.GroupNorm(4, 24), nn.ReLU6(),
        nn.Conv2d(24, 8, 1, bias=False),
    )  # fmt: skip
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1),
        Function(lambda m, x: x + m.block(x), block=block),
        *head(8),
    )


def layer_scale() -> nn.Module:
    """ConvNeXt-like: depthwise 7x7, layer norm over channels, a bare scale."""

    def run(m, x):
        y = m.depthwise(x).permute(0, 2, 3, 1)
        y = m.out(F.gelu(m.into(m.norm(y)))) * m.gamma
        return x + y.permute(0, 3, 1, 2)

    block = Function(
        run, depthwise=nn.Conv2d(6, 6, 7, padding=3, groups=6), norm=nn.LayerNorm(6),
        into=nn.Linear(6, 24), out=nn.Linear(24, 6), gamma=nn.Parameter(torch.rand(6) + 0.5),
    )  # fmt: skip
    return nn.Sequential(nn.Conv2d(3, 6, 2, stride=2), block, *head(6))


def norms() -> nn.Module:
    def run(m, x):
        z = torch.sigmoid(m.instance(m.conv(x)))
        z = torch.sigmoid(m.rms(z.flatten(2)).unflatten(2, (8, 8)))
        return m.out(torch.sigmoid(m.layer(z)).mean((2, 3)))

    return Function(
        run, conv=nn.Conv2d(3, 6, 3, padding=1), instance=nn.InstanceNorm2d(6, affine=True),
        rms=nn.RMSNorm(64), layer=nn.LayerNorm([6, 8, 8]), out=nn.Linear(6, CLASSES),
    )  # fmt: skip


def transposed() -> nn.Module:
    return nn.Sequential(
        nn.ConvTranspose2d(3, 6, 3, stride=2, output_padding=1, groups=3), nn.Tanh(),
        nn.Conv2d(6, 4, 3), *head(4),
    )  # fmt: skip


def signals() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(2), nn.Conv1d(3, 6, 5, padding=2, padding_mode="reflect"), nn.Tanh(),
        nn.Unflatten(2, (4, 4, 4)), nn.Conv3d(6, 5, (3, 1, 2)), nn.Tanh(), nn.Flatten(1),
        nn.Linear(120, CLASSES),
    )  # fmt: skip
