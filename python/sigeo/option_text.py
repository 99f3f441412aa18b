"""``NAME:OPTION=VALUE,...``: how a thing with options of its own is written."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from sigeo.errors import InputError


def parts(text: str) -> tuple[str, list[str]]:
    """The name, and what follows it, split at commas, without spaces around.

    Args:
        text: ``NAME`` or ``NAME:OPTION=VALUE,...``; commas inside a value that is a list or a text
            in double quotes, as of JSON, are its own.
    """
    name, _, rest = text.partition(":")
    return name.strip(), _split(rest)


def listed(text: str) -> list[str]:
    """Several such texts that are separated by commas, as are the options of each.

    What has an equals sign and no name before it is a further option of the thing before it.
    """
    found: list[str] = []
    for part in _split(text):
        before, equals, _ = part.partition("=")
        if found and equals and ":" not in before:
            found[-1] += f",{part}"
        else:
            found.append(part)
    return found


def values(what: str, given: Iterable[str], known: Iterable[str]) -> dict[str, Any]:
    """The options in texts ``OPTION=VALUE``; values are JSON, or else text.

    Args:
        what: Has the options, for messages.
        given: The texts.
        known: The options that it has.

    Raises:
        InputError: A text is not ``OPTION=VALUE``, or an option is there twice.
    """
    found: dict[str, Any] = {}
    for part in given:
        option, equals, value = part.partition("=")
        if not equals or not option:
            have = ", ".join(f"{name}=" for name in known) or "none"
            raise InputError(f"{what}: expected option=value, got {part!r}; options are {have}")
        if option in found:
            raise InputError(f"{what}: {option} is given more than once")
        try:
            found[option] = json.loads(value)
        except ValueError:
            found[option] = value
    return found


def written(option: str, value: Any) -> str:
    """The text ``OPTION=VALUE`` of which `values` reads an option.

    Args:
        option: Its name.
        value: A text, which has no commas, or what JSON has.
    """
    return f"{option}={value if isinstance(value, str) else json.dumps(value)}"


def _split(text: str) -> list[str]:
    """At commas outside brackets and double quotes, without spaces around."""
    found, depth, begin, quoted, escaped = [], 0, 0, False, False
    for place, letter in enumerate(text):
        if letter == '"' and not escaped:
            quoted = not quoted
        escaped = letter == "\\" and not escaped
        if quoted:
            continue
        depth += (letter in "[{") - (letter in "]}")
        if letter == "," and depth == 0:
            found.append(text[begin:place])
            begin = place + 1
    stripped = (part.strip() for part in [*found, text[begin:]])
    return [part for part in stripped if part]
