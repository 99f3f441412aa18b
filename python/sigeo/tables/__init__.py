"""Benchmark tables, and how a proxy ranks against them."""

from sigeo.tables.combination import log_rank_sum, rank_sum
from sigeo.tables.correlation import (
    Correlation,
    Estimate,
    correlate,
    kendall,
    parts_first,
    repeated_kendall,
    spearman,
    spearman_difference,
)
from sigeo.tables.quality import (
    FEWEST,
    Pick,
    Quality,
    best,
    hits,
    noise_ceiling,
    pick,
    quality,
    random_surpasses,
    sparse_kendall,
    sparse_ranks,
    top_kendall,
)
from sigeo.tables.table import Table, read_table, write_parquet

__all__ = [
    "FEWEST",
    "Correlation",
    "Estimate",
    "Pick",
    "Quality",
    "Table",
    "best",
    "correlate",
    "hits",
    "kendall",
    "log_rank_sum",
    "noise_ceiling",
    "parts_first",
    "pick",
    "quality",
    "random_surpasses",
    "rank_sum",
    "read_table",
    "repeated_kendall",
    "sparse_kendall",
    "sparse_ranks",
    "spearman",
    "spearman_difference",
    "top_kendall",
    "write_parquet",
]
