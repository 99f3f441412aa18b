"""Benchmark tables: a row an architecture, a column a measured value."""

from __future__ import annotations

import difflib
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import csv, parquet

from sigeo.errors import InputError
from sigeo.kinds import named_arguments
from sigeo.whole_files import write_whole_table

ARCHITECTURE_COLUMNS = ("arch_str", "arch")
_CODES = 8  # different values of a code at most, such as operations of an edge
_FEW = 16  # rows up to which whole numbers may be consecutive by chance
_LISTED = 5  # columns that a message names all of


@dataclass(frozen=True, eq=False)
class Table:
    """A table in memory.

    Attributes:
        path: Where it came from.
        archs: Architecture strings, one a row.
        values: The numeric columns, float64, NaN where a cell is empty.
        whole: All columns as they were read, the architectures as ``arch_str``.
    """

    path: Path
    archs: tuple[str, ...]
    values: dict[str, NDArray[np.float64]]
    whole: pa.Table

    def column(self, metric: str) -> str:
        """The column that a metric's name means.

        A column's own name, or the same with dots for underscores and without the number of epochs:
        ``cifar10.test`` is ``cifar10_test_200``, the longest schedule, and ``cifar10.test.12`` is
        ``cifar10_test_12``.

        Raises:
            InputError: No column fits.
        """
        for name in (metric, metric.replace(".", "_")):  # a column's own name may have dots
            if name in self.values:
                return name
            schedules = {
                int(rest): column
                for column in self.values
                if (rest := column.removeprefix(f"{name}_")) != column and rest.isdecimal()
            }
            if schedules:
                return schedules[max(schedules)]
        raise InputError(
            f"{self.path}: expected a column for metric {metric!r}, found {self._near(metric)}"
        )

    def _near(self, metric: str) -> str:
        """The columns that there are; of many those of a similar name."""
        if len(self.values) <= _LISTED:
            return ", ".join(self.values) or "no numeric column"
        wanted = metric.replace(".", "_")
        near = difflib.get_close_matches(wanted, self.values, n=3, cutoff=0.5)
        count = f"{len(self.values)} numeric columns"
        return f"{count}, {', '.join(near)} among them" if near else f"{count}, none of such a name"

    def code_like(self, metric: str) -> str | None:
        """Why a column seems to be a code of architectures rather than a result; None if not.

        Args:
            metric: As of `column`.

        Raises:
            InputError: No column fits.
        """
        name = self.column(metric)
        if not pa.types.is_integer(self.whole[name].type):
            return None
        values = self.values[name][~np.isnan(self.values[name])]
        different = np.unique(values)
        low, high = (int(different[0]), int(different[-1])) if len(different) else (0, -1)
        consecutive = low in (0, 1) and high - low + 1 == len(different)
        if len(values) <= _FEW or not consecutive:
            return None
        if len(different) == len(values):
            return f"it numbers the rows, from {low} to {high}"
        if len(different) <= _CODES:
            return f"it holds the whole numbers {low} to {high} alone"
        return None

    def lookup(self, metric: str) -> dict[str, float]:
        """Architecture string to value, where that is finite; names as in `column`.

        Several rows of one architecture, one a seed say, count as their mean.

        Raises:
            InputError: No column fits; or rows of one architecture differ in a column of text, such
                as the data set, so that they are not the same measurement again.
        """
        values = self.values[self.column(metric)]
        found: dict[str, list[float]] = {}
        for arch, value in zip(self.archs, values.tolist(), strict=True):
            if math.isfinite(value):
                found.setdefault(arch, []).append(value)
        if any(len(several) > 1 for several in found.values()):
            self._check_repeated(np.isfinite(values))
        return {arch: fmean(several) for arch, several in found.items()}

    def _check_repeated(self, counted: NDArray[np.bool_]) -> None:
        """Check that the rows of an architecture agree in their text.

        Args:
            counted: Which rows, [rows].

        Raises:
            InputError: They do not.
        """
        for name, column in zip(self.whole.column_names, self.whole.columns, strict=True):
            if not _is_text(column.type):
                continue
            first: dict[str, str] = {}
            for arch, text, counts in zip(self.archs, column.to_pylist(), counted, strict=True):
                if counts and first.setdefault(arch, text) != text:
                    raise InputError(
                        f"{self.path}: expected rows of one architecture to be the same "
                        f"measurement again, got {name} {first[arch]!r} and {text!r} of {arch}; "
                        "keep the rows of one"
                    )


def _is_text(kind: pa.DataType) -> bool:
    """Whether a column holds texts, each or as numbers of a dictionary (pandas' categories)."""
    of = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(of) or pa.types.is_large_string(of))


@named_arguments("read_table")
def read_table(path: str | Path) -> Table:
    """Read ``.csv``, ``.csv.gz`` or ``.parquet`` with an ``arch_str`` (or ``arch``) column.

    Raises:
        InputError: No such file or column, a column twice, texts that are not in UTF-8, or the file
            is damaged.
    """
    path = Path(path)
    table = _read(path)
    twice = [name for name, count in Counter(table.column_names).items() if count > 1]
    if twice:
        raise InputError(f"{path}: expected each column once, found {twice[0]} more than once")
    column = next((c for c in ARCHITECTURE_COLUMNS if c in table.column_names), None)
    if column is None:
        raise InputError(
            f"{path}: expected a column arch_str, found {', '.join(table.column_names) or 'none'}"
        )
    _check_no_bytes(path, table.select([column]))  # others of a parquet file may be of any type
    values = {
        name: table[name].to_numpy().astype(np.float64)
        for name in table.column_names
        if pa.types.is_integer(table[name].type) or pa.types.is_floating(table[name].type)
    }
    names = ["arch_str" if name == column else name for name in table.column_names]
    whole = table.rename_columns(names).replace_schema_metadata(table.schema.metadata)
    return Table(path, tuple(str(arch) for arch in table[column].to_pylist()), values, whole)


def _read(path: Path) -> pa.Table:
    if not path.is_file():
        raise InputError(f"table: found no file {path}")
    if not path.name.endswith((".csv", ".csv.gz", ".parquet")):
        raise InputError(f"table: expected .csv, .csv.gz or .parquet, got {path.name}")
    try:
        if path.suffix == ".parquet":
            table = read_parquet(path)
        else:
            packed = "gzip" if path.suffix == ".gz" else None
            table = csv.read_csv(pa.BufferReader(_in_arrow(path, packed)))
            _check_no_bytes(path, table)
        check_texts(table)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise InputError(f"{path}: {first}") from None
    return table


def read_parquet(path: Path) -> pa.Table:
    """Read a parquet file; of a column that stands in it twice, both.

    Raises:
        pyarrow.ArrowException: The file is damaged.
        OSError: It cannot be read.
    """
    return parquet.ParquetFile(pa.BufferReader(_in_arrow(path))).read()


def _in_arrow(path: Path, packed: str | None = None) -> pa.Buffer:
    """What a file holds, unpacked, in Arrow's own memory.

    Arrow does not take every name that the system does, so Python opens the file. But Arrow's
    threads must hold nothing of Python's: a thread that lets it go while the interpreter ends
    aborts the process.
    """
    with path.open("rb") as raw, pa.BufferOutputStream() as memory:
        memory.write(pa.input_stream(raw, compression=packed).read())
        return memory.getvalue()


def _check_no_bytes(path: Path, table: pa.Table) -> None:
    """Check that no column is one of bytes, as Arrow makes of texts in CSV that are not in UTF-8.

    Raises:
        InputError: One is.
    """
    for column in table.schema:
        if pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type):
            raise InputError(
                f"{path}: expected texts in UTF-8, found bytes in column {column.name}"
            )


def check_texts(table: pa.Table) -> None:
    """Check the names of columns and the texts in them, which Arrow does not do as it reads.

    Raises:
        UnicodeDecodeError: A name is not in UTF-8.
        pyarrow.ArrowInvalid: A text is not.
    """
    _ = table.column_names  # are decoded here
    table.validate(full=True)


def write_parquet(table: Table, path: Path) -> None:
    """Write a table as parquet, whole or not at all; also in the place of the file it came from.

    Raises:
        InputError: The file cannot be written.
    """
    write_whole_table(path, table.whole)
