"""Metrics: how alike the options of a choice are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sigeo import option_text, proxies
from sigeo.errors import InputError
from sigeo.fewshot.metrics.base import Metric, NamedWeights, Subject
from sigeo.fewshot.metrics.dimension import lid, two_nn
from sigeo.fewshot.metrics.gradient_matching import GradientMatching, gradient_matching_logits
from sigeo.fewshot.metrics.profiles import LID
from sigeo.fewshot.metrics.proxy import ProxyDifference
from sigeo.fewshot.metrics.simple import RandomDistances, TableOracle, WeightedSum
from sigeo.kinds import named_arguments

__all__ = [
    "LID",
    "GradientMatching",
    "Metric",
    "NamedWeights",
    "ProxyDifference",
    "RandomDistances",
    "Subject",
    "TableOracle",
    "WeightedSum",
    "get",
    "gradient_matching_logits",
    "lid",
    "names",
    "two_nn",
]

_METRICS: dict[str, Callable[..., Metric]] = {
    "gradient_matching": GradientMatching,
    "gradient_matching_logits": gradient_matching_logits,
    "lid": LID,
    "random": RandomDistances,
    "table": TableOracle,
}


def names() -> list[str]:
    """The names that `get` takes beside those of proxies."""
    return sorted(_METRICS)


@named_arguments("metrics.get")
def get(name: str, **options: Any) -> Metric:
    """The metric of a name.

    Args:
        name: One of `names`, or the name of a proxy, whose own options may follow as
            ``NAME:OPTION=VALUE,...``.
        **options: The metric's own; of a proxy ``repeats``.

    Raises:
        InputError: No metric or proxy of that name, an option that it does not have, or no table.
    """
    proxy, parts = option_text.parts(str(name))
    if name not in _METRICS and proxy not in proxies.names():
        raise InputError(
            f"metric must be one of {', '.join(names())} or a proxy's name "
            f"({', '.join(proxies.names())}), got {name!r}"
        )
    if name == "table" and "known" not in options:
        raise InputError("metric table: needs a table as known, which systems do not have")
    try:
        if name in _METRICS:
            return _METRICS[name](**options)
        own = option_text.values(f"proxy {proxy}", parts, proxies.options_of(proxy))
        return ProxyDifference(proxies.get(proxy, **own), **options)
    except TypeError as error:
        raise InputError(f"metric {name}: {error}") from error
