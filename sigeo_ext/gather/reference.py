"""What the gather ops mean, in plain PyTorch: their fallback on any device, and their judge."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sigeo_ext import _check


def dispatch(x: Tensor, index: Sequence[Tensor], rectified: int) -> list[Tensor]:
    """Blocks of x for each list of them, the first ``rectified`` lists through a ReLU."""
    _check_dispatch("gather_dispatch", x, index, rectified)
    copies = []
    for place, blocks in enumerate(index):
        chosen = x[:1] if shared(x) else x.index_select(0, blocks)
        chosen = chosen.relu() if place < rectified else chosen.clone()
        copies.append(chosen.expand(len(blocks), *x.shape[1:]))
    return copies


def dispatch_backward(
    grads: Sequence[Tensor], x: Tensor, index: Sequence[Tensor], rectified: int
) -> Tensor:
    """The gradient of x: what its copies got, added up; 0 where a ReLU let nothing through."""
    _check_dispatch("gather_dispatch_backward", x, index, rectified)
    through_relu, plain = (torch.zeros(x.shape, dtype=x.dtype, device=x.device) for _ in range(2))
    for place, (grad, blocks) in enumerate(zip(grads, index, strict=True)):
        (through_relu if place < rectified else plain).index_add_(0, blocks, grad)
    return through_relu.masked_fill(x <= 0, 0) + plain  # a NaN lets through, as in torch's ReLU


def combine(
    normed: Sequence[Tensor],
    weight: Sequence[Tensor],
    bias: Sequence[Tensor],
    plain: Sequence[Tensor],
    target: Sequence[Tensor],
    blocks: int,
    eps: float,
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """The sum at each of ``blocks`` places; and mean and 1/deviation of the normed terms."""
    _check_combine("gather_combine", normed, weight, bias, plain, target, blocks)
    first = [*normed, *plain][0]
    alone = one_for_all(normed, weight, bias, plain, blocks)
    y = first.new_zeros(1 if alone else blocks, *first.shape[1:])
    means, rstds = [], []
    for x, scale, shift, place in zip(normed, weight, bias, target, strict=False):
        mean = x.mean(1)
        centred = x - mean[:, None]
        rstd = (centred.square().mean(1) + eps).rsqrt()
        term = centred * (rstd * scale)[:, None] + shift[:, None]
        if alone:
            y += term[:1]
        else:
            y.index_add_(0, place, term)
        means.append(mean)
        rstds.append(rstd)
    for x, place in zip(plain, target[len(normed) :], strict=True):
        y.index_add_(0, place, x)
    return y.expand(blocks, *y.shape[1:]), means, rstds


def combine_backward(
    d: Tensor,
    normed: Sequence[Tensor],
    weight: Sequence[Tensor],
    target: Sequence[Tensor],
    mean: Sequence[Tensor],
    rstd: Sequence[Tensor],
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Gradients of the normed terms, their weights and their biases."""
    into_x, into_weight, into_bias = [], [], []
    for x, scale, place, m, r in zip(normed, weight, target, mean, rstd, strict=True):
        g = d.index_select(0, place)
        xhat = (x - m[:, None]) * r[:, None]
        shift, inner = g.sum(1), (g * xhat).sum(1)
        values = x.shape[1]
        centred = g - (shift / values)[:, None] - xhat * (inner / values)[:, None]
        into_x.append(centred * (scale * r)[:, None])
        into_weight.append(inner)
        into_bias.append(shift)
    return into_x, into_weight, into_bias


def shared(x: Tensor) -> bool:
    """Whether all blocks are one in memory."""
    return len(x) > 1 and x.stride(0) == 0


def one_for_all(
    normed: Sequence[Tensor],
    weight: Sequence[Tensor],
    bias: Sequence[Tensor],
    plain: Sequence[Tensor],
    blocks: int,
) -> bool:
    """Whether one block computed gives all: one term, of one block and one norm in memory."""
    single = len(normed) == 1 and not plain and len(normed[0]) == blocks
    return single and all(shared(values[0]) for values in (normed, weight, bias))


def _check_blocks(op: str, name: str, x: Tensor) -> None:
    dtypes = (torch.float32, torch.float64)
    ok = x.dim() == 3 and x.dtype in dtypes
    message = f"{name} must be float32 or float64 [blocks, positions, channels], got"
    _check.require(ok, op, f"{message} {_check.form_of(x)}")


def _check_places(op: str, name: str, places: Tensor, length: int, blocks: int) -> None:
    ok = places.dim() == 1 and places.dtype == torch.int64 and len(places) == length
    message = f"{name} must be int64 [{length}], got"
    _check.require(ok, op, f"{message} {_check.form_of(places)}")
    if not _check.has_values(places):
        return
    outside = places[(places < 0) | (places >= blocks)].tolist()
    if outside:
        _check.require(False, op, f"{name} must be blocks below {blocks}, got {outside[0]}")


def _check_dispatch(op: str, x: Tensor, index: Sequence[Tensor], rectified: int) -> None:
    _check_blocks(op, "x", x)
    for place, blocks in enumerate(index):
        _check_places(op, f"index[{place}]", blocks, blocks.numel(), len(x))
    message = f"rectified must be from 0 to {len(index)}, got {rectified}"
    _check.require(0 <= rectified <= len(index), op, message)


def _check_combine(
    op: str,
    normed: Sequence[Tensor],
    weight: Sequence[Tensor],
    bias: Sequence[Tensor],
    plain: Sequence[Tensor],
    target: Sequence[Tensor],
    blocks: int,
) -> None:
    terms = [(f"normed[{i}]", x) for i, x in enumerate(normed)]
    terms += [(f"plain[{i}]", x) for i, x in enumerate(plain)]
    _check.require(bool(terms), op, "expected at least one term, got none")
    counts = {"weight": len(weight), "bias": len(bias)}
    for name, count in counts.items():
        message = f"{name} must hold one tensor a normed term, {len(normed)}, got {count}"
        _check.require(count == len(normed), op, message)
    message = f"target must hold one tensor a term, {len(terms)}, got {len(target)}"
    _check.require(len(target) == len(terms), op, message)
    like = terms[0][1]
    for number, ((name, x), place) in enumerate(zip(terms, target, strict=True)):
        _check_blocks(op, name, x)
        expected = f"{name} must be blocks like the other terms', {_check.form_of(like)}"
        same = x.shape[1:] == like.shape[1:] and x.dtype == like.dtype
        _check.require(same, op, f"{expected}, got {_check.form_of(x)}")
        _check_places(op, f"target[{number}]", place, len(x), blocks)
    for x, scale, shift in zip(normed, weight, bias, strict=True):
        for name, value in (("weight", scale), ("bias", shift)):
            shape = [len(x), x.shape[2]]
            expected = f"{name} must be {_check.dtype_of(x)} {shape} like its term"
            fits = list(value.shape) == shape and value.dtype == x.dtype
            _check.require(fits, op, f"{expected}, got {_check.form_of(value)}")
