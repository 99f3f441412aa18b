"""Samplers by name, with the settings that published trainings use."""

from __future__ import annotations

from typing import Any

from sigeo.errors import InputError
from sigeo.spaces import Product, SearchSpace
from sigeo.supernet.samplers.balanced import Balanced
from sigeo.supernet.samplers.base import Sampler
from sigeo.supernet.samplers.greedy import Greedy, Score
from sigeo.supernet.samplers.products import Disjoint, Fair
from sigeo.supernet.samplers.sandwich import Sandwich
from sigeo.supernet.samplers.uniform import Uniform

NAMES = ("uniform", "operations", "fair", "balanced", "sandwich", "disjoint", "greedy")


def named(
    name: str,
    space: SearchSpace[Any],
    *,
    seed: int,
    steps: int,
    paths: int = 1,
    balance: str | None = None,
    score: Score | None = None,
) -> Sampler[Any]:
    """The sampler of a name.

    Args:
        name: One of `NAMES`: "uniform" over architectures, or over "operations"; the others are the
            classes. "greedy" scores paths from 1/15 of the steps on, and its share of paths from
            the pool grows until 96 % of them, as in an open reimplementation of GreedyNAS; it
            trains all steps.
        space: Whose architectures.
        seed: Of the paths.
        steps: Of the whole training.
        paths: Of a step, of "uniform" and "operations" alone.
        balance: Of "balanced": the choice whose options make the regions; None for the first.
        score: Of "greedy".

    Raises:
        InputError: Another name, or a setting that does not go with it.
    """
    if name not in NAMES:
        raise InputError(f"sampler: must be one of {', '.join(NAMES)}, got {name!r}")
    if paths != 1 and name not in ("uniform", "operations"):
        raise InputError(
            f"paths: sampler {name} has its own number of paths a step; "
            "uniform and operations take another"
        )
    if balance is not None and name != "balanced":
        raise InputError(f"balance: has no effect on sampler {name}")
    if name == "fair":
        return Fair(space, seed=seed)
    if name == "balanced":
        return Balanced(space, regions_of(space, balance), seed=seed)
    if name == "sandwich":
        return Sandwich(space, seed=seed)
    if name == "disjoint":
        return Disjoint(space, seed=seed)
    if name == "greedy":
        if score is None:
            raise InputError("sampler: greedy needs a score of paths")
        start, full = round(steps / 15), round(0.96 * steps)
        return Greedy(space, score, seed=seed, start=start, full=full, alpha=None)
    over: Any = "operations" if name == "operations" else "architectures"
    return Uniform(space, seed=seed, paths=paths, over=over)


def regions_of(space: SearchSpace[Any], balance: str | None) -> list[Product[Any]]:
    """One region an option of a choice.

    Args:
        space: The space.
        balance: Name of the choice; None for the first.

    Raises:
        InputError: The space has no such choice.
    """
    names = [choice.name for choice in space.choices]
    if balance is not None and balance not in names:
        raise InputError(f"balance: must be one of {', '.join(names)}, got {balance!r}")
    place = 0 if balance is None else names.index(balance)
    whole = Product.whole(space)
    return whole.split(place, [(option,) for option in whole.allowed[place]])
