"""NASWOT: whether the images of a batch have activation codes that differ.

Mellor et al., "Neural Architecture Search without Training", ICML 2021 (arXiv 2006.04647), section
3: the code of an image says of every rectified value whether it is above zero; K[u, v] is the
number of values in which the codes of images u and v agree, and the score log|det K|. The network
is in train mode, batch norm on the statistics of the batch. A rectifier that is called several
times counts as often; `sigeo.capture.rectifier_inputs` says which functions are rectifiers.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from sigeo.capture import rectifier_inputs
from sigeo.proxies.base import OnModel, Outcome, Proxy
from sigeo.proxies.registry import register
from sigeo_ext import gram

NO_RECTIFIER = "no rectifier (ReLU or one of its kind) is given anything that the samples differ in"
NOT_FINITE = "what rectifiers are given is not finite"


def _naswot(model: nn.Module, inputs: Any) -> Outcome:
    apart: list[Tensor] = []
    values = 0

    def see(rectified: Tensor) -> None:
        nonlocal values
        found = gram.hamming(gram.pack_signs(rectified))
        apart[:] = [apart[0] + found if apart else found]
        values += rectified[0].numel()

    if not rectifier_inputs(model, inputs, see):
        return Outcome(math.nan, {}, (NOT_FINITE,))
    if not apart:
        return Outcome(math.nan, {}, (NO_RECTIFIER,))
    return _log_determinant(apart[0], values)


def _log_determinant(apart: Tensor, values: int) -> Outcome:
    """log|det K| for codes of so many values, of their Hamming distances, int64 [samples, samples].

    K is symmetric and positive semi-definite. An eigenvalue that could be rounding counts as 0:
    logarithms of rounding would rank networks by chance.
    """
    samples = len(apart)
    eigenvalues = torch.linalg.eigvalsh((values - apart).double())
    bound = samples * torch.finfo(torch.float64).eps * eigenvalues[-1]
    if bool(eigenvalues[0] > bound):
        return Outcome(float(eigenvalues.log().sum()))
    equal = int((apart == 0).triu(1).any(0).sum())
    note = f"{equal} of {samples} samples have the code of another"
    if not equal:
        note = f"the codes of {samples} samples, of {values} values, are linearly dependent"
    return Outcome(-math.inf, {}, (note,))


@register("naswot")
def naswot() -> Proxy:
    """Logarithm of the determinant of the kernel of the samples' activation codes."""
    return Proxy(
        name="naswot",
        measurement=OnModel(_naswot),
        source="Mellor et al., ICML 2021 (NASWOT), section 3",
        cost="forward",
        whole_network=True,
    )
