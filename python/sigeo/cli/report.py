"""Write one self-contained HTML page about a ranking."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from sigeo.cli import compare, console, options, table_options
from sigeo.errors import InputError
from sigeo.whole_files import write_whole_text

if TYPE_CHECKING:
    from sigeo.report import Measured
    from sigeo.tables import Table

HELP = "write the HTML report of a ranking"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    parser.add_argument(
        "run",
        type=options.there("a run's folder or a file"),
        help="a run's folder, or its scores.parquet",
    )
    table_options.add(parser, "to compare with")
    parser.add_argument("--out", metavar="FILE", help="default: report.html beside the scores")


def run(args: argparse.Namespace) -> int:
    """Write.

    Raises:
        InputError: The folder holds no ranking, but a comparison.
    """
    given = Path(args.run)
    scores = given / "scores.parquet" if given.is_dir() else given
    out = Path(args.out) if args.out is not None else scores.with_name("report.html")
    metric = table_options.metric(args)
    if not scores.exists() and (given / compare.PAGE).exists():
        raise InputError(f"{given}: holds a comparison, whose report is {given / compare.PAGE}")
    write_report(scores, out, table_options.read(args.table, metric), metric)
    console.say(f"report: {out}")
    return 0


def write_report(scores: Path, out: Path, table: Table | None, metric: str) -> None:
    """Write the report of a scores file; ``table`` may be None.

    Raises:
        InputError: The scores are damaged, or a file cannot be read or written.
    """
    from sigeo.report import render
    from sigeo.tables.ranking import read_scores

    head, rows = read_scores(scores)
    columns = {name: rows[name].to_pylist() for name in rows.column_names}
    measured = None if table is None else _measured(head["proxies"], columns, table, metric)
    try:
        text = render(head, columns, measured)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        what = console.said(error)
        raise InputError(f"{scores}: damaged, not what sigeo rank wrote ({what})") from None
    write_whole_text(out, text)


def _measured(
    proxies: list[str], columns: dict[str, list[object]], table: Table, metric: str
) -> Measured:
    import numpy as np

    from sigeo.cli.correlate import BASELINES
    from sigeo.report import Measured
    from sigeo.tables import correlate

    archs = list(map(str, columns["arch_str"]))
    table_options.check_scored(table, metric, archs)
    truth = table.lookup(metric)
    values = np.array([truth.get(arch, np.nan) for arch in archs])
    known = np.isfinite(values)
    standing = np.array(columns["standing"])[known] if "standing" in columns else None
    correlations = {}
    for proxy in proxies:
        scores = np.array([np.nan if v is None else v for v in columns[proxy]], dtype=np.float64)
        correlations[proxy] = correlate(
            scores[known], values[known], standing=None if proxy in BASELINES else standing
        )
    return Measured(table.column(metric), table.path.name, values, correlations)
