"""Recipes by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args, get_origin, get_type_hints

from sigeo.errors import InputError
from sigeo.fewshot.recipe import Recipe
from sigeo.kinds import named_arguments
from sigeo.spaces import SearchSpace

Maker = Callable[..., Recipe]
_LARGEST = 1e15
"""Numbers from here on are refused: sums of them would lose whole images, or overflow."""


@dataclass(frozen=True)
class Entry:
    """A recipe that can be made.

    Attributes:
        name: As on the command line.
        source: Where it was published.
        make: (space, options by name) to the recipe.
    """

    name: str
    source: str
    make: Maker

    @property
    def summary(self) -> str:
        """What it does, in one line."""
        return (self.make.__doc__ or "").partition("\n")[0]

    @property
    def options(self) -> dict[str, Any]:
        """Its options with their defaults."""
        parameters = list(inspect.signature(self.make).parameters.values())[1:]
        return {parameter.name: parameter.default for parameter in parameters}

    def checked(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Some options, each as its default is written; whatever the space.

        Raises:
            InputError: It has no such option, or a value is of another kind.
        """
        defaults, examples, kinds = self.options, self.examples, get_type_hints(self.make)
        found = dict(given)
        for option, value in given.items():
            if option not in defaults:
                have = ", ".join(defaults) or "none"
                raise InputError(f"recipe {self.name}: has no option {option}, options are {have}")
            if value is None and defaults[option] is None:
                continue
            example = examples[option]
            if not _alike(value, example):
                expected = _expected(value, example)
                if defaults[option] is None:
                    expected += " or None"
                raise InputError(f"recipe {self.name}: {option} must be {expected}, got {value!r}")
            found[option] = _as(value, example)
            kind = kinds.get(option)
            if get_origin(kind) is Literal and value not in get_args(kind):
                known = ", ".join(get_args(kind))
                raise InputError(
                    f"recipe {self.name}: {option} must be one of {known}, got {value!r}"
                )
        return found

    @property
    def examples(self) -> dict[str, Any]:
        """A value of the kind of each option: its default, or 0, 0.0 or "" where that is None."""
        defaults, kinds = self.options, get_type_hints(self.make)
        for option, default in defaults.items():
            if default is None:
                known = get_args(kinds[option])  # as of ``int | None``
                defaults[option] = next((kind() for kind in (int, str) if kind in known), 0.0)
        return defaults


_ENTRIES: dict[str, Entry] = {}


def recipe(name: str, source: str) -> Callable[[Maker], Maker]:
    """Enter a function of a space that makes a recipe.

    Args:
        name: As on the command line.
        source: Where the system was published.

    Raises:
        ValueError: The name is taken.
    """

    def enter(make: Maker) -> Maker:
        if name in _ENTRIES:
            raise ValueError(f"recipe name {name!r} is taken")
        _ENTRIES[name] = Entry(name, source, make)
        return make

    return enter


def names() -> list[str]:
    """The names that `get` takes, in the order of the documentation."""
    return list(_ENTRIES)


@named_arguments("recipes.entry")
def entry(name: str) -> Entry:
    """What is known of a recipe.

    Raises:
        InputError: None of that name.
    """
    if name not in _ENTRIES:
        raise InputError(f"recipe: must be one of {', '.join(names())}, got {name!r}")
    return _ENTRIES[name]


@named_arguments("recipes.get")
def get(name: str, space: SearchSpace[Any], **options: Any) -> Recipe:
    """The recipe of a name for a space.

    Args:
        name: One of `names`.
        space: The space.
        **options: The recipe's own; what is not given is as published.

    Raises:
        InputError: No recipe of that name, an option that it does not have, or one that does not
            fit the space.
    """
    known = entry(name)
    chosen = {**known.options, **known.checked(options)}
    try:
        made = known.make(space, **chosen)
    except (TypeError, ValueError, ArithmeticError) as error:
        raise InputError(f"recipe {name}: {error}") from error
    return replace(made, name=name, source=known.source, options={**chosen, **made.options})


def _alike(value: Any, default: Any) -> bool:
    """Whether an option's value is of the kind of its default."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if number and not abs(value) < _LARGEST:
        return False
    if isinstance(default, (tuple, list)):
        if not isinstance(value, (tuple, list)):
            return False
        return all(_alike(item, default[0]) for item in value) if default else True
    if isinstance(default, float):
        return number
    return type(value) is type(default)


def _expected(value: Any, default: Any) -> str:
    """What an option must be whose value is not of the kind of its default, in words."""
    if isinstance(default, (tuple, list)):
        return f"a list like {list(default)!r}"
    if isinstance(default, bool):
        return "true or false"
    if isinstance(default, str):
        return f"a name like {default}" if default else "text"
    number = "a whole number" if isinstance(default, int) else "a number"
    large = isinstance(value, (int, float)) and not abs(value) < _LARGEST
    return f"{number} below {_LARGEST:g}" if large else number


def _as(value: Any, default: Any) -> Any:
    """A value as its default is written, so that 2 and 2.0 are the same option."""
    if isinstance(default, float):
        return float(value)
    if isinstance(default, (tuple, list)) and default:
        return [_as(item, default[0]) for item in value]
    return value
