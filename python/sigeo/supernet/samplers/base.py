"""What a sampler is, and how paths are drawn.

The paths of a step follow from the seed and the number of the step alone, so a training that was
stopped goes on with the same ones; `Greedy`, which looks at how paths do, keeps a state.
"""

from __future__ import annotations

import hashlib
import random
import weakref
from collections.abc import Hashable, Iterable, Sequence
from typing import Any, Protocol, TypeVar

from sigeo.errors import InputError
from sigeo.spaces import Kind, Product, Region, SearchSpace

A = TypeVar("A", bound=Hashable)
A_out = TypeVar("A_out", bound=Hashable, covariant=True)

TRIES = 100_000
"""Draws after which a sampler gives up."""

# Regions of one's own, and kinds by functions without a name of their own, are told apart by all
# their architectures, where no more than so many are to be gone through.
_LISTED = 100_000
# Beyond that by so many drawn: functions anywhere, and for rare kinds so many of the region.
_PROBES = 1024
_INSIDE = 8

# Of regions that are alive, by their id.
_described: dict[int, tuple[weakref.ref[Any], dict[str, Any]]] = {}


class Sampler(Protocol[A_out]):
    """Gives the paths of each step; one that keeps a state is of one training."""

    @property
    def evaluated(self) -> int:
        """Images through one path each that the choice of paths has taken so far, forward only."""
        ...

    @property
    def done(self) -> bool:
        """Whether the training may end before its last step."""
        ...

    def paths(self, step: int) -> Sequence[A_out]:
        """The architectures that a step trains on its batch; called once a step, in order."""
        ...

    def state(self) -> dict[str, Any]:
        """All that the next paths depend on, as JSON can hold it."""
        ...

    def resume(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken."""
        ...

    def describe(self) -> dict[str, Any]:
        """Name and settings, as JSON can hold them."""
        ...


class Stateless:
    """What samplers share whose paths follow from the step alone."""

    evaluated = 0
    done = False

    def state(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def resume(self, state: dict[str, Any]) -> None:
        """Nothing to go back to."""


def generator(seed: int, step: int, draw: int = 0) -> random.Random:
    """The random numbers of a step, or of one of its draws."""
    return random.Random(f"{seed}/{step}/{draw}" if draw else f"{seed}/{step}")


def draw_connected(
    space: SearchSpace[A], region: Region[A] | SearchSpace[A], rng: random.Random
) -> A:
    """An architecture of a region whose output depends on its input, uniformly.

    Raises:
        InputError: None was found.
    """
    for _ in range(TRIES):
        arch = region.sample(rng)
        if space.connected(arch):
            return arch
    raise InputError(f"region: none of {TRIES} draws has an output that depends on its input")


def product_of(space: SearchSpace[A], region: Region[A] | None, sampler: str) -> Product[A]:
    """The region as a product of options; the whole space for None.

    Raises:
        InputError: It is another kind of region.
    """
    if region is None:
        return Product.whole(space)
    if not isinstance(region, Product):
        raise InputError(
            f"{sampler}: region must be a Product of options, got {type(region).__name__}"
        )
    return region


def describe_region(region: Region[Any] | None) -> dict[str, Any]:
    """What tells a region from another, as JSON can hold it; nothing for a whole space.

    A region of one's own of more than 100,000 architectures is told from another one of its class
    by its size and 1,024 draws, a kind in a larger space, of a lambda or inner function, by as
    many draws: those that differ in few architectures may look the same.
    """
    if region is None:
        return {}
    if isinstance(region, Product):
        return {"region": [list(options) for options in region.allowed]}
    known = _described.get(id(region))
    if known is not None and known[0]() is region:
        return known[1]
    found = {"region": _kind(region) if isinstance(region, Kind) else _own(region)}
    try:
        number = id(region)
        reference = weakref.ref(region, lambda _: _described.pop(number, None))
        _described[number] = reference, found
    except TypeError:  # of a class with slots
        pass
    return found


def _kind(region: Kind[Any]) -> dict[str, Any]:
    part = {} if region.within is None else {"within": describe_region(region.within)["region"]}
    return {_function(region): sorted(map(str, region.kinds)), **part}


def _own(region: Region[Any]) -> str:
    """It may print as another one does, or as itself in this process alone."""
    if region.size <= _LISTED:
        held = sorted(map(str, region))
    else:
        rng = random.Random(0)
        held = [str(region.sample(rng)) for _ in range(_PROBES)]
    kind = type(region)
    return f"{kind.__module__}.{kind.__qualname__} {_digest([str(region.size), *held])}"


def _digest(texts: Iterable[str]) -> str:
    return hashlib.blake2b("/".join(texts).encode(), digest_size=8).hexdigest()


def _function(region: Kind[Any]) -> str:
    """A function of architectures by its name; by what it makes of some where that says little."""
    name = getattr(region.function, "__qualname__", "")
    if name.isidentifier():  # not of a lambda, or of a function inside another one
        return str(name)
    name = name or type(region.function).__qualname__
    whole = region.space if region.within is None else region.within
    if whole.size <= _LISTED:
        return f"{name} {_digest(sorted(map(str, region)))}"
    rng = random.Random(0)
    found: list[str] = []
    inside: list[str] = []
    for draw in range(max(_PROBES, region.tries)):
        if draw >= _PROBES and len(inside) >= _INSIDE:
            break
        arch = whole.sample(rng)
        value = region.function(arch)
        if draw < _PROBES:
            found.append(str(value))
        if value in region.kinds and len(inside) < _INSIDE:
            inside.append(str(arch))
    return f"{name} {_digest([*found, *inside])}"
