"""Networks that the benchmarks measure on."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Bottleneck(nn.Module):
    """Residual block of 1x1, 3x3 and 1x1 convolutions."""

    def __init__(self, inputs: int, width: int, stride: int):
        super().__init__()
        outputs = 4 * width
        self.first = nn.Sequential(nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width))
        self.second = nn.Sequential(
            nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        )
        self.third = nn.Sequential(
            nn.Conv2d(width, outputs, 1, bias=False), nn.BatchNorm2d(outputs)
        )
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, H, W] to [B, 4 width, H/stride, W/stride]."""
        y = F.relu(self.second(F.relu(self.first(x))))
        return F.relu(self.third(y) + self.shortcut(x))


def resnet50(classes: int = 1000) -> nn.Sequential:
    """He et al. 2016, stride in the 3x3 convolution; 25,557,032 parameters."""
    blocks: list[nn.Module] = []
    inputs = 64
    for width, count, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        for index in range(count):
            blocks.append(Bottleneck(inputs, width, stride if index == 0 else 1))
            inputs = 4 * width
    return nn.Sequential(
        nn.Conv2d(3, 64, 7, 2, 3, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, 1),
        *blocks,
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(2048, classes),
    )


class BasicBlock(nn.Module):
    """Residual block of two 3x3 convolutions, with group norm."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.first = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.GroupNorm(8, outputs)
        )
        self.second = nn.Sequential(
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.GroupNorm(8, outputs)
        )
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.GroupNorm(8, outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, H, W] to [B, outputs, H/stride, W/stride]."""
        return F.relu(self.second(F.relu(self.first(x))) + self.shortcut(x))


def resnet18(classes: int = 10) -> nn.Sequential:
    """He et al. 2016 for small images (3x3 stem), group norm for batch norm."""
    blocks: list[nn.Module] = []
    inputs = 64
    for width, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        blocks += [BasicBlock(inputs, width, stride), BasicBlock(width, width, 1)]
        inputs = width
    return nn.Sequential(
        nn.Conv2d(3, 64, 3, 1, 1, bias=False),
        nn.GroupNorm(8, 64),
        nn.ReLU(),
        *blocks,
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(512, classes),
    )


class InvertedResidual(nn.Module):
    """Widen by 1x1, filter by depthwise 3x3, narrow by 1x1."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int):
        super().__init__()
        hidden = inputs * expansion
        self.residual = stride == 1 and inputs == outputs
        wide: list[nn.Module] = []
        if expansion != 1:
            wide = [nn.Conv2d(inputs, hidden, 1, bias=False), nn.BatchNorm2d(hidden), nn.ReLU6()]
        self.layers = nn.Sequential(
            *wide,
            nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU6(),
            nn.Conv2d(hidden, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, H, W] to [B, outputs, H/stride, W/stride]."""
        return x + self.layers(x) if self.residual else self.layers(x)


def mobilenet_v2(classes: int = 10) -> nn.Sequential:
    """Sandler et al. 2018, Table 2, with the strides of small images."""
    blocks: list[nn.Module] = []
    inputs = 32
    plan = (
        (1, 16, 1, 1),
        (6, 24, 2, 1),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    )
    for expansion, outputs, count, stride in plan:
        for index in range(count):
            blocks.append(InvertedResidual(inputs, outputs, stride if index == 0 else 1, expansion))
            inputs = outputs
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, 1, 1, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU6(),
        *blocks,
        nn.Conv2d(320, 1280, 1, bias=False),
        nn.BatchNorm2d(1280),
        nn.ReLU6(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(1280, classes),
    )


class Encoder(nn.Module):
    """A transformer that classifies sequences of 64 tokens of 1,000."""

    def __init__(self, width: int = 128, layers: int = 4, classes: int = 10):
        super().__init__()
        self.tokens = nn.Embedding(1000, width)
        self.positions = nn.Parameter(0.02 * torch.randn(64, width))
        self.layers = nn.Sequential(
            *(
                nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.0, batch_first=True)
                for _ in range(layers)
            )
        )
        self.head = nn.Linear(width, classes)

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, 64] to [B, classes]."""
        return self.head(self.layers(self.tokens(tokens) + self.positions).mean(1))


class ClickThrough(nn.Module):
    """26 embedding tables and 13 dense features into a multilayer perceptron."""

    def __init__(self, rows: int, *, sparse: bool = False):
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(rows, 16, sparse=sparse) for _ in range(26))
        self.mlp = nn.Sequential(
            nn.Linear(13 + 26 * 16, 256),
            nn.ReLU(),
            nn.Linear(256, 128),
            nn.ReLU(),
            nn.Linear(128, 2),
        )

    def forward(self, dense: Tensor, fields: Tensor) -> Tensor:
        """[B, 13] and [B, 26] to [B, 2]."""
        embedded = [table(fields[:, index]) for index, table in enumerate(self.tables)]
        return self.mlp(torch.cat([dense, *embedded], 1))
