"""Calls of layers: forward as usual; backward as usual but for the weight gradient.

Where the ordinary backward pass forms a weight gradient, a call hands its input and its output's
gradient to a kernel of `sigeo_ext.sample_moments`, which gives statistics over the samples and, as
one of them, the ordinary gradient.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sigeo.capture.samples.axis import Axis, samples_first
from sigeo.capture.samples.small_parameters import gram_of_rows, of_rows
from sigeo_ext import gram, moments, sample_moments
from sigeo_ext.sample_moments import SampleMoments

if TYPE_CHECKING:
    from sigeo.capture.samples.uses import Plan, Use

aten = torch.ops.aten


@dataclass
class Call(ABC):
    """One call of one layer.

    Its methods get the input x, the gradient d of the output, in the output's shape, and what the
    forward pass saved.

    Attributes:
        axis: Where the samples are in its input and its output.
        uses: What it uses of which parameter, by the argument's name; absent where that is none.
    """

    axis: Axis
    uses: dict[str, Use]

    @abstractmethod
    def forward(self, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> tuple[Any, ...]:
        """The output, and what else `backward` needs."""

    @abstractmethod
    def input_gradient(
        self, d: Tensor, x: Tensor, weight: Tensor | None, saved: Sequence[Tensor]
    ) -> Tensor:
        """The gradient of the input, in its shape."""

    @abstractmethod
    def measure(
        self, use: Use, argument: str, x: Tensor, d: Tensor, saved: Sequence[Tensor]
    ) -> SampleMoments:
        """Statistics of one argument, in its shape."""

    @abstractmethod
    def unit_gradients(
        self, argument: str, x: Tensor, d: Tensor, saved: Sequence[Tensor], units: slice, unit: int
    ) -> Tensor:
        """Each unit's own gradient of an argument [units, *shape], for arguments used twice."""

    def forget(self) -> None:  # noqa: B027  (most calls keep nothing)
        """Drop what was kept of an earlier backward pass."""

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
        """<argument, g_u> for each unit, float64 [units].

        For a weight that the output is linear in, that is <d, output without bias>, or
        <input gradient, input>, which needs no gradient of the weight.
        """
        if argument == "bias":
            everything = slice(0, plan.units)
            rows = self.unit_gradients(argument, x, d, saved, everything, plan.unit)
            return (rows * value).flatten(1).sum(1, dtype=torch.float64)
        pair = (x, dx) if dx is not None else (d, self.forward(x, value, None)[0])
        if not (self.axis.alone and self.axis.dim == 0):
            pair = samples_first(pair[0], self.axis), samples_first(pair[1], self.axis)
        samples = moments.row_dots(*pair)
        return samples.view(plan.units, -1).sum(1)

    def gram(
        self, use: Use, argument: str, x: Tensor, d: Tensor, saved: Sequence[Tensor]
    ) -> Tensor | None:
        """<g_u, g_v> of one argument, float64 [units, units]; None if its gradients wait."""
        everything = slice(0, use.units)
        return gram_of_rows(self.unit_gradients(argument, x, d, saved, everything, use.unit), use)


class Layer(torch.autograd.Function):
    """A call as autograd sees it."""

    @staticmethod
    def forward(
        ctx: Any, call: Call, x: Tensor, weight: Tensor | None, bias: Tensor | None
    ) -> Tensor:
        """Run the layer."""
        output, *saved = call.forward(x, weight, bias)
        ctx.call = call
        ctx.save_for_backward(x, weight, bias, *saved)
        if output._is_view():  # such may not be modified in place behind a function of our own
            output = aten._unsafe_view(output, output.shape)
        result: Tensor = output
        return result

    @staticmethod
    def backward(ctx: Any, d: Tensor) -> tuple[Tensor | None, ...]:
        """Input gradient as usual; each parameter's from its statistics."""
        tensors = ctx.saved_tensors  # a checkpoint repeats the model's forward pass for them
        with torch._C.DisableTorchFunction():  # nothing else here is the model's
            run = _gradients_once if torch.is_grad_enabled() else _gradients
            return run(ctx, d, tensors)


def _gradients(ctx: Any, d: Tensor, tensors: tuple[Tensor, ...]) -> tuple[Tensor | None, ...]:
    call: Call = ctx.call
    call.forget()
    x, weight, bias, *saved = tensors
    _, need_x, *need = ctx.needs_input_grad
    dx = call.input_gradient(d, x, weight, saved) if need_x else None
    found: list[Tensor | None] = [None, None]
    for index, (name, value) in enumerate((("weight", weight), ("bias", bias))):
        use = call.uses.get(name)
        if need[index] and use is not None:
            found[index] = use.backward(call, name, value, x, d, dx, saved)
    return (None, dx, *found)


def _gradients_once(ctx: Any, d: Tensor, tensors: tuple[Tensor, ...]) -> tuple[Tensor | None, ...]:
    """The same in a backward pass whose own graph is kept, which stops here."""
    with torch.no_grad():
        found = _gradients(ctx, d, tensors)
    stop = torch._C._functions.DelayedError(
        "capture: the loss differentiates a gradient again, as a gradient penalty does, and no "
        "kernel measures second derivatives",
        len(found),
    )
    leaves = [None if g is None else g.detach().requires_grad_() for g in found]
    stopped: tuple[Tensor | None, ...] = stop(*leaves)  # type: ignore[arg-type]
    return stopped


def cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A tensor in a dtype; most have it, and are not handed to torch to find out."""
    return tensor if tensor.dtype == dtype else tensor.to(dtype)


def _sum(values: Tensor, dim: int) -> Tensor:
    """A sum of at least float32."""
    narrow = values.dtype in (torch.bfloat16, torch.float16)
    return values.sum(dim, dtype=torch.float32 if narrow else None)


def in_units(rows: Tensor, units: slice, unit: int) -> Tensor:
    """Rows [samples, *shape] added up in units, of which some."""
    part = rows[units.start * unit : units.stop * unit]
    return part if unit == 1 else part.unflatten(0, (-1, unit)).sum(1)


@dataclass
class Linear(Call):
    """``F.linear``: x [..., I], weight [O, I]."""

    def forward(self, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> tuple[Any, ...]:
        """[..., O]."""
        return (torch._C._nn.linear(x, weight, bias),)  # type: ignore[arg-type]

    def input_gradient(
        self, d: Tensor, x: Tensor, weight: Tensor | None, saved: Sequence[Tensor]
    ) -> Tensor:
        """D W."""
        assert weight is not None
        return cast(d.matmul(cast(weight, d.dtype)), x.dtype)

    def _positions(self, tensor: Tensor) -> Tensor:
        """[samples, positions, channels]."""
        if tensor.dim() == 3 and self.axis.dim == 0 and self.axis.alone:
            return tensor
        return samples_first(tensor, self.axis).flatten(1, -2)

    def measure(
        self, use: Use, argument: str, x: Tensor, d: Tensor, saved: Sequence[Tensor]
    ) -> SampleMoments:
        """Weight [O, I]; bias [O]."""
        if x.dim() == 2 and self.axis.alone:  # one position
            if argument == "bias":
                return of_rows(d, use)
            x = cast(x, d.dtype)
            return sample_moments.linear(x, d, unit=use.unit, want=use.want, factor=use.factor)
        d = self._positions(d)
        if argument == "bias":
            return of_rows(_sum(d, 1), use)
        x = cast(self._positions(x), d.dtype)
        return sample_moments.linear(x, d, unit=use.unit, want=use.want, factor=use.factor)

    def gram(
        self, use: Use, argument: str, x: Tensor, d: Tensor, saved: Sequence[Tensor]
    ) -> Tensor | None:
        """By the cheaper route."""
        if argument == "bias":
            return super().gram(use, argument, x, d, saved)
        x = cast(self._positions(x), d.dtype)
        return gram.linear(x, self._positions(d), unit=use.unit)

    def unit_gradients(
        self, argument: str, x: Tensor, d: Tensor, saved: Sequence[Tensor], units: slice, unit: int
    ) -> Tensor:
        """[units, O, I] or [units, O]."""
        d = self._positions(d)[units.start * unit : units.stop * unit]
        if argument == "bias":
            return in_units(_sum(d, 1), slice(0, units.stop - units.start), unit)
        x = self._positions(x)[units.start * unit : units.stop * unit].to(d.dtype)
        d, x = (t.unflatten(0, (-1, unit)).flatten(1, 2) for t in (d, x))
        return torch.einsum("uto,uti->uoi", d, x)


@dataclass
class Convolution(Call):
    """``F.conv1d`` to ``conv3d`` and their transposed forms: x [N, I, *size].

    Attributes:
        function: Which of them; unlike what they are made of, autocast knows them.
        stride: One number for each dimension, like all that follow.
        padding: In zeros.
        dilation: Of the kernel.
        groups: Of the channels.
        transposed: Whether it is a transposed form.
        output_padding: Zeros where it is not.
    """

    function: Callable[..., Tensor]
    stride: list[int]
    padding: list[int]
    dilation: list[int]
    groups: int
    transposed: bool
    output_padding: list[int]

    def forward(self, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> tuple[Any, ...]:
        """[N, O, *size]."""
        options: tuple[Any, ...] = (self.dilation, self.groups)
        if self.transposed:
            options = (self.output_padding, self.groups, self.dilation)
        return (self.function(x, weight, bias, self.stride, self.padding, *options),)

    def _geometry(self) -> tuple[Any, ...]:
        extra = self.output_padding
        return self.stride, self.padding, self.dilation, self.transposed, extra, self.groups

    def input_gradient(
        self, d: Tensor, x: Tensor, weight: Tensor | None, saved: Sequence[Tensor]
    ) -> Tensor:
        """As aten computes it."""
        assert weight is not None
        mask = [True, False, False]
        kernel = cast(weight, d.dtype)
        dx, _, _ = aten.convolution_backward.default(
            d, cast(x, d.dtype), kernel, None, *self._geometry(), mask
        )
        return cast(dx, x.dtype)

    def _images(self, tensor: Tensor) -> tuple[Tensor, int]:
        """Images with each sample's one after another, and how many a sample has."""
        images = self.axis.outer * self.axis.inner
        if self.axis.outer > 1:
            tensor = samples_first(tensor, self.axis).flatten(0, 1)
            if tensor.dim() == 4 and not tensor.is_contiguous():
                tensor = tensor.contiguous(memory_format=torch.channels_last)
        return tensor, images

    def measure(
        self, use: Use, argument: str, x: Tensor, d: Tensor, saved: Sequence[Tensor]
    ) -> SampleMoments:
        """Weight in its shape; bias [O]."""
        d, images = self._images(d)
        if argument == "bias":
            rows = _sum(d.flatten(2), 2)
            return of_rows(rows.unflatten(0, (-1, images)).sum(1), use)
        x, _ = self._images(x)
        return sample_moments.convolution(
            cast(x, d.dtype),
            d,
            use.shape[2:],
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            groups=self.groups,
            transposed=self.transposed,
            unit=use.unit * images,
            want=use.want,
            factor=use.factor,
        )

    def gram(
        self, use: Use, argument: str, x: Tensor, d: Tensor, saved: Sequence[Tensor]
    ) -> Tensor | None:
        """By the cheaper route."""
        if argument == "bias":
            return super().gram(use, argument, x, d, saved)
        d, images = self._images(d)
        x, _ = self._images(x)
        return gram.convolution(
            cast(x, d.dtype),
            d,
            use.shape[2:],
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            groups=self.groups,
            transposed=self.transposed,
            unit=use.unit * images,
        )

    def unit_gradients(
        self, argument: str, x: Tensor, d: Tensor, saved: Sequence[Tensor], units: slice, unit: int
    ) -> Tensor:
        """[units, *weight.shape] or [units, O]."""
        d, images = self._images(d)
        x, _ = self._images(x)
        of_unit = unit * images
        if argument == "bias":
            return in_units(_sum(d.flatten(2), 2), units, of_unit)
        gradients = []
        for index in range(units.start, units.stop):
            part = slice(index * of_unit, (index + 1) * of_unit)
            gradients.append(
                aten.convolution_backward.default(
                    d[part],
                    x[part].to(d.dtype),
                    d.new_empty(self.uses["weight"].shape),
                    None,
                    *self._geometry(),
                    [False, True, False],
                )[1]
            )
        return torch.stack(gradients)
