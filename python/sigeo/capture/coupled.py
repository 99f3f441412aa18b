"""Gradients of single outputs of a whole batch, where batch norm makes samples depend on others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from sigeo_ext import gram


def coupled_gram(outputs: Tensor, parameters: Sequence[Tensor], max_bytes: int) -> Tensor:
    """<grad y_i, grad y_j> of entries of a differentiable vector, by a backward pass for each.

    What is needed for the pass is kept until the vector is freed.

    Args:
        outputs: y [rows].
        parameters: Of which the gradients are taken.
        max_bytes: Bound on the gradients held at a time; where all of them do not fit, some
            parameters after others, with as many passes each, one parameter at least.

    Returns:
        float64 [rows, rows].
    """
    total = outputs.new_zeros(len(outputs), len(outputs), dtype=torch.float64)
    for some in _blocks(parameters, max_bytes // max(1, len(outputs))):
        gradients = []
        for output in outputs:
            found = torch.autograd.grad(output, some, retain_graph=True, allow_unused=True)
            zeros = (
                torch.zeros_like(p) if g is None else g for g, p in zip(found, some, strict=True)
            )
            gradients.append([g.to_dense() if g.is_sparse else g for g in zeros])
        total += gram.dot(gradients)
    return total


def _blocks(parameters: Sequence[Tensor], size: int) -> Iterator[list[Tensor]]:
    """Parameters in lists of at most ``size`` bytes, or of a single one.

    Yields:
        Each list.
    """
    block: list[Tensor] = []
    held = 0
    for parameter in parameters:
        if block and held + parameter.nbytes > size:
            yield block
            block, held = [], 0
        block.append(parameter)
        held += parameter.nbytes
    if block:
        yield block
