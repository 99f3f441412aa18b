"""Scores of architectures from a file of any kind that holds some."""

from __future__ import annotations

import json
import operator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sigeo.cli import options
from sigeo.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_NOT_SCORES = {"rank", "index", "seconds"}


@dataclass(frozen=True)
class Scores:
    """Scores of architectures from a file.

    Attributes:
        archs: Their strings, [n].
        columns: A column a proxy, [n] each; NaN where not finite.
        head: What ``rank`` wrote of how they were made; empty of another program's.
        standing: [n], of the parts of the space where a system prefers some, else None.
    """

    archs: list[str]
    columns: dict[str, NDArray[np.float64]]
    head: dict[str, Any]
    standing: NDArray[np.int64] | None


def read_any_scores(path: Path) -> Scores:
    """Read scores of any of the three kinds of files.

    Raises:
        InputError: The file is none of the three kinds.
    """
    import numpy as np

    from sigeo.tables import read_table
    from sigeo.tables.ranking import is_ranking, read_scores

    if path.suffix == ".json":
        found = _from_json(path)
    else:
        head: dict[str, Any] = {}
        standing = None
        table = read_table(path)
        archs = list(table.archs)
        names = [n for n in table.values if n not in _NOT_SCORES]
        if is_ranking(table.whole):  # else every numeric column is a score
            head = read_scores(path)[0]
            names = head["proxies"]
            if "standing" in table.values:
                standing = table.values["standing"].astype(np.int64)
        found = Scores(archs, {name: table.values[name] for name in names}, head, standing)
    if not found.columns:
        raise InputError(f"{path}: expected at least one column of scores, found none")
    return found


def _from_json(path: Path) -> Scores:
    import numpy as np

    text = options.text_of(path)
    try:
        document = json.loads(text)
        rows = document["rows"]
        archs = [str(row["arch"]) for row in rows]
        names = list(rows[0]["scores"])
        columns = {
            name: np.array([_score(row, name) for row in rows], dtype=np.float64) for name in names
        }
        standing = None
        if any("standing" in row for row in rows):
            standing = np.array([operator.index(row["standing"]) for row in rows], dtype=np.int64)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except (ValueError, LookupError, TypeError, OverflowError, RecursionError) as error:
        what = f"{type(error).__name__} {error}".strip()
        raise InputError(f"{path}: expected the JSON of sigeo rank ({what})") from None
    return Scores(archs, columns, document, standing)


def _score(row: dict[str, Any], name: str) -> float:
    value = row["scores"][name]
    if value is None:
        return float("nan")
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise InputError(f"scores of {row['arch']}: {name} must be a number or null, got {value!r}")
    return float(value)
