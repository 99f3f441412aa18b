"""Options of a choice, how alike they are, and ways to cut them into groups."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sigeo.errors import InputError
from sigeo.fewshot.partition.graphs import Spectral, StoerWagner
from sigeo.fewshot.partition.mixture import GaussianMixture
from sigeo.fewshot.partition.relation import Groups, Pairs, Relation, between, within
from sigeo.fewshot.partition.rules import Exact, Exhaustive, InOrder, Partitioner, Random, grouped
from sigeo.fewshot.partition.sets import set_partitions, sized_partitions
from sigeo.kinds import named_arguments

__all__ = [
    "Exact",
    "Exhaustive",
    "GaussianMixture",
    "Groups",
    "InOrder",
    "Pairs",
    "Partitioner",
    "Random",
    "Relation",
    "Spectral",
    "StoerWagner",
    "between",
    "get",
    "grouped",
    "names",
    "set_partitions",
    "sized_partitions",
    "within",
]

_PARTITIONERS: dict[str, Callable[..., Partitioner]] = {
    "exact": Exact,
    "exhaustive": Exhaustive,
    "in_order": InOrder,
    "mixture": GaussianMixture,
    "random": Random,
    "spectral": Spectral,
    "stoer_wagner": StoerWagner,
}


def names() -> list[str]:
    """The names that `get` takes."""
    return sorted(_PARTITIONERS)


@named_arguments("partition.get")
def get(name: str, **options: Any) -> Partitioner:
    """The partitioner of a name, with its own options.

    Raises:
        InputError: No partitioner of that name, or an option that it does not have.
    """
    if name not in _PARTITIONERS:
        raise InputError(f"partition: must be one of {', '.join(names())}, got {name!r}")
    try:
        return _PARTITIONERS[name](**options)
    except TypeError as error:
        raise InputError(f"partition {name}: {error}") from error
