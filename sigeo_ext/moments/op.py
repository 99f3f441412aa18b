"""Registration of the moments ops; `sigeo_ext.moments` documents them."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from sigeo_ext._lists import OptionalTensorList, batched, device_of, numel, per_member
from sigeo_ext._op import define
from sigeo_ext.moments import reference
from sigeo_ext.moments.reference import COLUMNS

# Floating-point operations a coordinate, by count of instructions in the kernels.
_UPDATE_FLOPS = 8
_SUMMARY_FLOPS = 11
_ROW_FLOPS = 8


def _update_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    _, mean, _, grads, ctx.count = inputs
    ctx.whole = all(g is not None for g in grads)
    # torch takes a list that holds None for a constant: a gradient through it would be lost.
    if not ctx.whole and any(g is not None and g.requires_grad for g in grads):
        raise RuntimeError(
            "moments_update: grads that require gradients must all be there, got None among them"
        )
    ctx.layers = len(mean)
    ctx.save_for_backward(*mean, *(grads if ctx.whole else ()))


def _update_backward(
    ctx: Any, d_abs: list[Tensor], d_mean: list[Tensor], d_m2: list[Tensor]
) -> tuple[Any, ...]:
    n = ctx.count + 1
    means, grads = ctx.saved_tensors[: ctx.layers], ctx.saved_tensors[ctx.layers :]
    into_abs, into_mean, into_m2, into_grads = [], [], [], []
    for layer, mean in enumerate(means):
        value = grads[layer].to(mean.dtype) if ctx.whole else torch.zeros_like(mean)
        # M2 gains (g - mean)^2 (n-1)/n, and the mean moves by (g - mean)/n.
        unread = torch.zeros_like(mean)  # the state at count 0 may hold anything, NaN as well
        through_m2 = d_m2[layer] * 2 * (value - mean) * (ctx.count / n) if ctx.count else unread
        through_mean = d_mean[layer] * (ctx.count / n) - through_m2
        into_abs.append(d_abs[layer] if ctx.count > 1 else unread)
        into_m2.append(d_m2[layer] if ctx.count > 1 else unread)
        if ctx.count == 1:  # A1 is read off the mean
            through_mean = through_mean + d_abs[layer] * mean.sign()
        into_mean.append(through_mean if ctx.count else unread)
        into_grad = d_abs[layer] * value.sign() + d_mean[layer] / n + through_m2
        into_grads.append(into_grad.to(grads[layer].dtype) if ctx.whole else None)
    return into_abs, into_mean, into_m2, into_grads if ctx.whole else None, None


def _update_vmap(info: Any, in_dims: Any, *args: Any) -> tuple[Any, Any]:
    lists = [batched(a, d, info.batch_size) for a, d in zip(args[:4], in_dims[:4], strict=True)]
    dims = [0] * len(lists[0])
    return moments_update(*lists, args[4]), (dims, dims, dims)


_STATE = "Tensor[] abs_sum, Tensor[] mean, Tensor[] m2"
moments_update = define(
    f"moments_update({_STATE}, Tensor?[] grads, SymInt count) -> (Tensor[], Tensor[], Tensor[])",
    reference.update,
    fake=lambda abs_sum, mean, m2, grads, count: tuple(
        [torch.empty_like(t) for t in abs_sum] for _ in range(3)
    ),
    setup_context=_update_context,
    backward=_update_backward,
    vmap=_update_vmap,
    flops=lambda abs_sum, *_, **__: _UPDATE_FLOPS * numel(abs_sum),
)
moments_update_ = define(
    "moments_update_(Tensor(a!)[] abs_sum, Tensor(b!)[] mean, Tensor(c!)[] m2, "
    "Tensor?[] grads, SymInt count) -> ()",
    reference.update_,
    fake=lambda abs_sum, mean, m2, grads, count: None,
    flops=lambda abs_sum, *_, **__: _UPDATE_FLOPS * numel(abs_sum),
)
moments_fold_rows_ = define(
    "moments_fold_rows_(Tensor(a!)[] first, Tensor(b!)[] second, Tensor(c!)[] third) -> ()",
    reference.fold_rows_,
    fake=lambda first, second, third: None,
    flops=lambda first, *_, **__: 3 * _ROW_FLOPS * numel(first),
)


def _new_summary(tensors: OptionalTensorList, layers: int) -> Tensor:
    return torch.empty(layers, len(COLUMNS), dtype=torch.float64, device=device_of(tensors))


moments_summary = define(
    f"moments_summary({_STATE}, Tensor?[] grads, Tensor[] weights, "
    "SymInt count, SymInt ddof) -> Tensor",
    reference.summary,
    fake=lambda abs_sum, mean, m2, grads, weights, count, ddof: _new_summary(mean, len(mean)),
    vmap=per_member("moments_summary", [False] * 7),
    flops=lambda abs_sum, *_, **__: _SUMMARY_FLOPS * numel(abs_sum),
)
moments_rows_summary = define(
    "moments_rows_summary(Tensor?[] rows, Tensor[] weights, int count, SymInt ddof) -> Tensor",
    reference.rows_summary,
    fake=lambda rows, weights, count, ddof: _new_summary([*rows, *weights], len(rows) // count),
    vmap=per_member("moments_rows_summary", [True, False, False, False]),
    flops=lambda rows, weights, count, *_, **__: (
        (_ROW_FLOPS + _SUMMARY_FLOPS // count) * numel([row for row in rows if row is not None])
    ),
)


def _dot_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    a, b = inputs
    ctx.layers = len(a)
    ctx.save_for_backward(*a, *b)


def _dot_backward(ctx: Any, grad: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    a, b = ctx.saved_tensors[: ctx.layers], ctx.saved_tensors[ctx.layers :]
    rows = grad.unbind()
    into_a = [(g * y.double()).to(x.dtype) for g, x, y in zip(rows, a, b, strict=True)]
    into_b = [(g * x.double()).to(y.dtype) for g, x, y in zip(rows, a, b, strict=True)]
    return into_a, into_b


moments_dot = define(
    "moments_dot(Tensor[] a, Tensor[] b) -> Tensor",
    reference.dot,
    fake=lambda a, b: torch.empty(len(a), dtype=torch.float64, device=device_of(a)),
    setup_context=_dot_context,
    backward=_dot_backward,
    vmap=per_member("moments_dot", [False, False]),
    flops=lambda a, *_, **__: 2 * numel(a),
)


def _row_dots_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs)


def _row_dots_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
    a, b = ctx.saved_tensors
    rows = grad.view(-1, *[1] * (a.dim() - 1))
    need_a, need_b = ctx.needs_input_grad
    return (
        (rows * b.double()).to(a.dtype) if need_a else None,
        (rows * a.double()).to(b.dtype) if need_b else None,
    )


def _row_dots_vmap(info: Any, in_dims: Any, a: Tensor, b: Tensor) -> tuple[Tensor, int]:
    stacked = [batched([t], d, info.batch_size)[0] for t, d in zip((a, b), in_dims, strict=True)]
    flat = [t.flatten(0, 1) for t in stacked if t is not None]
    rows = 0 if stacked[0] is None else stacked[0].shape[1]
    return moments_row_dots(*flat).view(info.batch_size, rows), 0


def _row_dots_fake(a: Tensor, b: Tensor) -> Tensor:
    if a.shape != b.shape:
        raise RuntimeError(
            f"moments_row_dots: b must have the shape of a, {list(a.shape)}, got {list(b.shape)}"
        )
    return a.new_empty(a.shape[0], dtype=torch.float64)


moments_row_dots = define(
    "moments_row_dots(Tensor a, Tensor b) -> Tensor",
    reference.row_dots,
    fake=_row_dots_fake,
    setup_context=_row_dots_context,
    backward=_row_dots_backward,
    vmap=_row_dots_vmap,
    flops=lambda a, *_, **__: 2 * math.prod(a),
)
