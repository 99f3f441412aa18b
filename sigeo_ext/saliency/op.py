"""Registration of the saliency op; `sigeo_ext.saliency` documents it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sigeo_ext._lists import device_of, numel, per_member
from sigeo_ext._op import define
from sigeo_ext.saliency import reference
from sigeo_ext.saliency.reference import chosen, log_abs

# Floating-point operations a coordinate, by count of instructions in the kernels.
_FLOPS = {
    "product": 2,
    "abs_product": 3,
    "log_abs_product": 3,
    "log1p_product": 29,
    "weight_sq": 2,
    "gradient_sq": 2,
}

# d column / d w and d column / d g, of w, g and the column's value.
_Derivatives = Callable[[Tensor, Tensor, Tensor], tuple[Tensor | float, Tensor | float]]


def _log_abs(w: Tensor, g: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """|g| / sum |w g| and |w| / sum |w g|, by their logs; 0 where the sum is 0."""
    value = value.masked_fill(value.isneginf(), 0.0)
    into_w = w.sign() * (log_abs(g) - value).exp()
    return into_w, g.sign() * (log_abs(w) - value).exp()


def _log1p(w: Tensor, g: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    log = g.log1p()
    return w.sign() * log.abs(), w.abs() * log.sign() / (1 + g)


_DERIVATIVES: dict[str, _Derivatives] = {
    "product": lambda w, g, _: (g, w),
    "abs_product": lambda w, g, _: (w.sign() * g.abs(), g.sign() * w.abs()),
    "log_abs_product": _log_abs,
    "log1p_product": _log1p,
    "weight_sq": lambda w, g, _: (2 * w, 0.0),
    "gradient_sq": lambda w, g, _: (0.0, 2 * g),
}


def _context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    weights, gradients, ctx.want = inputs
    # torch takes a list that holds None for a constant: a gradient through it would be lost.
    holed = any(g is None for g in gradients)
    if holed and any(g is not None and g.requires_grad for g in gradients):
        raise RuntimeError(
            "saliency_sums: gradients that require gradients must all be there, got None among them"
        )
    ctx.layers, ctx.present = len(weights), [g is not None for g in gradients]
    ctx.save_for_backward(*weights, *(g for g in gradients if g is not None), output)


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    *saved, output = ctx.saved_tensors
    weights, given = saved[: ctx.layers], iter(saved[ctx.layers :])
    gradients = [next(given) if there else None for there in ctx.present]
    into_weights, into_gradients = [], []
    for layer, weight in enumerate(weights):
        gradient = gradients[layer] if gradients else None
        w = weight.double()
        g = torch.zeros_like(w) if gradient is None else gradient.double()
        into_w, into_g = torch.zeros_like(w), torch.zeros_like(w)
        for column, name in enumerate(chosen(ctx.want)):
            by_w, by_g = _DERIVATIVES[name](w, g, output[layer, column])
            into_w = into_w + grad[layer, column] * by_w
            into_g = into_g + grad[layer, column] * by_g
        into_weights.append(into_w.to(weight.dtype))
        into_gradients.append(None if gradient is None else into_g.to(gradient.dtype))
    return into_weights, into_gradients[: len(gradients)] if all(ctx.present) else None, None


saliency_sums = define(
    "saliency_sums(Tensor[] weights, Tensor?[] gradients, int want) -> Tensor",
    reference.sums,
    fake=lambda weights, gradients, want: torch.empty(
        len(weights), len(chosen(want)), dtype=torch.float64, device=device_of(weights, gradients)
    ),
    setup_context=_context,
    backward=_backward,
    vmap=per_member("saliency_sums", [False] * 3),
    flops=lambda weights, gradients, want, **_: (
        sum(_FLOPS[name] for name in chosen(want)) * numel(weights)
    ),
)
