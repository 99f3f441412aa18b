"""Say what a benchmark table holds, or convert it to parquet."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from sigeo.cli import console, options
from sigeo.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

HELP = "show or convert a benchmark table"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    parser.add_argument(
        "file",
        type=options.existing_file,
        help="csv, csv.gz or parquet with an arch_str column",
    )
    parser.add_argument(
        "--convert",
        metavar="FILE",
        help="write it as parquet, all columns as they are, with the architectures as arch_str",
    )
    options.add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Show.

    Raises:
        InputError: The name to write to is no parquet file's.
    """
    if args.convert is not None and Path(args.convert).suffix != ".parquet":
        raise InputError(f"--convert: expected a name that ends in .parquet, got {args.convert}")

    import numpy as np

    from sigeo.tables import read_table, write_parquet

    table = read_table(args.file)
    finite = {name: values[np.isfinite(values)] for name, values in table.values.items()}
    summary = {
        name: {
            "count": len(values),
            "min": float(values.min()) if len(values) else None,
            "mean": _mean(values) if len(values) else None,
            "max": float(values.max()) if len(values) else None,
        }
        for name, values in finite.items()
    }
    if args.convert is not None:
        write_parquet(table, Path(args.convert))
    if args.json:
        document = {"schema": 1, "rows": len(table.archs), "columns": summary}
        console.out(json.dumps(document, allow_nan=False))
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


def _mean(values: NDArray[np.float64]) -> float:
    """The mean of values whose sum may be too large for float64."""
    share = 2.0 ** -len(values).bit_length()  # a power of 2, by which nothing is rounded
    return float((values * share).mean() / share)
