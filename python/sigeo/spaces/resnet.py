"""Elastic residual networks of basic blocks.

The space of the lightweight-search track of CVPR 2022 (arXiv 2206.05896): four stages of up to 5,
5, 8 and 5 blocks, every width between 0.7 and 1 of its largest value.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sigeo.errors import InputError
from sigeo.space_sizes import check, checked, whole
from sigeo.spaces.base import Choice, InputShape
from sigeo.spaces.choices import Architecture
from sigeo.spaces.elastic import ElasticSpace, Groups
from sigeo.spaces.elastic.skeleton import layer_of

RATIOS = (0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 1.0)
_COARSE = 64  # channels from which on widths are multiples of 8


class ConvNorm(nn.Sequential):
    """Convolution without bias, then batch norm."""

    def __init__(self, inputs: int, outputs: int, kernel: int, *, stride: int = 1, track: bool):
        conv = layer_of(nn.Conv2d, inputs, outputs, kernel, stride, kernel // 2, bias=False)
        norm = layer_of(nn.BatchNorm2d, outputs, track_running_stats=track)
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
        # Not a strided 1x1 convolution: its weight gradient in channels_last writes out of bounds
        # on CPUs without AVX-512 (torch 2.13) unless the channels are a multiple of 8.
        kept = x[..., :: self.stride, :: self.stride]
        y: Tensor = F.relu(self.second(F.relu(self.first(x))) + self.shortcut(kept))
        return y


class DropPath(nn.Module):
    """Zero for some samples, in train mode; the others are scaled up."""

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """[B, ...] to the same."""
        if not self.training or self.rate == 0:
            return x
        return x * F.dropout(x.new_ones(len(x), *(1,) * (x.dim() - 1)), self.rate)


class Head(nn.Module):
    """Global average pooling and a linear layer."""

    def __init__(self, inputs: int, classes: int):
        super().__init__()
        self.linear = layer_of(nn.Linear, inputs, classes)

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
        kept = checked(
            ResNet.name, channels=channels, depths=depths, least=least, ratios=ratios, stem=stem
        )
        self.channels: int = kept["channels"]
        self.least: int = kept["least"]
        self.stem: int = kept["stem"]
        self.depths: tuple[int, ...] = kept["depths"]
        self.ratios: tuple[float, ...] = kept["ratios"]
        if self.least > min(self.depths):
            raise InputError(
                f"{self.name}: least must be at most the smallest of depths, got {least}"
            )
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

    def width_groups(self, count: int) -> tuple[Groups, ...]:
        """Copies of every stage's blocks by the width of its stream (arXiv 2206.05896).

        Each of a stage's largest widths has a copy for itself, and one copy serves the others. A
        stage of fewer widths than ``count`` has a copy of each. Inner widths are left out of it:
        every copy has them all. The classifier belongs to the last stage, the stem to none.

        Args:
            count: Copies of a stage.

        Raises:
            InputError: It is no whole number from 1.
        """
        check(self.name, "groups", count, whole)
        names = [choice.name for choice in self.choices]
        found = []
        for stage, depth in enumerate(self.depths, start=1):
            choice = names.index(f"width{stage}")
            widths = len(self.choices[choice].options)
            tops = tuple(range(widths - min(count, widths), widths))
            blocks = [f"stage{stage}_block{block}" for block in range(1, depth + 1)]
            last = ["head"] if stage == len(self.depths) else []
            found.append(Groups(choice, tops, (*blocks, *last)))
        return tuple(found)

    @torch.no_grad()
    def zero_branches(self, network: nn.Module) -> None:
        """Let every block begin as its shortcut: zero the scale of its last norm, in place.

        Args:
            network: As of `network`, or shared weights of the space.
        """
        for block in network.modules():
            if isinstance(block, BasicBlock):
                block.get_parameter("second.norm.weight").zero_()

    def regularised(self, network: nn.Module, *, dropout: float, drop_path: float) -> None:
        """Add noise to a network of the space, in place: where and as in arXiv 2206.05896.

        Args:
            network: As of `network`, of plain or elastic layers.
            dropout: Share of the features in front of the classifier that are dropped.
            drop_path: Share of the samples for which a block of the last two stages is its shortcut
                alone (stochastic depth, Huang et al., ECCV 2016).
        """
        last = {f"stage{len(self.depths) - back}" for back in (0, 1)}
        for name, piece in network.named_children():
            if name.partition("_")[0] in last:
                piece.get_submodule("second").append(DropPath(drop_path))  # type: ignore[operator]
        linear = network.get_submodule("head.linear")
        network.set_submodule("head.linear", nn.Sequential(nn.Dropout(dropout), linear))

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
