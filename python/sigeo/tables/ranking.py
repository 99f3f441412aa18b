"""Rankings that were written as parquet, read without importing torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from sigeo.errors import InputError
from sigeo.tables.table import check_texts, read_parquet

HEAD = b"sigeo"
"""The key of a file's metadata under which how the ranking was made is kept, as JSON."""


def read_scores(path: Path) -> tuple[dict[str, Any], pa.Table]:
    """What `sigeo.scoring.export.write_scores` wrote.

    Returns:
        The document's head, with "proxies", and the rows.

    Raises:
        InputError: There is no such file, or it is something else or damaged.
    """
    if not path.is_file():
        raise InputError(f"scores: found no file {path}")
    try:
        table = read_parquet(path)
        check_texts(table)
    except (pa.ArrowInvalid, OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: {str(error).splitlines()[0]}") from None
    if not is_ranking(table):
        raise InputError(f"{path}: expected a ranking that sigeo rank wrote, found another table")
    try:
        head = json.loads(table.schema.metadata[HEAD])
        whole = _is_whole(table, head["proxies"])
    except (ValueError, LookupError, TypeError, RecursionError):
        whole = False
    if not whole:
        raise InputError(f"{path}: damaged, its metadata and columns are not those of sigeo rank")
    return head, table


def is_ranking(table: pa.Table) -> bool:
    """Whether a table says that `sigeo.scoring.export.write_scores` made it."""
    return HEAD in (table.schema.metadata or {})


def _is_whole(table: pa.Table, proxies: Sequence[str]) -> bool:
    """Whether there is a column of numbers a proxy, and each row's part where parts count."""
    kinds = {name: table.schema.field(name).type for name in table.column_names}
    if "standing" in kinds and (kinds["standing"] != pa.int64() or table["standing"].null_count):
        return False
    return all(kinds.get(name) == pa.float64() for name in proxies)
