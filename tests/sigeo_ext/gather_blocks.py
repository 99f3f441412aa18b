"""Blocks of many subnets, and where they go."""

from __future__ import annotations

import pytest
import torch

from sigeo_ext.gather import Norm, Term
from tests.slices import randn

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}
# (positions, channels): one of each, odd, prime, fewer and more channels than a step's lanes, and
# enough for several pieces.
SHAPES = pytest.mark.parametrize(
    "shape", [(1, 1), (5, 3), (64, 16), (331, 7), (40, 130), (9, 5000), (5000, 16)], ids=str
)


def places(*blocks, device="cpu"):
    return torch.tensor(blocks, dtype=torch.int64, device=device)


def lists(device="cpu"):
    """Blocks of five: repeated, none, all, one."""
    rectified = [places(0, 3, 3, 1, device=device), places(device=device)]
    return rectified, [places(4, 2, 1, 0, 3, device=device), places(2, device=device)]


def some_terms(shape, dtype, device="cpu"):
    """Terms of six blocks, of which block 5 gets none and block 4 a plain one alone."""
    positions, channels = shape

    def term(seed, *target, normed):
        x = 3 + 2 * randn(len(target), positions, channels, dtype=dtype, seed=seed, device=device)
        norm = None
        if normed:
            rows = randn(2, len(target), channels, dtype=dtype, seed=seed + 9, device=device)
            norm = Norm(*(row.clone().requires_grad_() for row in rows))
        return Term(x.requires_grad_(), places(*target, device=device), norm)

    return [
        term(0, 3, 0, 1, normed=True),
        term(1, 4, 0, normed=False),
        term(2, 2, normed=True),
        term(3, normed=True),
        term(4, 1, 2, 3, normed=False),
    ]


def leaves_of(terms):
    found = [term.x for term in terms]
    return found + [value for term in terms if term.norm is not None for value in term.norm]
