"""Registration of the gram ops; `sigeo_ext.gram` documents them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sigeo_ext._op import define
from sigeo_ext.gram import reference


def _square(like: Tensor, count: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return like.new_empty(count, count, dtype=dtype)


def _lists_fake(rows: Sequence[Tensor | None], count: int, difference: bool) -> Tensor:
    like = next((t for t in rows if t is not None), torch.empty(0))
    return _square(like, count)


gram_lists: Callable[..., Tensor] = define(
    "gram_lists(Tensor?[] rows, SymInt count, bool difference) -> Tensor",
    reference.lists,
    fake=_lists_fake,
    flops=lambda rows, count, difference, **_: (
        (3 if difference else 2) * sum(math.prod(r) for r in rows if r is not None) * (count + 1)
    ),
)


def _convolution_flops(
    x: Sequence[int],
    d: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    unit: int,
    **_: object,
) -> int:
    weight = d[-1] * math.prod(kernel) * (x[-1] // groups)
    units = x[0] // unit
    return weight * (2 * math.prod(d[:-1]) + units * (units + 1))


gram_convolution: Callable[..., Tensor] = define(
    "gram_convolution(Tensor x, Tensor d, SymInt[] kernel, SymInt[] stride, SymInt[] padding, "
    "SymInt[] dilation, SymInt groups, SymInt unit) -> Tensor",
    reference.convolution,
    fake=lambda x, d, kernel, stride, padding, dilation, groups, unit: _square(
        x, x.shape[0] // unit
    ),
    flops=_convolution_flops,
    triton="sigeo_ext.gram.triton:convolution",
)

gram_embedding: Callable[..., Tensor] = define(
    "gram_embedding(Tensor rows, Tensor? units, Tensor gradients, SymInt count, SymInt entries, "
    "int skipped) -> Tensor",
    reference.embedding,
    fake=lambda rows, units, gradients, count, entries, skipped: _square(gradients, count),
    flops=lambda rows, units, gradients, *_, **__: 2 * math.prod(gradients),
)

gram_hamming: Callable[..., Tensor] = define(
    "gram_hamming(Tensor codes) -> Tensor",
    reference.hamming,
    fake=lambda codes: _square(codes, codes.shape[0], torch.int64),
    flops=lambda codes, **_: codes[0] * (codes[0] + 1) // 2 * codes[1],
)
