"""Correlations of rows, in float64, for proxies that look at their eigenvalues."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Correlations(NamedTuple):
    """Of the rows of a matrix [n, m].

    Attributes:
        matrix: Pearson's coefficients, float64 [n, n]; 0 beside constant rows.
        constant: Which rows are constant up to rounding and so correlate with nothing, [n].
    """

    matrix: Tensor
    constant: Tensor


def correlations(rows: Tensor) -> Correlations:
    """The correlations of the rows of a matrix [n, m] of any floating dtype."""
    values = rows.double()
    centred = values - values.mean(1, keepdim=True)
    norms = centred.norm(dim=1)
    # Numbers that ought to be equal come rounded differently.
    rounding = 8 * torch.finfo(rows.dtype).eps * rows.shape[1] ** 0.5
    constant = norms <= rounding * values.abs().amax(1)
    unit = torch.where(constant[:, None], 0.0, centred / norms[:, None])
    return Correlations((unit @ unit.t()).clamp(-1, 1), constant)
