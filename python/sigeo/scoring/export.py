"""A ranking as JSON and as parquet."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

import sigeo_ext
from sigeo.scoring.networks import Networks
from sigeo.scoring.rank import Row
from sigeo.tables.ranking import HEAD
from sigeo.whole_files import write_whole_table

SCHEMA = 1


def environment(device: str) -> dict[str, Any]:
    """What the numbers were made with."""
    table = sigeo_ext.implementations()
    return {
        "sigeo": sigeo_ext.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "device": torch.cuda.get_device_name() if device.startswith("cuda") else "cpu",
        "threads": torch.get_num_threads(),
        "implementation": sorted({row[torch.device(device).type] for row in table.values()}),
    }


def as_json(networks: Networks, rows: Sequence[Row]) -> dict[str, Any]:
    """The document of ``sigeo rank --json``: only finite numbers and null."""
    return {
        "schema": SCHEMA,
        "space": networks.space.name,
        "data": networks.data.name,
        "settings": networks.settings(),
        "checkpoints": networks.checkpoints,
        "rows": [
            {
                "arch": row.arch,
                "index": row.index,
                "scores": row.scores,
                "terms": row.terms,
                "options": row.options,
                "finite": row.finite,
                "notes": list(row.notes),
                "seconds": row.seconds,
                **({} if row.standing is None else {"standing": row.standing}),
            }
            for row in rows
        ],
        "env": environment(str(networks.device)),
    }


def strict_dumps(document: Any, *, indent: int | None = None) -> str:
    """JSON text that any strict parser reads.

    Raises:
        ValueError: A number in it is not finite.
    """
    return json.dumps(document, allow_nan=False, indent=indent, ensure_ascii=False)


def write_scores(path: Path, document: Mapping[str, Any], proxies: Sequence[str]) -> None:
    """Write the rows as parquet: a column a proxy, ``<proxy>.<term>`` a term.

    Where parts of the space are preferred there is the column ``standing``, see `Row`.

    The rest of the document is kept as JSON under the key "sigeo" of the file's metadata.

    Raises:
        InputError: The file cannot be written.
    """
    rows = document["rows"]
    columns: dict[str, Any] = {
        "rank": pa.array(range(1, len(rows) + 1), pa.int64()),
        "index": indices([row["index"] for row in rows]),
        "arch_str": pa.array([row["arch"] for row in rows], pa.string()),
    }
    if any("standing" in row for row in rows):
        columns["standing"] = pa.array([row["standing"] for row in rows], pa.int64())
    for proxy in proxies:
        columns[proxy] = pa.array([row["scores"][proxy] for row in rows], pa.float64())
        terms = sorted({term for row in rows for term in row["terms"].get(proxy, {})})
        for term in terms:
            values = [row["terms"].get(proxy, {}).get(term) for row in rows]
            columns[f"{proxy}.{term}"] = pa.array(values, pa.float64())
    options = [strict_dumps(row["options"]) for row in rows]
    columns["options"] = pa.array(options, pa.string())
    columns["finite"] = pa.array([row["finite"] for row in rows], pa.bool_())
    columns["notes"] = pa.array([row["notes"] for row in rows], pa.list_(pa.string()))
    columns["seconds"] = pa.array([row["seconds"] for row in rows], pa.float64())
    head = {k: v for k, v in document.items() if k != "rows"} | {"proxies": list(proxies)}
    table = pa.table(columns).replace_schema_metadata({HEAD: strict_dumps(head)})
    write_whole_table(path, table)


def indices(numbers: Sequence[int]) -> pa.Array:
    """Numbers of architectures as a column: text where one is beyond what int64 can count."""
    if any(number >= 1 << 63 for number in numbers):
        return pa.array(map(str, numbers), pa.string())
    return pa.array(numbers, pa.int64())


def finite_or_none(value: float) -> float | None:
    """A number that JSON has, or None."""
    return value if math.isfinite(value) else None
