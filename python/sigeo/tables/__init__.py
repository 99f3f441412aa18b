"""Benchmark tables, and how a proxy ranks against them."""

from sigeo.tables.correlation import (
    Correlation,
    Estimate,
    correlate,
    kendall,
    spearman,
    spearman_difference,
)
from sigeo.tables.table import Table, read_table, write_parquet

__all__ = [
    "Correlation",
    "Estimate",
    "Table",
    "correlate",
    "kendall",
    "read_table",
    "spearman",
    "spearman_difference",
    "write_parquet",
]
