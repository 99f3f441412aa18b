r"""Whether options score alike: any proxy as a metric (Ly-Manson et al., AutoML 2024).

With :math:`m_o` the score of the network that takes option o, the published distance is
:math:`|m_o - m_{o'}| / |m_{\mathrm{ref}}|`, with the score of the undivided supernet for reference.
There all other choices are mixtures; on single-path supernets they are drawn, the distances of
several draws are averaged, and the reference is the mean score of all networks scored.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from sigeo.errors import InputError, check_kind
from sigeo.fewshot.metrics.base import Subject
from sigeo.fewshot.partition import Relation
from sigeo.proxies import Proxy
from sigeo.scoring.costs import COUNTED, counted
from sigeo.scoring.score import check_needs, score
from sigeo.supernet import Budget


@dataclass(frozen=True)
class ProxyDifference:
    """Differences of a proxy's scores.

    A pair's distance is the mean over the draws on which both scores are finite; a pair without
    such a draw gets the largest distance of all pairs.

    Attributes:
        proxy: The proxy; ``params`` and ``flops`` are those of the published networks.
        repeats: Draws of the other choices.
    """

    proxy: Proxy
    repeats: int = 8

    def __post_init__(self) -> None:
        """Check the proxy and the number of draws.

        Raises:
            InputError: ``proxy`` is no `Proxy`, or ``repeats`` is below 1.
        """
        check_kind(self.proxy, Proxy, "metric: proxy")
        if self.repeats < 1:
            raise InputError(f"{self.name}: repeats must be at least 1, got {self.repeats}")

    @property
    def name(self) -> str:
        """The proxy's."""
        return self.proxy.name

    @property
    def initial_weights(self) -> bool:
        """Whether the proxy is defined for untrained weights only."""
        return self.proxy.initial_weights

    def __call__(self, subject: Subject[Any]) -> Relation:
        """The distances.

        Raises:
            InputError: Too few batches, or the proxy is finite on no two options of a draw.
        """
        draws = [
            [self._value(subject, arch) for arch in subject.paths(repetition, every=True)]
            for repetition in range(self.repeats)
        ]
        finite = [value for draw in draws for value in draw if math.isfinite(value)]
        reference = abs(math.fsum(finite) / len(finite)) if finite else 0.0
        count = len(subject.options)
        pairs = {(i, j): _mean_difference(draws, i, j) for i in range(count) for j in range(i)}
        largest = max((d for d in pairs.values() if d is not None), default=None)
        if largest is None:
            raise InputError(f"{self.name}: not finite on two options of {subject.name} together")
        values = [[0.0] * count for _ in range(count)]
        for (i, j), found in pairs.items():
            distance = largest if found is None else found
            values[i][j] = values[j][i] = distance / reference if reference > 0 else distance
        return Relation.of(values, "distance")

    def check(self, subject: Subject[Any]) -> None:
        """See `sigeo.fewshot.metrics.base.check`.

        Raises:
            InputError: No networks, too few batches, or the proxy needs labels and there are none.
        """
        if self.proxy.name not in COUNTED:
            subject.networks()
            data = subject.data()
            check_needs([self.proxy], batches=len(data), unlabelled=data.unlabelled)

    def cost(self, subject: Subject[Any]) -> Budget:
        """What the scores of all networks take; a backward pass through one counts as two."""
        if self.proxy.cost == "free" or self.proxy.name in COUNTED:
            return Budget()
        networks = self.repeats * len(subject.options)
        sizes = [len(subject.batch(batch)[1]) for batch in range(len(subject.data()))]
        both, forward = self.proxy.processed(sizes)
        return Budget(trained=networks * both, evaluated=networks * forward)

    def _value(self, subject: Subject[Any], arch: Any) -> float:
        if self.proxy.name in COUNTED:
            return counted(subject.space.cost(arch), self.proxy.name)
        module = subject.networks().subnet(arch, whole=self.proxy.whole_network)
        return score(module, subject.data(), [self.proxy])[self.proxy.name].value


def _mean_difference(draws: list[list[float]], i: int, j: int) -> float | None:
    found = [abs(draw[i] - draw[j]) for draw in draws]
    found = [difference for difference in found if math.isfinite(difference)]
    return math.fsum(found) / len(found) if found else None
