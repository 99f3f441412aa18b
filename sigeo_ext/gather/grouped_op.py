"""Registration of the grouped ops; `sigeo_ext.gather.grouped` documents them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sigeo_ext._op import define, refuse_tangents
from sigeo_ext.gather import grouped_reference as reference
from sigeo_ext.gather.grouped_reference import Windows
from sigeo_ext.gather.slices_op import gradient_of
from sigeo_ext.sample_moments.reference import wanted

_WINDOWS = "SymInt[] outputs, SymInt[] inputs"
_TRITON = "sigeo_ext.gather.triton"


def _fake(
    x: Sequence[Tensor],
    weight: Tensor,
    bias: Tensor | None,
    outputs: Windows,
    inputs: Windows,
    accumulate: bool,
) -> list[Tensor]:
    return [
        rows.new_empty(*rows.shape[:-1], width)
        for rows, width in zip(x, outputs[1::2], strict=True)
    ]


def _context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    x, weight, _, ctx.outputs, ctx.inputs, ctx.accumulate = inputs
    ctx.save_for_backward(weight, *x)
    ctx.set_materialize_grads(False)


def _of(windows: Windows, subnets: Sequence[int]) -> list[int]:
    return [place for s in subnets for place in reference.window(windows, s)]


def _backward(ctx: Any, d: Sequence[Tensor | None]) -> tuple[Any, ...]:
    weight, *x = ctx.saved_tensors
    need_x, need_weight, need_bias, *_ = ctx.needs_input_grad
    # Subnets whose results nobody used take no part.
    used = [s for s, gradient in enumerate(d) if gradient is not None]
    gradients = [gradient for gradient in d if gradient is not None]
    windows = _of(ctx.outputs, used), _of(ctx.inputs, used)
    rows = [x[s] for s in used]
    into_x: list[Tensor | None] = [None] * len(x)
    rest: list[Tensor | None] = [None] * 2
    need = [any(need_x), need_weight, need_bias]
    if torch.is_grad_enabled():
        found, rest = _twice(gradients, rows, weight, windows, need)
    else:
        refuse_tangents("gather_grouped_linear", gradients)
        into = gradient_of(weight, ctx.accumulate) if need_weight else None
        if into is not None:
            gather_grouped_linear_accumulate(gradients, rows, into, *windows)
            need[1] = False
        found = []
        if any(need):
            found, *rest = gather_grouped_linear_backward(gradients, rows, weight, *windows, need)
    for s, gradient in zip(used, found, strict=need[0]):
        into_x[s] = gradient if need_x[s] else None
    rest = [g if needed else None for g, needed in zip(rest, need[1:], strict=True)]
    return into_x, *rest, None, None, None


def _twice(
    d: Sequence[Tensor],
    x: Sequence[Tensor],
    weight: Tensor,
    windows: tuple[Windows, Windows],
    need: Sequence[bool],
) -> tuple[Sequence[Tensor | None], list[Tensor | None]]:
    """Gradients that can be differentiated once more: those of plain torch."""
    # Of their own here: what leads to them is not to be gone through now.
    x, weight = [rows.view_as(rows) for rows in x], weight.view_as(weight)
    bias = weight.new_zeros(len(weight), requires_grad=True)  # its gradient needs no value
    leaves = [*x, weight, bias]
    asked = [leaf for leaf in leaves if leaf.requires_grad]
    y = reference.linear(x, weight, bias, *windows, False)
    found = torch.autograd.grad(y, asked, d, create_graph=True, allow_unused=True)
    by_leaf = {id(leaf): gradient for leaf, gradient in zip(asked, found, strict=True)}
    each = [by_leaf.get(id(leaf)) for leaf in leaves]
    return each[: len(x)] if need[0] else [], each[len(x) :]


def _backward_fake(
    d: Sequence[Tensor],
    x: Sequence[Tensor],
    weight: Tensor,
    outputs: Windows,
    inputs: Windows,
    need: Sequence[bool],
) -> tuple[list[Tensor], Tensor, Tensor]:
    return (
        [rows.new_empty(rows.shape) for rows in x] if need[0] else [],
        torch.empty_like(weight) if need[1] else weight.new_empty(0),
        weight.new_empty(weight.shape[0] if need[2] else 0),
    )


def _flops(x: Sequence[Sequence[int]], outputs: Windows) -> int:
    widths = zip(x, outputs[1::2], strict=True)
    return int(sum(2 * math.prod(shape) * width for shape, width in widths))


gather_grouped_linear = define(
    f"gather_grouped_linear(Tensor[] x, Tensor weight, Tensor? bias, {_WINDOWS}, "
    "bool accumulate) -> Tensor[]",
    reference.linear,
    fake=_fake,
    setup_context=_context,
    backward=_backward,
    flops=lambda x, weight, bias, outputs, *_, **__: _flops(x, outputs),
    triton=f"{_TRITON}:linear",
)
gather_grouped_linear_backward = define(
    f"gather_grouped_linear_backward(Tensor[] d, Tensor[] x, Tensor weight, {_WINDOWS}, "
    "bool[] need) -> (Tensor[], Tensor, Tensor)",
    reference.linear_backward,
    fake=_backward_fake,
    flops=lambda d, x, weight, outputs, inputs, need, **_: _flops(x, outputs) * sum(need[:2]),
    triton=f"{_TRITON}:linear_backward",
)
gather_grouped_linear_accumulate = define(
    f"gather_grouped_linear_accumulate(Tensor[] d, Tensor[] x, Tensor(a!) into, {_WINDOWS}) -> ()",
    reference.linear_accumulate,
    fake=lambda *_: None,
    flops=lambda d, x, into, outputs, *_, **__: _flops(x, outputs),
    triton=f"{_TRITON}:linear_accumulate",
)


def _moments_fake(
    x: Sequence[Tensor],
    d: Sequence[Tensor],
    size: Sequence[int],
    outputs: Windows,
    inputs: Windows,
    want: int,
) -> list[Tensor]:
    return [
        x[0].new_empty(len(x), dtype=torch.float64)
        if name == "sq_norm"
        else x[0].new_empty(list(size))
        for name in wanted(want)
    ]


gather_grouped_moments = define(
    f"gather_grouped_moments(Tensor[] x, Tensor[] d, SymInt[] size, {_WINDOWS}, int want) "
    "-> Tensor[]",
    reference.moments,
    fake=_moments_fake,
    flops=lambda x, d, size, outputs, inputs, want, **_: (
        _flops(x, outputs)
        + 2
        * len(wanted(want))
        * sum(math.prod(w) for w in zip(outputs[1::2], inputs[1::2], strict=True))
    ),
)
