"""SWAP: how many different patterns the rectified values have over the samples of a batch.

Peng et al., "SWAP-NAS: Sample-Wise Activation Patterns for Ultra-Fast NAS", ICLR 2024 (arXiv
2403.04161): the pattern of a value says of each sample whether it is above zero there;
the score is the number of distinct patterns in the network. Regularised, it is multiplied with
exp(-(P - mu)^2 / sigma), P the number of parameters. Train mode and rectifiers as in NASWOT.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from sigeo.capture import rectifier_inputs
from sigeo.errors import InputError
from sigeo.proxies.base import OnModel, Outcome, Proxy
from sigeo.proxies.distinct import count_rows, number_rows, sign_words
from sigeo.proxies.naswot import NO_RECTIFIER, NOT_FINITE
from sigeo.proxies.registry import register


def _patterns(model: nn.Module, inputs: Any) -> int | None:
    """The number of distinct patterns, 0 without a rectifier; None where values are not finite."""
    words: list[Tensor] = []  # a bit a sample, beside four bytes a sample of one activation

    def see(rectified: Tensor) -> None:
        words.append(sign_words(rectified.flatten(1).t()))

    if not rectifier_inputs(model, inputs, see):
        return None
    return count_rows(number_rows(torch.cat(words))) if words else 0


@register("swap")
def swap(*, mu: float | None = None, sigma: float | None = None) -> Proxy:
    """Number of distinct sample-wise activation patterns; with ``mu`` and ``sigma`` regularised.

    Args:
        mu: The number of parameters that is wanted.
        sigma: How far from it a network may be, in squared numbers of parameters: at a distance of
            its root the score is 1/e of what it is without. There is no default for either: both
            are set for a search space.

    Raises:
        InputError: One without the other, a number that is not finite, or a sigma that is not
            above 0.
    """
    if (mu is None) != (sigma is None):
        raise InputError("mu, sigma: expected both or neither")
    for name, value in (("mu", mu), ("sigma", sigma)):
        if value is not None and not math.isfinite(value):
            raise InputError(f"{name}: must be finite, got {value}")
    if sigma is not None and sigma <= 0:
        raise InputError(f"sigma: must be above 0, got {sigma}")

    def function(model: nn.Module, inputs: Any) -> Outcome:
        patterns = _patterns(model, inputs)
        if not patterns:
            return Outcome(math.nan, {}, (NOT_FINITE if patterns is None else NO_RECTIFIER,))
        if mu is None or sigma is None:
            return Outcome(float(patterns))
        parameters = sum(p.numel() for p in model.parameters())
        factor = math.exp(-((parameters - mu) ** 2) / sigma)
        terms = {"patterns": float(patterns), "factor": factor}
        note = f"the factor is 0 at {parameters} parameters, sigma is too small for this network"
        return Outcome(patterns * factor, terms, () if factor else (note,))

    return Proxy(
        name="swap",
        measurement=OnModel(function),
        source="Peng et al., ICLR 2024 (SWAP-NAS)",
        cost="forward",
        whole_network=True,
        options={} if mu is None else {"mu": mu, "sigma": sigma},
    )
