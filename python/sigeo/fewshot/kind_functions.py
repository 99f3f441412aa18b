"""Functions by which a space can be divided, by name, so that plans can be kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sigeo.errors import InputError
from sigeo.kinds import named_arguments
from sigeo.spaces import SearchSpace
from sigeo.spaces.mobilenet import nonlinear_count
from sigeo.spaces.nasbench201 import convolution_count, nonlinear_depth

Values = frozenset[int] | Callable[[Any], frozenset[int]]


@dataclass(frozen=True)
class KindFunction:
    """A function of the architectures of one space with few values.

    Attributes:
        name: As plans keep it.
        function: Architecture to its kind.
        values: All kinds that there are.
    """

    name: str
    function: Callable[[Any], int]
    values: frozenset[int]

    def check(self, groups: Sequence[Sequence[int]]) -> None:
        """Check that groups hold each kind once.

        Raises:
            InputError: They do not, or one is empty.
        """
        if not all(groups) or sorted(kind for group in groups for kind in group) != sorted(
            self.values
        ):
            raise InputError(
                f"groups of {self.name} must hold each of {sorted(self.values)} once, "
                f"none empty, got {list(map(list, groups))}"
            )


_FUNCTIONS: dict[tuple[str, str], tuple[Callable[[Any], int], Values]] = {}


def register_kind(space: str, name: str, function: Callable[[Any], int], values: Values) -> None:
    """Make a function known to plans.

    Args:
        space: The name of the space.
        name: Of the function.
        function: Architecture to its kind, a whole number.
        values: All of its values, or a function of the space to them, where its sizes decide.

    Raises:
        ValueError: The name is taken.
    """
    if (space, name) in _FUNCTIONS:
        raise ValueError(f"kind {name!r} of {space} is taken")
    _FUNCTIONS[space, name] = function, values


def names() -> list[str]:
    """The names of all functions, whatever their space."""
    return sorted({name for _, name in _FUNCTIONS})


@named_arguments("kind_function")
def kind_function(space: SearchSpace[Any], name: str) -> KindFunction:
    """The function of a name.

    Raises:
        InputError: The space has none of that name.
    """
    if (space.name, name) not in _FUNCTIONS:
        known = sorted(kind for of, kind in _FUNCTIONS if of == space.name)
        if not known:
            others = ", ".join(sorted({of for of, _ in _FUNCTIONS}))
            raise InputError(
                f"{space.name} has no kinds of architectures to divide it by, as {others} have, "
                f"got kind {name!r}"
            )
        raise InputError(f"kind: must be one of {', '.join(known)}, got {name!r}")
    function, values = _FUNCTIONS[space.name, name]
    return KindFunction(name, function, values(space) if callable(values) else values)


register_kind("nasbench201", "nonlinear_depth", nonlinear_depth, frozenset(range(4)))
register_kind("nasbench201", "convolution_count", convolution_count, frozenset(range(7)))
register_kind(
    "mobilenet", "nonlinear_count", nonlinear_count, lambda space: space.nonlinear_counts()
)
