"""Elastic residual networks of basic blocks.

The space of the lightweight-search track of CVPR 2022 (arXiv 2206.05896): four stages of up to 5,
5, 8 and 5 blocks, every width between 0.7 and 1 of its largest value.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from sigeo.errors import InputError
from sigeo.spaces.base import Choice, InputShape
from sigeo.spaces.choices import Architecture
from sigeo.spaces.elastic import ElasticSpace
from sigeo.spaces.sizes import check_ascending, check_each, check_whole, listed

RATIOS = (0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 1.0)
_COARSE = 64  # channels from which on widths are multiples of 8


class ConvNorm(nn.Sequential):
    """Convolution without bias, then batch norm."""

    def __init__(self, inputs: int, outputs: int, kernel: int, *, stride: int = 1, track: bool):
        conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
        norm = nn.BatchNorm2d(outputs, track_running_stats=track)
        super().__init__(OrderedDict(conv=conv, norm=norm))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (He et al., CVPR 2016), of an inner width of its own."""

    def __init__(self, inputs: int, inner: int, outputs: int, *, stride: int, track: bool):
        super().__init__()
        self.first = ConvNorm(inputs, inner, 3, stride=stride, track=track)
        self.second = ConvNorm(inner, outputs, 3, track=track)
        self.stride = stride
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1:
            self.shortcut = ConvNorm(inputs, outputs, 1, track=track)

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, H, W] to [B, outputs, H/stride, W/stride]."""
        # Not a strided 1x1 convolution: its weight gradient in channels_last writes out of bounds on
        # CPUs without AVX-512 (torch 2.13) unless the channels are a multiple of 8.
        kept = x[..., :: self.stride, :: self.stride]
        y: Tensor = F.relu(self.second(F.relu(self.first(x))) + self.shortcut(kept))
        return y


class Head(nn.Module):
    """Global average pooling and a linear layer."""

    def __init__(self, inputs: int, classes: int):
        super().__init__()
        self.linear = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to [B, classes]."""
        y: Tensor = self.linear(x.mean((2, 3)))
        return y


class ResNet(ElasticSpace):
    """Residual networks with a choice of depth and width a stage, and of width inside each block.

    The stream of a stage has one width, which the stage's first block goes over to; the stem has
    that of the first stage. Each later stage halves the resolution.
    """

    name = "resnet"

    def __init__(
        self,
        shape: InputShape,
        *,
        channels: int = 16,
        depths: int | Sequence[int] = (2, 2, 2),
        least: int = 1,
        ratios: float | Sequence[float] = RATIOS,
        stem: int = 3,
    ):
        """Fix the sizes.

        Args:
            shape: Of the images and classes.
            channels: Largest width of the first stage; each later stage has twice that before.
            depths: Most blocks of each stage.
            least: Fewest blocks of a stage.
            ratios: Widths as shares of the largest, ascending to 1. They are rounded to whole
                numbers, from 64 channels on to multiples of 8; equal ones are one option.
            stem: Kernel of the first convolution; 7 halves the resolution, and so does the max
                pooling behind it.

        Raises:
            InputError: A size out of its range, or images that the stages use up.
        """
        self.channels = check_whole(self.name, "channels", channels)
        self.depths = check_each(self.name, "depths", listed(depths))
        self.least = check_whole(self.name, "least", least)
        self.ratios = check_ascending(self.name, "ratios", listed(ratios))
        self.stem = stem
        if self.least > min(self.depths):
            raise InputError(
                f"{self.name}: least must be at most the smallest of depths, got {least}"
            )
        if self.ratios[-1] != 1:
            raise InputError(f"{self.name}: ratios must end with 1, got {list(self.ratios)}")
        if stem not in (3, 7):
            raise InputError(f"{self.name}: stem must be 3 or 7, got {stem!r}")
        needed = (4 if stem == 7 else 1) << (len(self.depths) - 1)
        if shape.size < needed:
            raise InputError(
                f"{self.name}: images must be at least {needed} x {needed}, got {shape.size}"
            )
        super().__init__(shape, list(self._choices()))

    @classmethod
    def published(cls, shape: InputShape) -> ResNet:
        """The sizes of the challenge (arXiv 2206.05896); the least depth, 2, is ours."""
        return cls(shape, channels=64, depths=(5, 5, 8, 5), least=2, stem=7)

    def _choices(self) -> Iterator[Choice]:
        for stage, depth in enumerate(self.depths, start=1):
            widths = tuple(map(str, self._widths(self.channels << (stage - 1))))
            blocks = tuple(map(str, range(self.least, depth + 1)))
            yield Choice(f"depth{stage}", blocks)
            yield Choice(f"width{stage}", widths)
            for block in range(1, depth + 1):
                yield Choice(f"inner{stage}.{block}", widths)

    def _widths(self, largest: int) -> list[int]:
        unit = 8 if largest >= _COARSE else 1
        return sorted({max(unit, round(ratio * largest / unit) * unit) for ratio in self.ratios})

    def idle(self, arch: Architecture) -> frozenset[str]:
        """Inner widths of blocks beyond the depth."""
        chosen = arch.options()
        return frozenset(
            f"inner{stage}.{block}"
            for stage, depth in enumerate(self.depths, start=1)
            for block in range(int(chosen[f"depth{stage}"]) + 1, depth + 1)
        )

    def network(self, arch: Architecture, *, track: bool) -> nn.Sequential:
        """Stem, blocks and head."""
        chosen = arch.options()
        width = int(chosen["width1"])
        pieces: OrderedDict[str, nn.Module] = OrderedDict(stem=self._stem(width, track))
        for stage in range(1, len(self.depths) + 1):
            outputs = int(chosen[f"width{stage}"])
            for block in range(1, int(chosen[f"depth{stage}"]) + 1):
                inner = int(chosen[f"inner{stage}.{block}"])
                stride = 2 if stage > 1 and block == 1 else 1
                pieces[f"stage{stage}_block{block}"] = BasicBlock(
                    width, inner, outputs, stride=stride, track=track
                )
                width = outputs
        pieces["head"] = Head(width, self.shape.classes)
        return nn.Sequential(pieces)

    def _stem(self, width: int, track: bool) -> nn.Sequential:
        large = self.stem == 7
        stride = 2 if large else 1
        first = ConvNorm(self.shape.channels, width, self.stem, stride=stride, track=track)
        pool = [nn.MaxPool2d(3, 2, 1)] if large else []
        return nn.Sequential(first, nn.ReLU(), *pool)

    def sizes(self) -> dict[str, Any]:
        """The arguments."""
        return {
            "channels": self.channels,
            "depths": list(self.depths),
            "least": self.least,
            "ratios": list(self.ratios),
            "stem": self.stem,
        }
