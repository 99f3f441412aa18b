"""Registration of the slice ops; `sigeo_ext.gather.slices` documents them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from sigeo_ext._op import define, refuse_tangents
from sigeo_ext.gather import slices_checks as checks
from sigeo_ext.gather import slices_reference as reference
from sigeo_ext.gather.selection import length

_SELECTION = "SymInt[] outputs, SymInt[] inputs, Tensor? output_index, Tensor? input_index"
_TRITON = "sigeo_ext.gather.triton.slices"
_GEOMETRY = "SymInt[] kernel, SymInt[] stride, SymInt[] padding, SymInt[] dilation, SymInt groups"


def _is_asked_for(leaf: Tensor) -> bool:
    """Whether the running backward pass fills a leaf's ``.grad``."""
    node = torch.autograd.graph.get_gradient_edge(leaf).node
    try:
        return bool(torch._C._will_engine_execute_node(node))
    except RuntimeError:  # `torch.autograd.grad` of the leaf, which fills none
        return False


def gradient_of(weight: Tensor, accumulate: bool) -> Tensor | None:
    """The existing gradient to add to in place, if that was asked for and can be."""
    if not accumulate or not weight.is_leaf or not _is_asked_for(weight):
        return None
    found = weight.grad
    usable = found is not None and found.layout == torch.strided and found.dtype == weight.dtype
    return found if usable else None


def _wanted(gradients: Sequence[Tensor], need: Sequence[bool]) -> tuple[Tensor | None, ...]:
    return tuple(g if wanted else None for g, wanted in zip(gradients, need, strict=True))


def _twice(
    layer: Callable[..., Tensor],
    d: Tensor,
    tensors: tuple[Tensor, Tensor],
    need: Sequence[bool],
    *given: Any,
) -> tuple[Tensor | None, ...]:
    """Gradients that can be differentiated once more: those of plain torch."""
    # Of their own here: what leads to them is not to be gone through now.
    tensors = tensors[0].view_as(tensors[0]), tensors[1].view_as(tensors[1])
    weight = tensors[1]
    bias = weight.new_zeros(weight.shape[0], requires_grad=True)  # its gradient needs no value
    leaves = (*tensors, bias)
    wanted = [leaf for leaf, needed in zip(leaves, need, strict=True) if needed]
    y = layer(*leaves, *given, False)
    found = iter(torch.autograd.grad(y, wanted, d, create_graph=True, allow_unused=True))
    return tuple(next(found) if needed else None for needed in need)


def _linear_fake(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    outputs: Sequence[int],
    inputs: Sequence[int],
    output_index: Tensor | None,
    input_index: Tensor | None,
    masked: bool,
    accumulate: bool,
) -> Tensor:
    op, selection = "gather_slice_linear", (outputs, inputs, output_index, input_index)
    checks.check_linear_shapes(op, x, weight, masked, *selection)
    checks.check_bias(op, bias, weight)
    width = weight.shape[0] if masked else length(outputs, output_index)
    return x.new_empty(*x.shape[:-1], width)


def _linear_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    x, weight, _, ctx.outputs, ctx.inputs, *index, ctx.masked, ctx.accumulate = inputs
    ctx.save_for_backward(x, weight, *index)


def _linear_backward(ctx: Any, d: Tensor) -> tuple[Any, ...]:
    x, weight, *index = ctx.saved_tensors
    need = list(ctx.needs_input_grad[:3])
    selection = (ctx.outputs, ctx.inputs, *index, ctx.masked)
    if torch.is_grad_enabled():
        return *_twice(reference.linear, d, (x, weight), need, *selection), *[None] * 6
    refuse_tangents("gather_slice_linear", [d])
    into = gradient_of(weight, ctx.accumulate) if need[1] else None
    if into is not None:
        gather_slice_linear_accumulate(d, x, into, *selection)
        need[1] = False
    gradients: tuple[Any, ...] = (None, None, None)
    if any(need):
        gradients = _wanted(gather_slice_linear_backward(d, x, weight, *selection, need), need)
    return *gradients, *[None] * 6


def _linear_backward_fake(
    d: Tensor, x: Tensor, weight: Tensor, *selection: Any
) -> tuple[Tensor, Tensor, Tensor]:
    need = selection[-1]
    return (
        x.new_empty(x.shape if need[0] else 0),
        torch.empty_like(weight) if need[1] else x.new_empty(0),
        x.new_empty(weight.shape[0] if need[2] else 0),
    )


def _linear_flops(
    x: Sequence[int], outputs: Any, inputs: Any, output_index: Any, input_index: Any
) -> int:
    selected = length(outputs, output_index) * length(inputs, input_index)
    return 2 * math.prod(x[:-1]) * int(selected)


gather_slice_linear = define(
    f"gather_slice_linear(Tensor x, Tensor weight, Tensor? bias, {_SELECTION}, bool masked, "
    "bool accumulate) -> Tensor",
    reference.linear,
    fake=_linear_fake,
    setup_context=_linear_context,
    backward=_linear_backward,
    flops=lambda x, weight, bias, *given, **_: _linear_flops(x, *given[:4]),
    triton=f"{_TRITON}:linear",
)
gather_slice_linear_backward = define(
    f"gather_slice_linear_backward(Tensor d, Tensor x, Tensor weight, {_SELECTION}, bool masked, "
    "bool[] need) -> (Tensor, Tensor, Tensor)",
    reference.linear_backward,
    fake=_linear_backward_fake,
    flops=lambda d, x, weight, *given, **_: _linear_flops(x, *given[:4]) * sum(given[-1][:2]),
    triton=f"{_TRITON}:linear_backward",
)
gather_slice_linear_accumulate = define(
    f"gather_slice_linear_accumulate(Tensor d, Tensor x, Tensor(a!) into, {_SELECTION}, "
    "bool masked) -> ()",
    reference.linear_accumulate,
    fake=lambda *_: None,
    flops=lambda d, x, into, *given, **_: _linear_flops(x, *given[:4]),
    triton=f"{_TRITON}:linear_accumulate",
)


def _convolution_fake(x: Tensor, weight: Tensor, bias: Tensor | None, *given: Any) -> Tensor:
    outputs, inputs, output_index, input_index, kernel, *geometry, groups, masked, _ = given
    op, selection = "gather_slice_convolution", (outputs, inputs, output_index, input_index)
    checks.check_convolution_shapes(op, x, weight, *selection, groups, masked)
    checks.check_bias(op, bias, weight)
    size = reference.convolved(x, kernel, *geometry)
    width = weight.shape[0] if masked else length(outputs, output_index)
    format = reference.format_of(x, weight)
    return torch.empty(
        (x.shape[0], width, *size), dtype=x.dtype, device=x.device, memory_format=format
    )


def _convolution_backward_fake(
    d: Tensor, x: Tensor, weight: Tensor, *given: Any
) -> tuple[Tensor, Tensor, Tensor]:
    into_x, *rest = _linear_backward_fake(d, x, weight, *given)
    if given[-1][0]:
        format = reference.format_of(x, weight)
        into_x = torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=format)
    return into_x, *rest  # type: ignore[return-value]


def _convolution_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    x, weight, _, ctx.outputs, ctx.inputs, *index = inputs[:7]
    *ctx.geometry, ctx.accumulate = inputs[7:]
    ctx.save_for_backward(x, weight, *index)


def _convolution_backward(ctx: Any, d: Tensor) -> tuple[Any, ...]:
    x, weight, *index = ctx.saved_tensors
    need = list(ctx.needs_input_grad[:3])
    given = (ctx.outputs, ctx.inputs, *index, *ctx.geometry)
    if torch.is_grad_enabled():
        return *_twice(reference.convolution, d, (x, weight), need, *given), *[None] * 11
    refuse_tangents("gather_slice_convolution", [d])
    into = gradient_of(weight, ctx.accumulate) if need[1] else None
    if into is not None:
        gather_slice_convolution_accumulate(d, x, into, *given)
        need[1] = False
    gradients: tuple[Any, ...] = (None, None, None)
    if any(need):
        gradients = _wanted(gather_slice_convolution_backward(d, x, weight, *given, need), need)
    return *gradients, *[None] * 11


def _convolution_flops(d: Sequence[int], weight: Sequence[int], *given: Any) -> int:
    outputs, inputs, output_index, input_index, kernel, _, _, _, groups = given[:9]
    width = length(inputs, input_index) if groups == 1 else weight[1]
    places = d[0] * math.prod(d[2:]) * length(outputs, output_index)
    return int(2 * places * width * math.prod(kernel))


gather_slice_convolution = define(
    f"gather_slice_convolution(Tensor x, Tensor weight, Tensor? bias, {_SELECTION}, {_GEOMETRY}, "
    "bool masked, bool accumulate) -> Tensor",
    reference.convolution,
    fake=_convolution_fake,
    setup_context=_convolution_context,
    backward=_convolution_backward,
    flops=lambda x, weight, bias, *given, out_shape, **_: _convolution_flops(
        out_shape, weight, *given
    ),
)
gather_slice_convolution_backward = define(
    f"gather_slice_convolution_backward(Tensor d, Tensor x, Tensor weight, {_SELECTION}, "
    f"{_GEOMETRY}, bool masked, bool[] need) -> (Tensor, Tensor, Tensor)",
    reference.convolution_backward,
    fake=_convolution_backward_fake,
    flops=lambda d, x, weight, *given, **_: (
        _convolution_flops(d, weight, *given) * sum(given[-1][:2])
    ),
)
gather_slice_convolution_accumulate = define(
    f"gather_slice_convolution_accumulate(Tensor d, Tensor x, Tensor(a!) into, {_SELECTION}, "
    f"{_GEOMETRY}, bool masked) -> ()",
    reference.convolution_accumulate,
    fake=lambda *_: None,
    flops=lambda d, x, into, *given, **_: _convolution_flops(d, into, *given),
)


def _embedding_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    tokens, weight, ctx.columns, index, ctx.padding, ctx.accumulate = inputs
    ctx.save_for_backward(tokens, weight, index)


def _embedding_fake(
    tokens: Tensor,
    weight: Tensor,
    columns: Sequence[int],
    column_index: Tensor | None,
    padding: int,
    accumulate: bool,
) -> Tensor:
    checks.check_embedding_shapes("gather_slice_embedding", tokens, weight, column_index)
    return weight.new_empty(*tokens.shape, length(columns, column_index))


def _embedding_backward(ctx: Any, d: Tensor) -> tuple[Any, ...]:
    tokens, weight, index = ctx.saved_tensors
    if torch.is_grad_enabled():
        y = reference.embedding(tokens, weight, ctx.columns, index, ctx.padding, False)
        (gradient,) = torch.autograd.grad(y, weight, d, create_graph=True)
        return None, gradient, *[None] * 4
    refuse_tangents("gather_slice_embedding", [d])
    into = gradient_of(weight, ctx.accumulate)
    gradient = None
    if into is not None:
        gather_slice_embedding_accumulate(d, tokens, into, ctx.columns, index, ctx.padding)
    else:
        gradient = gather_slice_embedding_backward(
            d, tokens, weight, ctx.columns, index, ctx.padding
        )
    return None, gradient, *[None] * 4


_COLUMNS = "SymInt[] columns, Tensor? column_index, SymInt padding"
gather_slice_embedding = define(
    f"gather_slice_embedding(Tensor tokens, Tensor weight, {_COLUMNS}, bool accumulate) -> Tensor",
    lambda *given: reference.embedding(*given).contiguous(),  # a view where tokens are few
    fake=_embedding_fake,
    setup_context=_embedding_context,
    backward=_embedding_backward,
    triton=f"{_TRITON}:embedding",
)
gather_slice_embedding_backward = define(
    f"gather_slice_embedding_backward(Tensor d, Tensor tokens, Tensor weight, {_COLUMNS}) "
    "-> Tensor",
    reference.embedding_backward,
    fake=lambda d, tokens, weight, *_: torch.empty_like(weight),
    triton=f"{_TRITON}:embedding_backward",
)
gather_slice_embedding_accumulate = define(
    f"gather_slice_embedding_accumulate(Tensor d, Tensor tokens, Tensor(a!) into, {_COLUMNS}) "
    "-> ()",
    reference.embedding_accumulate,
    fake=lambda *_: None,
    triton=f"{_TRITON}:embedding_accumulate",
)
