"""Spaces in which every choice is independent of the others: codes, strings, numbers, drawing."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from sigeo.errors import InputError, described
from sigeo.kinds import named_arguments, whole_numbers
from sigeo.spaces.base import Choice, checked_index


@dataclass(frozen=True)
class Architecture:
    """An option of each choice.

    Attributes:
        choices: What is decided.
        codes: The place of the option taken, for each choice.
    """

    choices: tuple[Choice, ...] = field(repr=False, hash=False)
    codes: tuple[int, ...]

    def __post_init__(self) -> None:
        """Check the codes.

        Raises:
            InputError: Another number of them, or an option that does not exist.
        """
        codes = whole_numbers(self.codes)
        if codes is None:
            raise InputError(
                f"architecture: codes must be whole numbers, got {described(self.codes)}"
            )
        object.__setattr__(self, "codes", codes)
        if len(codes) != len(self.choices):
            raise InputError(f"architecture: expected {len(self.choices)} codes, got {len(codes)}")
        for choice, code in zip(self.choices, codes, strict=True):
            if not 0 <= code < len(choice.options):
                raise InputError(
                    f"architecture: code of {choice.name} must be from 0 to "
                    f"{len(choice.options) - 1}, got {code}"
                )

    def __str__(self) -> str:
        """``name=option`` of each choice, joined by commas."""
        return ",".join(f"{name}={option}" for name, option in self.options().items())

    def options(self) -> dict[str, str]:
        """The option taken, by the name of the choice."""
        pairs = zip(self.choices, self.codes, strict=True)
        return {choice.name: choice.options[code] for choice, code in pairs}


def _check_readable(what: str, text: str, separators: str) -> None:
    """Check a text that stands in the string of an architecture.

    Raises:
        InputError: It has a separator of that string in it, or spaces around.
    """
    if text != text.strip() or any(separator in text for separator in separators):
        unread = " or ".join(map(repr, separators))
        raise InputError(f"{what} must be without {unread} and spaces around, got {text!r}")


class ChoiceSpace:
    """What `SearchSpace` asks for about architectures that are any combination of options.

    Attributes:
        name: As on the command line.
        choices: What an architecture decides, options from the smallest to the largest.
        size: Number of architectures.
    """

    name: str
    choices: tuple[Choice, ...]
    size: int

    def __init__(self, choices: Sequence[Choice]):
        """Fix the choices.

        Raises:
            InputError: Two have one name, or a name or an option could not be read back by `parse`.
        """
        self.choices = tuple(choices)
        names = [choice.name for choice in self.choices]
        for name in names:
            if names.count(name) > 1:
                raise InputError(f"choices: expected each name once, got {name!r} twice")
        for choice in self.choices:
            _check_readable(f"choice {choice.name}: name", choice.name, ",=")
            for option in choice.options:
                _check_readable(f"choice {choice.name}: options", option, ",")
        self.size = math.prod(len(choice.options) for choice in self.choices)

    @named_arguments("space")
    def parse(self, text: str) -> Architecture:
        """The architecture that ``str`` wrote; choices may come in any order.

        Raises:
            InputError: A choice is malformed, unknown, missing or there twice, or takes an option
                that it does not have.
        """
        found: dict[str, str] = {}
        known = {choice.name: choice for choice in self.choices}
        for part in text.strip().split(","):
            name, equals, option = (piece.strip() for piece in part.partition("="))
            if not equals or name not in known:
                expected = "name=option" if not equals else f"one of {', '.join(known)}"
                raise InputError(
                    f"architecture {text!r}: expected {expected}, got {name if equals else part!r}"
                )
            if name in found:
                raise InputError(f"architecture {text!r}: expected {name} once, got it twice")
            if option not in known[name].options:
                raise InputError(
                    f"architecture {text!r}: {name} must be one of "
                    f"{', '.join(known[name].options)}, got {option!r}"
                )
            found[name] = option
        for name in known:
            if name not in found:
                raise InputError(f"architecture {text!r}: expected a choice of {name}, got none")
        return self.decode([c.options.index(found[c.name]) for c in self.choices])

    def index(self, arch: Architecture) -> int:
        """The number of an architecture, 0 to ``size`` - 1; the last choice counts fastest."""
        number = 0
        for choice, code in zip(self.choices, self.encode(arch), strict=True):
            number = number * len(choice.options) + code
        return number

    def at(self, index: int) -> Architecture:
        """The architecture of a number.

        Raises:
            InputError: The number is not from 0 to below `size`.
        """
        index = checked_index(self.name, index, self.size)
        codes = []
        for choice in reversed(self.choices):
            index, code = divmod(index, len(choice.options))
            codes.append(code)
        return self.decode(codes[::-1])

    def encode(self, arch: Architecture) -> tuple[int, ...]:
        """The option taken of each choice.

        Raises:
            InputError: It is no architecture of this space.
        """
        choices = getattr(arch, "choices", None)
        if choices is not self.choices and choices != self.choices:
            raise InputError(
                f"architecture: expected one of {self.name}, got {type(arch).__name__} "
                f"{str(arch)!r}; the space's `parse` reads strings"
            )
        return arch.codes

    def decode(self, codes: Sequence[int]) -> Architecture:
        """The architecture that takes these options."""
        return Architecture(self.choices, tuple(codes))

    def sample(self, rng: random.Random) -> Architecture:
        """An architecture, all equally likely."""
        return self.decode([rng.randrange(len(choice.options)) for choice in self.choices])

    def mutate(self, arch: Architecture, rng: random.Random) -> Architecture:
        """Another option of one choice, all neighbours equally likely.

        Raises:
            InputError: The space has one architecture only.
        """
        others = [len(choice.options) - 1 for choice in self.choices]
        if not any(others):
            raise InputError(f"{self.name}: the only architecture has no neighbour")
        place = rng.choices(range(len(others)), weights=others)[0]
        other = rng.randrange(others[place])
        return self._with(arch, place, other + (other >= arch.codes[place]))

    def crossover(
        self, first: Architecture, second: Architecture, rng: random.Random
    ) -> Architecture:
        """Each choice from either parent."""
        return self.decode([rng.choice(p) for p in zip(first.codes, second.codes, strict=True)])

    def neighbours(self, arch: Architecture) -> Iterator[Architecture]:
        """All architectures that differ in one choice.

        Yields:
            Each once.
        """
        for place, choice in enumerate(self.choices):
            for option in range(len(choice.options)):
                if option != arch.codes[place]:
                    yield self._with(arch, place, option)

    def idle(self, arch: Architecture) -> frozenset[str]:
        """Names of the choices that do nothing in an architecture, given the others."""
        return frozenset()

    def pruned(self, arch: Architecture) -> Architecture:
        """The same network on the same weights: choices that do nothing at their first option."""
        idle = self.idle(arch)
        pairs = zip(self.choices, arch.codes, strict=True)
        return self.decode([0 if choice.name in idle else code for choice, code in pairs])

    def representative(self, arch: Architecture) -> Architecture:
        """The one that stands for all architectures that are the same network."""
        return self.pruned(arch)

    def connected(self, arch: Architecture) -> bool:
        """Whether the output depends on the input."""
        return True

    def _with(self, arch: Architecture, place: int, option: int) -> Architecture:
        codes = list(arch.codes)
        codes[place] = option
        return self.decode(codes)
