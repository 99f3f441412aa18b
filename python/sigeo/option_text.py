"""``NAME:OPTION=VALUE,...``: how a thing with options of its own is written."""

from __future__ import annotations


def parts(text: str) -> tuple[str, list[str]]:
    """The name, and what follows it, split at commas outside brackets, without spaces around.

    Args:
        text: ``NAME`` or ``NAME:OPTION=VALUE,...``; a value may be a list of JSON.
    """
    name, _, rest = text.partition(":")
    found, depth, begin = [], 0, 0
    for place, letter in enumerate(rest):
        depth += (letter in "[{") - (letter in "]}")
        if letter == "," and depth == 0:
            found.append(rest[begin:place])
            begin = place + 1
    stripped = (part.strip() for part in [*found, rest[begin:]])
    return name, [part for part in stripped if part]
