"""Scores in one SQLite file that survives a kill at any moment.

Each score is one transaction in write-ahead mode. A run is known by the hash of all that its scores
depend on, so the same command finds its own scores again, and another command does not.
"""

from __future__ import annotations

import hashlib
import json
import math
import sqlite3
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sigeo.errors import InputError
from sigeo.kinds import named_arguments

_VERSION = 1
_TIMEOUT = 30.0  # seconds to wait for other processes
_SCHEMA = """
CREATE TABLE runs (
    id INTEGER PRIMARY KEY,
    fingerprint TEXT NOT NULL UNIQUE,
    settings TEXT NOT NULL
);
CREATE TABLE scores (
    run INTEGER NOT NULL REFERENCES runs (id),
    network TEXT NOT NULL,
    proxy TEXT NOT NULL,
    value REAL,
    terms TEXT NOT NULL,
    notes TEXT NOT NULL,
    seconds REAL NOT NULL,
    PRIMARY KEY (run, network, proxy)
) WITHOUT ROWID;
"""


@dataclass(frozen=True)
class Record:
    """One proxy's score of one network.

    Attributes:
        value: None if not finite.
        terms: Parts of the value; None where not finite.
        notes: For the reader.
        seconds: What the network's scores cost together.
    """

    value: float | None
    terms: Mapping[str, float | None] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    seconds: float = 0.0


class RunStore:
    """The scores of one run."""

    @named_arguments("store")
    def __init__(self, path: str | Path, settings: Mapping[str, Any]):
        """Open the file, made if it is not there, at the run of these settings.

        Args:
            path: Of the SQLite file; its folder must exist.
            settings: All that a score depends on beside network and proxy, as JSON can hold it.

        Raises:
            InputError: The file is no store, is of another version, or cannot be written.
        """
        self.path = Path(path)
        text = json.dumps(settings, sort_keys=True)
        fingerprint = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
        try:
            place = self.path.absolute()  # where names may be URIs, "file:run/s" would be one
            self._connection = sqlite3.connect(place, timeout=_TIMEOUT, isolation_level=None)
            try:
                self._prepare()
                self._run = self._enter(fingerprint, text)
            except BaseException:
                self._connection.close()  # else locked for as long as somebody keeps the exception
                raise
        except (sqlite3.Error, UnicodeDecodeError) as error:  # damaged bytes may be in its messages
            raise InputError(f"store {path}: {error}") from None

    def _prepare(self) -> None:
        connection = self._connection
        self._write_ahead()
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("BEGIN IMMEDIATE")
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if version == 0:
            if connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                raise InputError(f"store {self.path}: the file is a database of something else")
            for statement in _SCHEMA.split(";\n"):
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {_VERSION}")
        elif version != _VERSION:
            raise InputError(
                f"store {self.path}: expected version {_VERSION}, got {version}; "
                "choose another --out, or use the release that wrote it"
            )
        connection.execute("COMMIT")

    def _write_ahead(self) -> None:
        """Switch to write-ahead mode; SQLite itself does not wait for others that do the same.

        Raises:
            sqlite3.OperationalError: Others kept the file for too long, or it cannot be written.
        """
        deadline = time.monotonic() + _TIMEOUT
        while True:
            try:
                self._connection.execute("PRAGMA journal_mode = WAL")
                return
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > deadline:
                    raise
            time.sleep(0.01)

    def _enter(self, fingerprint: str, settings: str) -> int:
        self._connection.execute(
            "INSERT OR IGNORE INTO runs (fingerprint, settings) VALUES (?, ?)",
            (fingerprint, settings),
        )
        row = self._connection.execute(
            "SELECT id FROM runs WHERE fingerprint = ?", (fingerprint,)
        ).fetchone()
        if row is None or not isinstance(row[0], int):
            raise InputError(f"store {self.path}: damaged runs")
        return row[0]

    def get(self, network: str) -> dict[str, Record]:
        """The scores of a network by proxy; empty if there are none.

        Raises:
            InputError: The file cannot be read, or is damaged.
        """
        try:
            rows = self._connection.execute(
                "SELECT proxy, value, terms, notes, seconds FROM scores "
                "WHERE run = ? AND network = ?",
                (self._run, network),
            )
            return {
                proxy: Record(
                    None if value is None else float(value),
                    dict(json.loads(terms)),
                    tuple(json.loads(notes)),
                    float(seconds),
                )
                for proxy, value, terms, notes, seconds in rows
            }
        except sqlite3.Error as error:
            raise InputError(f"store {self.path}: {error}") from None
        except (ValueError, TypeError) as error:
            raise InputError(f"store {self.path}: damaged scores ({error})") from None

    def put(self, network: str, records: Mapping[str, Record]) -> None:
        """Keep the scores of a network, all or none; a score that is there already stays.

        Raises:
            InputError: The file cannot be written, because the disk is full, say.
        """
        rows: Iterable[tuple[Any, ...]] = [
            (
                self._run,
                network,
                proxy,
                _plain(record.value),
                json.dumps({name: _plain(term) for name, term in record.terms.items()}),
                json.dumps(list(record.notes)),
                _plain(record.seconds),
            )
            for proxy, record in records.items()
        ]
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            # Another process of the same run may have been faster; its score is as good.
            self._connection.executemany(
                "INSERT INTO scores VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING", rows
            )
            self._connection.execute("COMMIT")
        except BaseException as error:  # Ctrl-C, say, after which a notebook goes on
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            if isinstance(error, sqlite3.Error):
                raise InputError(f"store {self.path}: {error}") from None
            raise

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def __enter__(self) -> RunStore:
        """The store itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the file."""
        self.close()


def _plain(number: float | None) -> float | None:
    """A number, of NumPy say, as Python's own; None if it is not finite."""
    return float(number) if number is not None and math.isfinite(number) else None
