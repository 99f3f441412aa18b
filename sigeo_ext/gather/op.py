"""Registration of the gather ops; `sigeo_ext.gather` documents them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sigeo_ext._op import define
from sigeo_ext.gather import cell_reference, reference
from sigeo_ext.gather.reference import one_for_all, shared


def _kept_nothing(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    pass


def _second_derivative(ctx: Any, *grads: Any) -> Any:
    raise RuntimeError("gather: its gradients cannot be differentiated again")


_ONCE: dict[str, Any] = {"setup_context": _kept_nothing, "backward": _second_derivative}


def _dispatch_fake(x: Tensor, index: Sequence[Tensor], rectified: int) -> list[Tensor]:
    copies = 1 if shared(x) else None
    return [x.new_empty(copies or len(i), *x.shape[1:]).expand(len(i), *x.shape[1:]) for i in index]


def _dispatch_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    x, index, ctx.rectified = inputs
    ctx.save_for_backward(x, *index)


def _dispatch_backward(ctx: Any, grads: list[Tensor | None]) -> tuple[Any, ...]:
    x, *index = ctx.saved_tensors
    grads = [
        x.new_zeros(len(blocks), *x.shape[1:]) if g is None else g.contiguous()
        for g, blocks in zip(grads, index, strict=True)
    ]
    into = gather_dispatch_backward(grads, x, index, ctx.rectified)
    return into, [None] * len(index), None


gather_dispatch = define(
    "gather_dispatch(Tensor x, Tensor[] index, int rectified) -> Tensor[]",
    reference.dispatch,
    fake=_dispatch_fake,
    setup_context=_dispatch_context,
    backward=_dispatch_backward,
)
gather_dispatch_backward = define(
    "gather_dispatch_backward(Tensor[] grads, Tensor x, Tensor[] index, int rectified) -> Tensor",
    reference.dispatch_backward,
    fake=lambda grads, x, index, rectified: x.new_empty(x.shape),
    **_ONCE,
)


def _combine_fake(
    normed: Sequence[Tensor],
    weight: Sequence[Tensor],
    bias: Sequence[Tensor],
    plain: Sequence[Tensor],
    target: Sequence[Tensor],
    blocks: int,
    eps: float,
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    first = [*normed, *plain][0]
    made = 1 if one_for_all(normed, weight, bias, plain, blocks) else blocks
    y = first.new_empty(made, *first.shape[1:]).expand(blocks, *first.shape[1:])
    means = [x.new_empty(len(x), x.shape[2]) for x in normed]
    return y, means, [torch.empty_like(m) for m in means]


def _combine_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    normed, weight, _, _, target, _, _ = inputs
    _, mean, rstd = output
    ctx.terms = len(normed)
    ctx.mark_non_differentiable(*mean, *rstd)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*normed, *weight, *mean, *rstd, *target)


def _combine_backward(ctx: Any, d: Tensor | None, *unused: Any) -> tuple[Any, ...]:
    n = ctx.terms
    if d is None:
        plain = [None] * (len(ctx.saved_tensors) - 5 * n)
        return [None] * n, [None] * n, [None] * n, plain, [None] * (n + len(plain)), None, None
    saved = ctx.saved_tensors
    normed, weight, mean, rstd = (saved[i * n : (i + 1) * n] for i in range(4))
    target = saved[4 * n :]
    d = d.contiguous()
    into = gather_combine_backward(d, normed, weight, target[:n], mean, rstd)
    into_plain = gather_dispatch(d, list(target[n:]), 0) if target[n:] else []
    return *into, into_plain, [None] * len(target), None, None


_TERMS = "Tensor[] normed, Tensor[] weight"
gather_combine = define(
    f"gather_combine({_TERMS}, Tensor[] bias, Tensor[] plain, Tensor[] target, "
    "SymInt blocks, float eps) -> (Tensor, Tensor[], Tensor[])",
    reference.combine,
    fake=_combine_fake,
    setup_context=_combine_context,
    backward=_combine_backward,
)
gather_combine_backward = define(
    f"gather_combine_backward(Tensor d, {_TERMS}, Tensor[] target, Tensor[] mean, Tensor[] rstd) "
    "-> (Tensor[], Tensor[], Tensor[])",
    reference.combine_backward,
    fake=lambda d, normed, weight, target, mean, rstd: (
        [x.new_empty(x.shape) for x in normed],
        [m.new_empty(m.shape) for m in mean],
        [m.new_empty(m.shape) for m in mean],
    ),
    **_ONCE,
)


def _cell_fake(
    x: Tensor,
    weight: Sequence[Tensor],
    scale: Sequence[Tensor],
    shift: Sequence[Tensor],
    edges: Sequence[int],
    nodes: int,
    eps: float,
) -> tuple[Tensor, list[Tensor]]:
    _, images, rows = cell_reference.kept_places(cell_reference.edges_of(edges))
    kept = [x.new_empty(x.shape[1:]) for _ in range(images)]
    statistics = [x.new_empty(rows, x.shape[-1]) for _ in range(2)]
    return x.new_empty(x.shape), [*kept, *statistics]


def _cell_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    _, weight, scale, _, ctx.edges, ctx.nodes, _ = inputs
    _, kept = output
    ctx.slots = len(weight)
    ctx.mark_non_differentiable(*kept)
    ctx.set_materialize_grads(False)  # zeros for all that was kept, else
    ctx.save_for_backward(*weight, *scale, *kept)


def _cell_backward(ctx: Any, d: Tensor | None, unused: Any) -> tuple[Any, ...]:
    if d is None:
        rows = [None] * ctx.slots
        return None, rows, rows, rows, None, None, None
    saved = ctx.saved_tensors
    weight, scale = saved[: ctx.slots], saved[ctx.slots : 2 * ctx.slots]
    kept = saved[2 * ctx.slots :]
    into = gather_cell_backward(d, weight, scale, kept, ctx.edges, ctx.nodes)
    return *into, None, None, None


def _cell_flops(x: Any, weight: Any, edges: Sequence[int], passes: int) -> int:
    pixels = math.prod(x[1:4])
    return sum(
        passes * 2 * pixels * math.prod(weight[edge.slot][1:])
        for edge in cell_reference.edges_of(edges)
        if edge.convolves
    )


gather_cell = define(
    "gather_cell(Tensor x, Tensor[] weight, Tensor[] scale, Tensor[] shift, int[] edges, "
    "int nodes, float eps) -> (Tensor, Tensor[])",
    cell_reference.cell,
    fake=_cell_fake,
    setup_context=_cell_context,
    backward=_cell_backward,
    flops=lambda x, weight, scale, shift, edges, *_, **__: _cell_flops(x, weight, edges, 1),
)
gather_cell_backward = define(
    "gather_cell_backward(Tensor d, Tensor[] weight, Tensor[] scale, Tensor[] kept, "
    "int[] edges, int nodes) -> (Tensor, Tensor[], Tensor[], Tensor[])",
    cell_reference.cell_backward,
    fake=lambda d, weight, scale, kept, edges, nodes: (
        d.new_empty(d.shape),
        [w.new_empty(w.shape) for w in weight],
        [s.new_empty(s.shape) for s in scale],
        [s.new_empty(s.shape) for s in scale],
    ),
    flops=lambda d, weight, scale, kept, edges, *_, **__: _cell_flops(d, weight, edges, 2),
    **_ONCE,
)
