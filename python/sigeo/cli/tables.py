"""Say what a benchmark table holds, or convert it to parquet."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from sigeo.cli import console

HELP = "show or convert a benchmark table"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    parser.add_argument("file", help="csv, csv.gz or parquet with an arch_str column")
    parser.add_argument("--convert", metavar="FILE", help="write it as parquet")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead")


def run(args: argparse.Namespace) -> int:
    """Show."""
    import numpy as np

    from sigeo.tables import read_table, write_parquet

    table = read_table(args.file)
    summary = {
        name: {
            "count": int(np.isfinite(values).sum()),
            "min": float(np.nanmin(values)) if np.isfinite(values).any() else None,
            "mean": float(np.nanmean(values)) if np.isfinite(values).any() else None,
            "max": float(np.nanmax(values)) if np.isfinite(values).any() else None,
        }
        for name, values in table.values.items()
    }
    if args.convert is not None:
        write_parquet(table, Path(args.convert))
    if args.json:
        document = {"schema": 1, "rows": len(table.archs), "columns": summary}
        print(json.dumps(document, allow_nan=False))
        return 0
    console.show_table(
        f"{table.path}: {len(table.archs)} architectures",
        [("column", False), ("values", True), ("min", True), ("mean", True), ("max", True)],
        (
            [
                name,
                str(s["count"]),
                *("" if s[k] is None else f"{s[k]:.6g}" for k in ("min", "mean", "max")),
            ]
            for name, s in summary.items()
        ),
    )
    return 0
