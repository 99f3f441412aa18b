"""Calls whose parameters scale and shift: the norms, bare factors and summands.

The output is ``xhat * weight + bias`` with xhat made from the input without parameters. A sample's
gradient is d * xhat (d for a bias), added up over what the parameter is spread over: small, so all
samples' gradients are formed, [samples, *shape].
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sigeo.capture.samples.axis import Axis, samples_first
from sigeo.capture.samples.calls import Call, cast, in_units
from sigeo.capture.samples.small_parameters import of_rows
from sigeo.capture.samples.uses import Plan, Use, flat
from sigeo_ext import sample_moments
from sigeo_ext.sample_moments import SampleMoments

aten = torch.ops.aten


def per_sample(product: Tensor, axis: Axis, dims: Sequence[int], shape: Sequence[int]) -> Tensor:
    """Add up everything of each sample but a parameter's own dimensions.

    Args:
        product: Shaped like the output.
        axis: Where the samples are in it.
        dims: The output's dimensions that the parameter's stand for, rising.
        shape: The parameter's; 1 where it is spread.

    Returns:
        [samples, *shape].
    """
    first = samples_first(product, axis)  # [samples, others, the output's other dimensions ...]
    own = {d + 2 - (d > axis.dim) for d, size in zip(dims, shape, strict=True) if size != 1}
    rest = [d for d in range(1, first.dim()) if d not in own]
    return first.sum(rest).reshape(len(first), *shape)


class Scaled(Call):
    """A call whose samples' gradients are all formed."""

    def measure(
        self, use: Use, argument: str, x: Tensor, d: Tensor, saved: Sequence[Tensor]
    ) -> SampleMoments:
        """Of a weight or bias, in its shape."""
        return of_rows(self.rows(argument, x, d, saved), use)

    def unit_gradients(
        self, argument: str, x: Tensor, d: Tensor, saved: Sequence[Tensor], units: slice, unit: int
    ) -> Tensor:
        """[units, *shape]."""
        return in_units(self.rows(argument, x, d, saved), units, unit)

    def inner(
        self,
        argument: str,
        value: Tensor,
        x: Tensor,
        d: Tensor,
        dx: Tensor | None,
        saved: Sequence[Tensor],
        plan: Plan,
    ) -> Tensor:
        """<argument, g_u> for each unit, float64 [units]."""
        rows = in_units(self.rows(argument, x, d, saved), slice(0, plan.units), plan.unit)
        return flat(rows * value).sum(1, dtype=torch.float64)

    @abstractmethod
    def rows(self, argument: str, x: Tensor, d: Tensor, saved: Sequence[Tensor]) -> Tensor:
        """Each sample's gradient [samples, *shape]."""


@dataclass
class Norm(Scaled):
    """A norm of [N, C, ...] or over last dimensions.

    Saved are the mean and 1/deviation that it used. One pass over input and output gradient gives
    weight and bias, and for a norm on given statistics the input's gradient as well.
    """

    shape: tuple[int, ...]
    _sums: sample_moments.Scaled | None = field(default=None, init=False)

    def rows(self, argument: str, x: Tensor, d: Tensor, saved: Sequence[Tensor]) -> Tensor:
        """Each sample's gradient of the weight or bias."""
        if self._sums is None:
            self._sums = self.sums(x, d, saved)
        found = self._sums.shift if argument == "bias" else self._sums.scale
        assert found is not None
        rows = self.of_samples(found)
        return rows if len(self.shape) == 1 else rows.reshape(-1, *self.shape)

    def forget(self) -> None:
        """Drop the sums."""
        self._sums = None

    @abstractmethod
    def sums(self, x: Tensor, d: Tensor, saved: Sequence[Tensor]) -> sample_moments.Scaled:
        """The sums over positions of every image or sample."""

    @abstractmethod
    def of_samples(self, sums: Tensor) -> Tensor:
        """Sums of images added up in samples."""


def _wide(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor


@dataclass
class ChannelNorm(Norm):
    """A norm with a weight a channel: of [N, C, ...], the samples in dimension 0."""

    def sums(self, x: Tensor, d: Tensor, saved: Sequence[Tensor]) -> sample_moments.Scaled:
        """[N, C]."""
        return self._scale(x, d, saved, None)[0]

    def of_samples(self, sums: Tensor) -> Tensor:
        """[samples, C]."""
        return sums if self.axis.alone else samples_first(sums, self.axis).sum(1)

    def _scale(
        self, x: Tensor, d: Tensor, saved: Sequence[Tensor], factor: Tensor | None
    ) -> tuple[sample_moments.Scaled, Tensor | None]:
        """The sums, and ``d * factor`` in the shape of x."""
        last = x.dim() == 2 or _is_channels_last(x)
        values, gradients = (_by_positions(_wide(t), last) for t in (x, d))
        mean, rstd = (cast(s, values.dtype) for s in saved)
        found = sample_moments.scale(
            values, gradients, mean=mean, rstd=rstd, factor=factor, channels_last=last
        )
        if found.dx is None:
            return found, None
        dx = (found.dx.mT if last else found.dx).view(x.shape)
        return found._replace(dx=None), cast(dx, d.dtype)  # sums are kept for long, gradients not


def _by_positions(tensor: Tensor, last: bool) -> Tensor:
    """[N, C, ...] as [N, C, positions], or with channels last as [N, positions, C]."""
    flat = tensor[:, :, None] if tensor.dim() == 2 else tensor.flatten(2)
    return flat.mT if last else flat


@dataclass
class FrozenBatchNorm(ChannelNorm):
    """Batch norm on given statistics: a scale and a shift a channel."""

    mean: Tensor
    var: Tensor
    eps: float

    def forward(self, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> tuple[Any, ...]:
        """The output and the statistics."""
        y = torch.batch_norm(
            x, weight, bias, self.mean, self.var, False, 0.0, self.eps, torch.backends.cudnn.enabled
        )
        return y, self.mean, self.var

    def sums(self, x: Tensor, d: Tensor, saved: Sequence[Tensor]) -> sample_moments.Scaled:
        """[N, C]."""
        return self._scale(x, d, (saved[0], (saved[1] + self.eps).rsqrt()), None)[0]

    def input_gradient(
        self, d: Tensor, x: Tensor, weight: Tensor | None, saved: Sequence[Tensor]
    ) -> Tensor:
        """D times the channel's scale."""
        saved = saved[0], (saved[1] + self.eps).rsqrt()
        factor = _wide(saved[1] if weight is None else saved[1] * weight)
        self._sums, dx = self._scale(x, d, saved, cast(factor, _wide(x).dtype))
        assert dx is not None
        return dx


@dataclass
class BatchNorm(ChannelNorm):
    """Batch norm on the batch's own statistics; `d` is then the gradient of the coupled batch."""

    mean: Tensor | None
    var: Tensor | None
    momentum: float
    eps: float

    def forward(self, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> tuple[Any, ...]:
        """The output and the batch's statistics."""
        return torch.native_batch_norm(
            x, weight, bias, self.mean, self.var, True, self.momentum, self.eps
        )

    def input_gradient(
        self, d: Tensor, x: Tensor, weight: Tensor | None, saved: Sequence[Tensor]
    ) -> Tensor:
        """As aten computes it."""
        dx, _, _ = aten.native_batch_norm_backward(
            d, x, weight, None, None, *saved, True, self.eps, [True, False, False]
        )
        return dx  # type: ignore[no-any-return]


@dataclass
class GroupNorm(ChannelNorm):
    """Group norm; instance norm is one with a group a channel."""

    groups: int
    eps: float

    def _sizes(self, x: Tensor) -> tuple[int, int, int]:
        return x.shape[0], x.shape[1], math.prod(x.shape[2:])

    def forward(self, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> tuple[Any, ...]:
        """The output and the statistics of each image and channel."""
        order = torch.channels_last if _is_channels_last(x) else torch.contiguous_format
        dense = x.contiguous(memory_format=order)
        y, mean, rstd = torch.native_group_norm(
            dense, weight, bias, *self._sizes(x), self.groups, self.eps
        )
        of_group = x.shape[1] // self.groups
        return y, mean.repeat_interleave(of_group, 1), rstd.repeat_interleave(of_group, 1)

    def input_gradient(
        self, d: Tensor, x: Tensor, weight: Tensor | None, saved: Sequence[Tensor]
    ) -> Tensor:
        """As aten computes it."""
        of_group = x.shape[1] // self.groups
        mean, rstd = (s[:, ::of_group].contiguous() for s in saved)
        order = torch.channels_last if _is_channels_last(x) else torch.contiguous_format
        dx, _, _ = aten.native_group_norm_backward(
            d.contiguous(memory_format=order),
            x.contiguous(memory_format=order),
            mean,
            rstd,
            weight,
            *self._sizes(x),
            self.groups,
            [True, False, False],
        )
        return dx  # type: ignore[no-any-return]


@dataclass
class LastNorm(Norm):
    """A norm over the last dimensions, which its weight has."""

    eps: float

    def sums(self, x: Tensor, d: Tensor, saved: Sequence[Tensor]) -> sample_moments.Scaled:
        """[samples, entries of the last dimensions]."""
        size = math.prod(self.shape)
        values, gradients = (self._positions(_wide(t), size) for t in (x, d))
        mean, rstd = (cast(self._positions(t, 1), values.dtype) for t in saved)
        return sample_moments.scale(values, gradients, mean=mean, rstd=rstd)

    def _positions(self, tensor: Tensor, size: int) -> Tensor:
        """[samples, positions, entries of the last dimensions]."""
        alone = self.axis.dim == 0 and self.axis.alone
        first = tensor if alone else samples_first(tensor, self.axis)
        return first.reshape(len(first), -1, size).contiguous()

    def of_samples(self, sums: Tensor) -> Tensor:
        """They are already."""
        return sums


@dataclass
class LayerNorm(LastNorm):
    """Layer norm."""

    def forward(self, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> tuple[Any, ...]:
        """The output, mean and 1/deviation."""
        return torch.native_layer_norm(x, self.shape, weight, bias, self.eps)

    def input_gradient(
        self, d: Tensor, x: Tensor, weight: Tensor | None, saved: Sequence[Tensor]
    ) -> Tensor:
        """As aten computes it."""
        dx, _, _ = aten.native_layer_norm_backward(
            d, x.to(d.dtype), self.shape, *saved, weight, None, [True, False, False]
        )
        return dx  # type: ignore[no-any-return]


@dataclass
class RMSNorm(LastNorm):
    """Layer norm without a mean: ``x / sqrt(mean(x^2) + eps)``."""

    def forward(self, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> tuple[Any, ...]:
        """The output, a mean of zero, and 1/root mean square."""
        dims = tuple(range(-len(self.shape), 0))
        wide = _wide(x)
        rstd = ((wide * wide).mean(dims, keepdim=True) + self.eps).rsqrt()
        y = (wide * rstd).to(x.dtype)
        return (y if weight is None else y * weight), torch.zeros_like(rstd), rstd

    def input_gradient(
        self, d: Tensor, x: Tensor, weight: Tensor | None, saved: Sequence[Tensor]
    ) -> Tensor:
        """R (dw - x r^2 mean(dw x))."""
        dims, rstd = tuple(range(-len(self.shape), 0)), saved[1]
        g = d if weight is None else d * weight
        return (rstd * (g - x * rstd**2 * (g * x).mean(dims, keepdim=True))).to(x.dtype)


def _is_channels_last(x: Tensor) -> bool:
    """Whether the channels stand together in memory, and nothing else says the same."""
    last = x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)
    return last and not x.is_contiguous()


@dataclass
class Elementwise(Scaled):
    """``x * weight`` or ``x + bias`` with a bare parameter that broadcasts to x."""

    sign: float = 1.0

    def forward(self, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> tuple[Any, ...]:
        """The product or sum."""
        if weight is not None:
            return (x * weight,)
        return (torch.add(x, bias, alpha=self.sign),)  # type: ignore[arg-type]

    def input_gradient(
        self, d: Tensor, x: Tensor, weight: Tensor | None, saved: Sequence[Tensor]
    ) -> Tensor:
        """D times the factor."""
        return d if weight is None else d * weight

    def rows(self, argument: str, x: Tensor, d: Tensor, saved: Sequence[Tensor]) -> Tensor:
        """Each sample's gradient of the parameter."""
        product = d * self.sign if argument == "bias" else d * x
        shape = self.uses[argument].shape
        dims = range(product.dim() - len(shape), product.dim())
        return per_sample(product, self.axis, list(dims), list(shape))
