"""Weight sharing without copies: many subnets of a supernet in one pass.

A *block* is what one subnet has at one place of the network: [positions, channels], the channels
innermost, positions being its samples' pixels. Tensors hold blocks [n, positions, channels], one a
subnet; blocks that are equal may be one in memory (a tensor expanded from one block), and are then
computed once.

`dispatch` hands blocks to the operations that their subnets chose, `combine` adds the results up at
a node, each normalised by batch statistics of its own if so wanted; `convolution` and `linear` run
blocks with weights of their own ([n, ...]) or with one weight for all (expanded from one), and give
each block's weight gradient either way.

Numbers of blocks that are on a GPU cannot be read without waiting for it. So the CUDA kernels do
not refuse those of blocks that do not exist but leave them out: a copy of such a block is NaN, and
a term adds nothing to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sigeo_ext import _check
from sigeo_ext._kinds import named_arguments
from sigeo_ext.gather import cell_reference, grouped, op, slices
from sigeo_ext.gather.batch_norm import batch_norm
from sigeo_ext.gather.cell_reference import Edge
from sigeo_ext.gather.layers import Convolution, check_linear

__all__ = [
    "IDENTITY",
    "POOL",
    "Combined",
    "Edge",
    "Norm",
    "Term",
    "batch_norm",
    "cell",
    "combine",
    "combined",
    "convolution",
    "dispatch",
    "grouped",
    "linear",
    "slices",
]


@named_arguments("gather.dispatch")
def dispatch(
    x: Tensor, rectified: Sequence[Tensor] = (), plain: Sequence[Tensor] = ()
) -> tuple[list[Tensor], list[Tensor]]:
    """Copies of blocks for the operations behind a node. Differentiable.

    Equivalent to ``[x[i].relu() for i in rectified], [x[i] for i in plain]``, with one pass over
    the blocks for all lists in the backward pass.

    Args:
        x: [N, positions, channels], float32 or float64.
        rectified: Lists of blocks that go through a ReLU, int64 [n] each.
        plain: Lists that do not.

    Returns:
        A tensor [n, positions, channels] for each list.

    Raises:
        RuntimeError: Blocks that are not there (but see above for CUDA), or tensors of another
            form.
    """
    copies = op.gather_dispatch(x, [*rectified, *plain], len(rectified))
    return copies[: len(rectified)], copies[len(rectified) :]


IDENTITY = cell_reference.IDENTITY
"""In the place of an edge's slot: the source as it is."""

POOL = cell_reference.POOL
"""In the place of an edge's slot: the source's 3x3 average pooling, see `cell`."""


@named_arguments("gather.cell")
def cell(
    x: Tensor,
    weight: Sequence[Tensor],
    norms: Sequence[Norm],
    edges: Sequence[Edge],
    *,
    nodes: int,
    eps: float = 1e-5,
) -> Tensor:
    """A cell of several subnets: nodes that are sums of operations on earlier ones. Differentiable.

    An operation is a convolution of stride 1 of the source's ReLU, padded to its size, with batch
    norm by the subnet's own statistics behind it; or the 3x3 average pooling of the source over the
    pixels that are there; or the source itself. Node 0 is the input, the last node the output; a
    node that no edge leads to is zero.

    What `dispatch`, `convolution` and `combine` do operation by operation, here subnet by subnet,
    so that what a CPU has just computed is in its cache when it is read again.

    Args:
        x: Node 0 of each subnet [K, B, H, W, channels], float32 or float64.
        weight: Convolutions' weights, one tensor a slot, a row for each subnet that uses it:
            [n, channels, channels, k, k], k odd.
        norms: Behind each slot's convolution, of its rows.
        edges: Sorted by subnet and target; no two name one row of a slot.
        nodes: How many a cell has.
        eps: Added to variances.

    Returns:
        [K, B, H, W, channels].

    Raises:
        RuntimeError: Tensors that do not fit together, edges other than described, or a negative
            eps.
    """
    _check.eps("gather.cell", eps)
    flat = [number for edge in edges for number in edge]
    scales, shifts = [norm.weight for norm in norms], [norm.bias for norm in norms]
    y: Tensor = op.gather_cell(x, list(weight), scales, shifts, flat, nodes, eps)[0]
    return y


class Norm(NamedTuple):
    """The scale and shift behind a normalisation by each block's own statistics."""

    weight: Tensor
    """[n, channels]."""
    bias: Tensor
    """[n, channels]."""


class Term(NamedTuple):
    """What an operation contributes to a node."""

    x: Tensor
    """Its results [n, positions, channels]."""
    target: Tensor
    """The subnets they are of, int64 [n], none twice (what comes of it then is not defined)."""
    norm: Norm | None = None
    """The batch norm behind it, if there is one."""


@named_arguments("gather.combine")
def combine(terms: Sequence[Term], blocks: int, *, eps: float = 1e-5) -> Tensor:
    """The sum at a node, over the terms of each subnet; zero where a subnet has none.

    A term with a norm is normalised as batch norm in training does: with the mean and the variance
    (over all positions, not corrected) that each of its blocks has. Differentiable.

    Args:
        terms: At least one.
        blocks: How many subnets there are.
        eps: Added to variances.

    Returns:
        [blocks, positions, channels].

    Raises:
        RuntimeError: Terms that do not fit together, blocks that are not there (but see above for
            CUDA), or a negative eps.
    """
    return combined(terms, blocks, eps=eps).sum


class Combined(NamedTuple):
    """What `combined` gives."""

    sum: Tensor
    """[blocks, positions, channels]."""
    mean: list[Tensor]
    """Of each normed term's blocks, [n, channels]; not differentiable."""
    rstd: list[Tensor]
    """1 / sqrt(variance + eps), likewise."""


@named_arguments("gather.combine")
def combined(terms: Sequence[Term], blocks: int, *, eps: float = 1e-5) -> Combined:
    """As `combine`, with the statistics that the terms were normalised by.

    Args:
        terms: As of `combine`.
        blocks: As of `combine`.
        eps: As of `combine`.

    Raises:
        RuntimeError: As `combine`.
    """
    if blocks < 0:
        raise RuntimeError(f"gather.combine: blocks must be at least 0, got {blocks}")
    _check.eps("gather.combine", eps)
    normed = [term for term in terms if term.norm is not None]
    plain = [term for term in terms if term.norm is None]
    norms = [term.norm for term in normed if term.norm is not None]
    results = op.gather_combine(
        [term.x for term in normed],
        [norm.weight for norm in norms],
        [norm.bias for norm in norms],
        [term.x for term in plain],
        [term.target for term in (*normed, *plain)],
        blocks,
        eps,
    )
    return Combined(*results)


@named_arguments("gather.convolution")
def convolution(
    x: Tensor,
    weight: Tensor,
    *,
    stride: int = 1,
    padding: int = 0,
    dilation: int = 1,
    groups: int = 1,
) -> Tensor:
    """A convolution of each block with its own weight. Differentiable.

    Equivalent to, with channels moved: ``[F.conv2d(x[k], weight[k], ...) for k in range(n)]``; one
    call for all blocks where ``weight`` is one expanded to all. Its gradient has a weight gradient
    for each block in both cases.

    Args:
        x: ``[n, B, *size, inputs]``, one to three dimensions.
        weight: ``[n, outputs, inputs/groups, *kernel]``.
        stride: As of the layer.
        padding: In zeros.
        dilation: As of the layer.
        groups: As of the layer.

    Returns:
        ``[n, B, *size, outputs]``.

    Raises:
        RuntimeError: Shapes, dtypes or a geometry that do not fit together.
    """
    dims = x.dim() - 3
    spread = [[value] * dims for value in (stride, padding, dilation)]
    y: Tensor = Convolution.apply(x, weight, *spread, groups)  # type: ignore[no-untyped-call]
    return y


@named_arguments("gather.linear")
def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """A linear layer on each block with its own weight. Differentiable.

    Args:
        x: [n, B, I].
        weight: [n, O, I], of x's dtype.
        bias: [n, O] or None.

    Returns:
        [n, B, O].

    Raises:
        RuntimeError: Shapes or dtypes that do not fit together.
    """
    check_linear(x, weight, bias)
    if bias is None:
        return torch.bmm(x, weight.mT)
    return torch.baddbmm(bias[:, None], x, weight.mT)
