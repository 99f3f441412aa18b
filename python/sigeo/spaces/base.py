"""What a search space offers to those who rank, search and train over it."""

from __future__ import annotations

import random
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from torch import Tensor, nn

from sigeo.errors import InputError, described
from sigeo.kinds import check_fields, named_arguments, whole_numbers
from sigeo.spaces.streams import Streams

A = TypeVar("A", bound=Hashable)
A_in = TypeVar("A_in", bound=Hashable, contravariant=True)


def listed(archs: Iterable[Any]) -> list[Any]:
    """Architectures that are given in a list, or as a generator gives them.

    Raises:
        InputError: One architecture.
    """
    if isinstance(archs, str) or not isinstance(archs, Iterable):
        raise InputError(
            f"archs: expected several architectures, such as a list, got one "
            f"{type(archs).__name__} {str(archs)!r}"
        )
    return list(archs)


def checked_index(space: str, index: Any, size: int) -> int:
    """The number of an architecture, as Python's.

    Args:
        space: Its name, for the message.
        index: The number.
        size: Of the space.

    Raises:
        InputError: The space has none of that number.
    """
    whole = whole_numbers([index])
    if whole is None or not 0 <= whole[0] < size:
        raise InputError(
            f"{space}: index must be a whole number from 0 to {size - 1}, got {described(index)}"
        )
    return whole[0]


@dataclass(frozen=True)
class Cost:
    """What a network costs.

    Attributes:
        parameters: Number of trainable scalars.
        flops: Multiply-adds for one input.
    """

    parameters: int
    flops: int


@dataclass(frozen=True)
class InputShape:
    """What the networks of a space take and give.

    Attributes:
        channels: Channels of the images.
        size: Height and width of the images, in pixels.
        classes: Number of classes.
    """

    channels: int
    size: int
    classes: int

    def __post_init__(self) -> None:
        """Check the kinds.

        Raises:
            InputError: One is no whole number.
        """
        check_fields(self, "input shape")


@dataclass(frozen=True)
class Choice:
    """A decision that every architecture of a space takes.

    Attributes:
        name: What is decided, for example an edge.
        options: Names of the options, each once.
    """

    name: str
    options: tuple[str, ...]

    def __post_init__(self) -> None:
        """Check the names.

        Raises:
            InputError: The name or an option is no text, there is no option, or one twice.
        """
        if not isinstance(self.name, str):
            raise InputError(f"choice: name must be a text, got {self.name!r}")
        options = self.options
        texts = isinstance(options, (tuple, list)) and all(isinstance(o, str) for o in options)
        if not texts or not options:
            raise InputError(
                f"choice {self.name}: options must be texts in a tuple, got {options!r}"
            )
        if len(set(options)) < len(options):
            raise InputError(f"choice {self.name}: expected each option once, got {options}")


Rows = nn.Parameter | Sequence[nn.Parameter]
"""A weight as several subnets use it: rows ``[n, *shape]`` of one tensor, or where subnets use
parts of different shapes, one tensor a row."""


def leaves(rows: Rows) -> list[nn.Parameter]:
    """The tensors that rows consist of."""
    return [rows] if isinstance(rows, nn.Parameter) else list(rows)


class Watch(Protocol):
    """Sees the layers of a stack as they run, each with the blocks of the subnets that use it.

    What it is given belongs to the pass: it may ask outputs for gradients, and changes nothing.
    """

    def convolution(self, name: str, x: Tensor, y: Tensor, *, stride: int, padding: int) -> None:
        """One without bias, of the weight ``name``: x [n, B, H, W, I] to y [n, B, H', W', O]."""
        ...

    def norm(
        self, name: str, x: Tensor, y: Tensor, subnets: Tensor, mean: Tensor, rstd: Tensor
    ) -> None:
        """A batch norm whose result is a summand of y.

        Args:
            name: Of its module; the weights are ``name.weight`` and ``name.bias``.
            x: [n, B, H, W, C].
            y: The sum [K, B H W, C].
            subnets: Whose blocks of y those of x are added to, int64 [n].
            mean: By which x was normalised, [n, C].
            rstd: 1 / deviation, likewise.
        """
        ...

    def linear(self, name: str, x: Tensor, y: Tensor) -> None:
        """A linear layer with bias, of the module ``name``: x [K, B, I] to y [K, B, O]."""
        ...


class Stack(Protocol):
    """Several subnets of a supernet as one function of a batch.

    Attributes:
        weights: The weights that any of them uses, by the supernet's names: one row a subnet that
            uses it, as one ``nn.Parameter`` [rows, ...] or a sequence of them, one a row.
            They are the stack's own; rows are one in memory where they are shared.
        members: The subnet of each row.
        layers: Names of the weights of convolutions and linear layers.
        random: Where the random numbers of each subnet stand; None where none are drawn.
        apart: Whether subnets share no graph, so that a pass may go backward through one of them
            before the next is run, see `each`.
    """

    apart: bool
    random: Streams | None
    weights: Mapping[str, Rows]
    members: Mapping[str, tuple[int, ...]]
    layers: frozenset[str]

    def __call__(self, x: Tensor) -> Tensor:
        """A batch [B, ...] to each subnet's outputs [K, B, ...], in train mode.

        Batch norm uses each subnet's own statistics of the batch, and dropout draws what it would
        for each subnet alone.
        """
        ...

    def each(self, x: Tensor) -> Iterator[Tensor]:
        """The outputs [B, ...] of one subnet after another, as the call gives them together."""
        ...

    def gradient(self, name: str) -> Tensor | None:
        """The sum of the rows' gradients, in the shape of the shared weight; None without any."""
        ...


class Supernet(Protocol[A_in]):
    """Weights that all architectures of a space share; an ``nn.Module`` as well.

    One whose stacks show their layers says so by ``watchable = True``: they then have an attribute
    ``watch`` that takes a `Watch`, None at first.
    """

    def __call__(self, x: Tensor, arch: A_in) -> Tensor:
        """Run one architecture on a batch."""
        ...

    def subnet(self, arch: A_in, *, whole: bool = False) -> nn.Module:
        """A plain module of one architecture with the shared weights as they are now.

        It uses the shared tensors themselves where an architecture has them whole. Where it has
        parts of them, they are copies: shared weights are trained by calling the supernet.

        Args:
            arch: The architecture.
            whole: Whether parts that do nothing are still among its modules; they never run.
        """
        ...

    def stack(self, archs: Sequence[A_in], *, own: bool = False) -> Stack:
        """Several architectures to run together.

        Args:
            archs: The architectures, any of them more than once.
            own: Whether each gets a copy of its weights, to move; else all read the shared ones.
        """
        ...


class SearchSpace(Protocol[A]):
    """A set of architectures; an architecture is plain hashable data, ``str`` writes it.

    A space object also fixes the sizes around the searched part, so it knows every network.

    Attributes:
        name: As on the command line.
        size: Number of architectures.
        choices: What an architecture decides; every combination of options is one.
    """

    name: str
    size: int
    choices: tuple[Choice, ...]

    def parse(self, text: str) -> A:
        """The architecture that ``str`` wrote; InputError says what is malformed."""
        ...

    def index(self, arch: A) -> int:
        """The number of an architecture, 0 to ``size`` - 1."""
        ...

    def at(self, index: int) -> A:
        """The architecture of a number; InputError beyond the ends."""
        ...

    def encode(self, arch: A) -> tuple[int, ...]:
        """The option that an architecture takes of each choice."""
        ...

    def decode(self, codes: Sequence[int]) -> A:
        """The architecture that takes these options; InputError says what does not fit."""
        ...

    def sample(self, rng: random.Random) -> A:
        """An architecture, all equally likely."""
        ...

    def mutate(self, arch: A, rng: random.Random) -> A:
        """A neighbour, all equally likely."""
        ...

    def crossover(self, first: A, second: A, rng: random.Random) -> A:
        """Each choice from either parent."""
        ...

    def neighbours(self, arch: A) -> Iterator[A]:
        """All architectures that differ in one choice."""
        ...

    def representative(self, arch: A) -> A:
        """The one that stands for all architectures that are the same network.

        Their scores agree but for the draw of the weights, also after optimiser steps.
        """
        ...

    def pruned(self, arch: A) -> A:
        """The same network on the same weights, without the choices that do nothing."""
        ...

    def connected(self, arch: A) -> bool:
        """Whether the output depends on the input."""
        ...

    def cost(self, arch: A) -> Cost:
        """What the published network of an architecture costs."""
        ...

    def build(self, arch: A, *, seed: int = 0) -> nn.Module:
        """The published network of an architecture, with its own weights."""
        ...

    def supernet(self, *, seed: int = 0) -> Supernet[A]:
        """Shared weights; every architecture starts as `build` with this seed starts it."""
        ...

    def describe(self) -> dict[str, Any]:
        """Name and sizes, as JSON can hold them; `described` makes the same space of them."""
        ...


@named_arguments("spaces.distinct")
def distinct(space: SearchSpace[A], count: int, rng: random.Random) -> list[A]:
    """Sample ``count`` architectures, none twice, in the order drawn.

    Raises:
        InputError: The space has fewer.
    """
    if count > space.size:
        raise InputError(f"{space.name}: has {space.size} architectures, got a count of {count}")
    chosen: dict[A, None] = {}
    if count * 4 > space.size:  # rejection would be slow: shuffle them all
        everything = [space.at(index) for index in range(space.size)]
        rng.shuffle(everything)
        return everything[:count]
    while len(chosen) < count:
        chosen.setdefault(space.sample(rng))
    return list(chosen)
