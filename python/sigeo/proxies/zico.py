"""ZiCo: large and stable gradients.

Li et al., "ZiCo: Zero-shot NAS via Inverse Coefficient of Variation on Gradients", ICLR 2023,
section 3: the sum over layers of the log of the sum over coordinates of mean |g| / std(g), over the
mini-batches. Layers are the weights of convolutions and linear layers, std is the population's, the
weights do not move. A layer whose sum is 0 is skipped, as published; it thus counts more than one
whose sum is below 1.
"""

from __future__ import annotations

from torch import Tensor, nn

from sigeo.capture import GradientStatistics, Request
from sigeo.proxies.base import OnStatistics, Outcome, Proxy
from sigeo.proxies.registry import register


def ratio_term(ratio: Tensor) -> tuple[float, Tensor, tuple[str, ...]]:
    """The sum of logs, which layers count in it [layers], and notes on those that do not.

    Args:
        ratio: Each layer's sum of mean |g| / std(g) [layers].
    """
    counted = ratio != 0  # a NaN counts, so that it reaches the score
    notes: tuple[str, ...] = ()
    skipped = len(ratio) - int(counted.sum())
    if skipped:
        notes = (
            f"{skipped} of {len(ratio)} layers have no gradient that varies and count nothing",
        )
    return float(ratio[counted].log().sum()), counted, notes


def _zico(model: nn.Module, statistics: GradientStatistics) -> Outcome:
    value, _, notes = ratio_term(statistics.summary.ratio)
    return Outcome(value, {"zico": value}, notes)


@register("zico")
def zico() -> Proxy:
    """ZiCo over all batches given, two at least."""
    return Proxy(
        name="zico",
        measurement=OnStatistics(_zico, Request(), reads_model=False),
        source="Li et al., ICLR 2023, section 3",
        cost="batches",
        labels=True,
    )
