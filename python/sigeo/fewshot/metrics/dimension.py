r"""Estimates of the dimension that data have near each point.

With :math:`r_1 \le \dots \le r_k` the distances to a point's nearest neighbours, the likelihood of
a locally uniform density gives (Levina and Bickel, 2004; Amsaleg et al., 2015)

.. math:: d = -\frac{c}{\sum_{j=1}^{k} \log \frac{r_j}{r_k}}

with c = k as NAS-LID has it, and c = k - 2 without bias: the last term of the sum is zero, and the
mean of the inverse of a sum of k - 1 exponential variables is 1 / (k - 2).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from sigeo.errors import InputError
from sigeo.kinds import is_of
from sigeo_ext import gram

_EPSILON = 1e-6
_SHORTEST = 1e-12  # of r_j / r_k, where samples are equal

Divisor = Literal["k", "k-1", "k-2"]
_TERMS: dict[str, int] = {"k": 0, "k-1": 1, "k-2": 2}


def check_divisor(divisor: str, k: int) -> None:
    """Check the constant c, which must be above 0.

    Raises:
        InputError: There is no such constant, or there are too few neighbours for it.
    """
    if divisor not in _TERMS:
        raise InputError(f"lid: divisor must be one of {', '.join(_TERMS)}, got {divisor!r}")
    least = max(2, _TERMS[divisor] + 1)
    if not is_of(k, int) or k < least:
        raise InputError(f"lid: k must be a whole number of at least {least}, got {k!r}")


def check_samples(count: int, k: int) -> None:
    """Check that so many samples have so many neighbours.

    Raises:
        InputError: Not more than k samples.
    """
    if count <= k or k < 2:
        raise InputError(
            f"lid: expected 2 neighbours or more and more samples than neighbours, "
            f"got {count} samples and k = {k}"
        )


def nearest(features: Tensor, k: int) -> Tensor:
    """Distances to the k nearest other samples, ascending, float64 [B, k].

    Squared distances are sums of squared differences, so small ones keep their digits.

    Args:
        features: ``[B, *shape]``.
        k: How many.

    Raises:
        InputError: Not more than k samples.
    """
    check_samples(len(features), k)
    squares = gram.sq_distance(list(features.detach().flatten(1).contiguous().unbind(0)))
    squares.fill_diagonal_(torch.inf)
    return squares.topk(k, dim=1, largest=False, sorted=True).values.sqrt()


def lid(features: Tensor, *, k: int = 20, divisor: Divisor = "k") -> Tensor:
    """Local intrinsic dimension at each sample, float64 [B].

    Equal samples have the shortest distance that is told apart, 1e-12 of the k-th; a sample that
    equals all of its neighbours has dimension 0. One whose neighbours are all equally far, which no
    dimension explains, has a large one, at most 1e6 c.

    Args:
        features: ``[B, *shape]``.
        k: Neighbours (NAS-LID: 20).
        divisor: The constant c.

    Raises:
        InputError: Not more than k samples, or an unknown divisor.
    """
    check_divisor(divisor, k)
    distances = nearest(features, k)
    farthest = distances[:, -1:]
    ratios = (distances / (farthest + _EPSILON)).clamp_min(_SHORTEST)
    sums = (ratios.log().sum(1) + _EPSILON).clamp_max(-_EPSILON)
    found = -(k - _TERMS[divisor]) / sums
    return found.masked_fill(farthest[:, 0] == 0, 0.0)


def two_nn(features: Tensor) -> float:
    """Dimension of all samples together, from each one's two nearest (Facco et al., 2017).

    The maximum of the likelihood; samples that have an equal one are left out.

    Args:
        features: ``[B, *shape]``.

    Raises:
        InputError: Not more than two samples.
    """
    distances = nearest(features, 2)
    apart = distances[distances[:, 0] > 0]
    if not len(apart):
        return 0.0
    return len(apart) / (float((apart[:, 1] / apart[:, 0]).log().sum()) + _EPSILON)
