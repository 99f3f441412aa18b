"""Several copies of a part of an elastic supernet, each for some of the widths that it has."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sigeo.errors import InputError
from sigeo.spaces.base import Choice


@dataclass(frozen=True)
class Groups:
    """Copies of some pieces, one a range of the options of one choice (arXiv 2206.05896).

    A copy is as large as the widest option of its range asks for.

    Attributes:
        choice: The place of the choice in ``space.choices``.
        tops: The last option of each range, ascending; the last is the choice's own.
        pieces: Names of the pieces of the largest network that are copied.
    """

    choice: int
    tops: tuple[int, ...]
    pieces: tuple[str, ...]

    def of(self, option: int) -> int:
        """The number of the copy that serves an option."""
        return bisect_left(self.tops, option)

    def describe(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return {name: _listed(value) for name, value in asdict(self).items()}

    @classmethod
    def read(cls, document: dict[str, Any]) -> Groups:
        """What `describe` gave.

        Raises:
            InputError: It is something else.
        """
        try:
            tops, pieces = map(int, document["tops"]), map(str, document["pieces"])
            return cls(int(document["choice"]), tuple(tops), tuple(pieces))
        except (LookupError, TypeError, ValueError):
            raise InputError(f"groups: expected choice, tops and pieces, got {document}") from None


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def by_piece(
    groups: Sequence[Groups],
    choices: Sequence[Choice],
    pieces: Sequence[str],
    before: Sequence[Groups] = (),
) -> dict[str, Groups]:
    """The groups of each piece that has any.

    Args:
        groups: Of some pieces.
        choices: The space's.
        pieces: Names of the pieces of its largest network.
        before: Those that ``groups`` are to be finer than, or the same.

    Raises:
        InputError: They do not fit the space, have a piece twice, or are not finer.
    """
    found: dict[str, Groups] = {}
    for one in groups:
        if not 0 <= one.choice < len(choices):
            raise InputError(
                f"groups: choice must be from 0 to {len(choices) - 1}, got {one.choice}"
            )
        choice, tops = choices[one.choice], list(one.tops)
        ends = tops[:1] + tops[-1:]
        if (
            not tops
            or tops != sorted(set(tops))
            or ends[0] < 0
            or ends[1] + 1 != len(choice.options)
        ):
            raise InputError(
                f"groups: tops of {choice.name} must ascend from 0 or more to "
                f"{len(choice.options) - 1}, got {tops}"
            )
        for piece in one.pieces:
            if piece not in pieces or piece in found:
                raise InputError(
                    f"groups: expected each piece once, of {', '.join(pieces)}, got {piece!r}"
                )
            found[piece] = one
    for old in before:
        for piece in old.pieces:
            new = found.get(piece)
            if new is None or new.choice != old.choice or not set(old.tops) <= set(new.tops):
                raise InputError(
                    f"groups: those of {piece} must be finer than of tops {list(old.tops)}, got "
                    f"{None if new is None else list(new.tops)}"
                )
    return found
