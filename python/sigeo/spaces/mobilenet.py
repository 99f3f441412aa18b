"""Mobile networks of inverted residual blocks with a choice of kernel and expansion.

The space of ProxylessNAS and once-for-all networks, in the form in which EFS-NAS (arXiv 2412.14678)
divides it: 21 blocks in six stages, each a kernel of 3, 5 or 7 with an expansion of 3 or 6, or the
identity where a block keeps the shape.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from sigeo.errors import InputError
from sigeo.space_sizes import checked
from sigeo.spaces.base import Choice, InputShape
from sigeo.spaces.choices import Architecture
from sigeo.spaces.elastic import ElasticSpace
from sigeo.spaces.elastic.skeleton import layer_of

IDENTITY = "identity"


def nonlinear_count(arch: Architecture) -> int:
    """Nonlinear functions of the blocks that are chosen, by which EFS-NAS divides the space.

    Two for each block that is not the identity.
    """
    return 2 * sum(option != IDENTITY for option in arch.options().values())


class ConvNorm(nn.Sequential):
    """Convolution without bias, batch norm, and ReLU6 unless it is a block's last."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int = 1,
        *,
        stride: int = 1,
        groups: int = 1,
        last: bool = False,
        track: bool,
    ):
        conv = layer_of(
            nn.Conv2d, inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False
        )
        norm = layer_of(nn.BatchNorm2d, outputs, track_running_stats=track)
        layers: OrderedDict[str, nn.Module] = OrderedDict(conv=conv, norm=norm)
        if not last:
            layers["relu"] = nn.ReLU6()
        super().__init__(layers)


class InvertedResidual(nn.Module):
    """Expansion, depthwise convolution, projection (Sandler et al., MobileNetV2, CVPR 2018)."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, expansion: int, *, stride: int, track: bool
    ):
        super().__init__()
        inner = inputs * expansion
        self.expand: nn.Module = nn.Identity()
        if expansion > 1:
            self.expand = ConvNorm(inputs, inner, track=track)
        self.depthwise = ConvNorm(inner, inner, kernel, stride=stride, groups=inner, track=track)
        self.project = ConvNorm(inner, outputs, last=True, track=track)
        self.keeps_shape = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, H, W] to [B, outputs, H/stride, W/stride]."""
        y: Tensor = self.project(self.depthwise(self.expand(x)))
        return x + y if self.keeps_shape else y


class Head(nn.Module):
    """1x1 convolution, global average pooling, linear layer."""

    def __init__(self, inputs: int, features: int, classes: int, *, track: bool):
        super().__init__()
        self.features = ConvNorm(inputs, features, track=track)
        self.linear = layer_of(nn.Linear, features, classes)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to [B, classes]."""
        y: Tensor = self.linear(F.adaptive_avg_pool2d(self.features(x), 1).flatten(1))
        return y


class MobileNet(ElasticSpace):
    """Stages of inverted residual blocks; the first of a stage changes width and resolution.

    Kernels are the centre of one of the largest size, hidden channels the first of those of the
    largest expansion. The first block of a stage is never the identity.
    """

    name = "mobilenet"

    def __init__(
        self,
        shape: InputShape,
        *,
        channels: int | Sequence[int] = (16, 24, 32),
        blocks: int | Sequence[int] = (2, 2, 2),
        strides: int | Sequence[int] = (1, 2, 2),
        stem: int = 16,
        first: int = 8,
        last: int = 64,
        stem_stride: int = 1,
        kernels: int | Sequence[int] = (3, 5, 7),
        expansions: int | Sequence[int] = (3, 6),
        width: float = 1.0,
    ):
        """Fix the sizes.

        Args:
            shape: Of the images and classes.
            channels: Of each stage.
            blocks: Of each stage.
            strides: Of the first block of each stage.
            stem: Channels of the first convolution.
            first: Channels of the block behind it, which has kernel 3 and no expansion.
            last: Channels of the last convolution.
            stem_stride: Of the first convolution.
            kernels: To choose from, odd, ascending.
            expansions: To choose from, ascending.
            width: Times all channels, rounded; EFS-NAS has 0.5 for each part of a divided space.

        Raises:
            InputError: A size out of its range, or lists that do not fit together.
        """
        kept = checked(
            MobileNet.name,
            channels=channels,
            blocks=blocks,
            strides=strides,
            stem=stem,
            first=first,
            last=last,
            stem_stride=stem_stride,
            kernels=kernels,
            expansions=expansions,
            width=width,
        )
        self.channels: tuple[int, ...] = kept["channels"]
        self.blocks: tuple[int, ...] = kept["blocks"]
        self.strides: tuple[int, ...] = kept["strides"]
        self.ends: tuple[int, int, int] = (kept["stem"], kept["first"], kept["last"])
        self.stem_stride: int = kept["stem_stride"]
        self.kernels: tuple[int, ...] = kept["kernels"]
        self.expansions: tuple[int, ...] = kept["expansions"]
        self.width: float = kept["width"]
        if not len(self.channels) == len(self.blocks) == len(self.strides):
            raise InputError(
                f"{self.name}: channels, blocks and strides must be as many, got "
                f"{len(self.channels)}, {len(self.blocks)} and {len(self.strides)}"
            )
        super().__init__(shape, list(self._choices()))

    @classmethod
    def published(cls, shape: InputShape, *, width: float = 1.0) -> MobileNet:
        """The sizes of EFS-NAS (arXiv 2412.14678), for images of 224 pixels."""
        return cls(
            shape,
            channels=(32, 40, 80, 96, 192, 320),
            blocks=(4, 4, 4, 4, 4, 1),
            strides=(2, 2, 2, 1, 2, 1),
            stem=32,
            first=16,
            last=1280,
            stem_stride=2,
            width=width,
        )

    def _choices(self) -> Iterator[Choice]:
        variants = tuple(f"k{k}e{e}" for e in self.expansions for k in self.kernels)
        for stage, count in enumerate(self.blocks, start=1):
            for block in range(1, count + 1):
                options = variants if block == 1 else (IDENTITY, *variants)
                yield Choice(f"block{stage}.{block}", options)

    def representative(self, arch: Architecture) -> Architecture:
        """The architecture with the identities at the end of each stage."""
        codes: list[int] = []
        place = 0
        for count in self.blocks:
            stage = arch.codes[place : place + count]
            running = [stage[0], *(code for code in stage[1:] if code)]
            codes += running + [0] * (count - len(running))
            place += count
        return self.decode(codes)

    def nonlinear_count(self, arch: Architecture) -> int:
        """As the function of that name."""
        return nonlinear_count(arch)

    def nonlinear_counts(self) -> frozenset[int]:
        """The numbers of nonlinear functions that there are in the space."""
        return frozenset(range(2 * len(self.blocks), 2 * sum(self.blocks) + 1, 2))

    def narrowed(self, share: float) -> MobileNet:
        """The same architectures in networks of a share of the channels."""
        return MobileNet(self.shape, **self.sizes() | {"width": share * self.width})

    def network(self, arch: Architecture, *, track: bool) -> nn.Sequential:
        """Stem, first block, chosen blocks and head."""
        chosen = arch.options()
        stem, first, last = map(self._scaled, self.ends)
        pieces: OrderedDict[str, nn.Module] = OrderedDict(
            stem=ConvNorm(self.shape.channels, stem, 3, stride=self.stem_stride, track=track),
            first=InvertedResidual(stem, first, 3, 1, stride=1, track=track),
        )
        inputs = first
        for stage, count in enumerate(self.blocks, start=1):
            outputs = self._scaled(self.channels[stage - 1])
            for block in range(1, count + 1):
                option = chosen[f"block{stage}.{block}"]
                if option == IDENTITY:
                    continue
                kernel, expansion = map(int, re.findall(r"\d+", option))
                stride = self.strides[stage - 1] if block == 1 else 1
                pieces[f"stage{stage}_block{block}"] = InvertedResidual(
                    inputs, outputs, kernel, expansion, stride=stride, track=track
                )
                inputs = outputs
        pieces["head"] = Head(inputs, last, self.shape.classes, track=track)
        return nn.Sequential(pieces)

    def _scaled(self, channels: int) -> int:
        return max(1, round(channels * self.width))

    def sizes(self) -> dict[str, Any]:
        """The arguments."""
        return {
            "channels": list(self.channels),
            "blocks": list(self.blocks),
            "strides": list(self.strides),
            **dict(zip(("stem", "first", "last"), self.ends, strict=True)),
            "stem_stride": self.stem_stride,
            "kernels": list(self.kernels),
            "expansions": list(self.expansions),
            "width": self.width,
        }
