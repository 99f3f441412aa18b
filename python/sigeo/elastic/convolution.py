"""Elastic convolutions: channels, kernel, groups."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init

from sigeo.elastic.base import Elastic, count, fill, take, times
from sigeo.kinds import is_of
from sigeo_ext.gather import slices
from sigeo_ext.gather.slices import Selection


class _ElasticConvolution(Elastic, nn.modules.conv._ConvNd):
    """The part that does not depend on the number of dimensions."""

    dimensions = ("outputs", "inputs", "kernel")
    plain: type[nn.Module]

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        if self.padding_mode != "zeros":
            name = type(self).__name__
            raise ValueError(f"{name}: padding_mode must be zeros, got {self.padding_mode}")
        reach = [d * (k - 1) for d, k in zip(self.dilation, self.kernel_size, strict=True)]
        if self.padding == "same" and any(r % 2 for r in reach):
            name = type(self).__name__
            raise ValueError(
                f'{name}: padding="same" needs as much on both sides, got a kernel of '
                f"{self.kernel_size} with dilation {self.dilation}"
            )

    def _checked(self, choice: dict[str, Any]) -> dict[str, Any]:
        kernel = choice.get("kernel")
        if kernel is not None and not is_of(kernel, int):
            name = type(self).__name__
            raise ValueError(f"{name}: kernel must be a whole number, got {kernel!r}")
        return super()._checked(choice)

    def _require(self, choice: Mapping[str, Any]) -> None:
        given = {name: choice.get(name) for name in self.dimensions}
        try:
            slices.check_convolution_selection(
                type(self).__name__, self.weight, self.groups, **given
            )
        except RuntimeError as error:
            raise ValueError(str(error)) from None
        padding_of(self, given["kernel"])

    def forward(self, input: Tensor, **choice: Any) -> Tensor:
        """[B, selected inputs, *size] to [B, selected outputs, *size]; masked: full width both."""
        selected = self._current(choice)
        return slices.convolution(
            input,
            self.weight,
            self.bias,
            **selected,
            stride=self.stride,
            padding=padding_of(self, selected["kernel"]),
            dilation=self.dilation,
            groups=self.groups,
            masked=self.masked,
            accumulate=self.accumulate,
        )

    def _plain(self, choice: dict[str, Any]) -> nn.Module:
        outputs, inputs, kernel = choice["outputs"], choice["inputs"], choice["kernel"]
        channels = count(inputs, self.in_channels)
        rows: Selection = outputs
        weight = self.weight
        if self.groups > 1:
            rows = self._rows(inputs)
        else:
            weight = take(weight, inputs, 1)
        weight = take(weight, rows)
        for dim, size in enumerate(self.kernel_size, 2):
            if kernel is not None:
                weight = weight.narrow(dim, (size - kernel) // 2, kernel)
        width = self.in_channels // self.groups
        module: nn.Module = skip_init(
            self.plain,
            channels,
            weight.shape[0],
            tuple(weight.shape[2:]),
            stride=self.stride,
            padding=tuple(padding_of(self, kernel)),
            dilation=self.dilation,
            groups=channels // width if self.groups > 1 else 1,
            bias=self.bias is not None,
            device=weight.device,
            dtype=weight.dtype,
        )
        bias = None if self.bias is None else take(self.bias, rows)
        return fill(module, {"weight": weight, "bias": bias})

    def _rows(self, inputs: Selection) -> Selection:
        """The outputs of the groups that the input channels select."""
        width, each = self.in_channels // self.groups, self.out_channels // self.groups
        if isinstance(inputs, Tensor):
            return times(inputs, each)
        places = take(torch.arange(self.in_channels, device="cpu"), inputs)
        return slice(int(places[0]) // width * each, (int(places[-1]) + 1) // width * each)


class ElasticConv1d(_ElasticConvolution, nn.Conv1d):
    """An `nn.Conv1d` of which selected channels and the centre of the kernel run.

    Choice: ``outputs``, ``inputs`` and ``kernel``, an odd int. With groups, ``inputs`` selects
    whole groups and the outputs follow. A cropped kernel takes as much less padding as it is
    smaller, so the output keeps its size.

    Raises:
        ValueError: A padding mode other than zeros.
    """

    plain = nn.Conv1d


class ElasticConv2d(_ElasticConvolution, nn.Conv2d):
    """An `nn.Conv2d` of which selected channels and the centre of the kernel run.

    As `ElasticConv1d`.
    """

    plain = nn.Conv2d


class ElasticConv3d(_ElasticConvolution, nn.Conv3d):
    """An `nn.Conv3d` of which selected channels and the centre of the kernel run.

    As `ElasticConv1d`.
    """

    plain = nn.Conv3d


def padding_of(layer: Any, kernel: int | None) -> list[int]:
    """The padding of a convolution that keeps the output's size where its kernel is cropped.

    Raises:
        ValueError: The padding is smaller than what is cropped.
    """
    found = []
    for dim, (size, dilation) in enumerate(zip(layer.kernel_size, layer.dilation, strict=True)):
        if isinstance(layer.padding, str):
            full = dilation * (size - 1) // 2 if layer.padding == "same" else 0
        else:
            full = layer.padding[dim]
        cut = 0 if kernel is None else dilation * (size - kernel) // 2
        if cut > full:
            raise ValueError(
                f"{type(layer).__name__}: padding must be at least {cut} for a kernel of "
                f"{size} cropped to {kernel}, got {full}"
            )
        found.append(full - cut)
    return found
