"""The run store: nothing lost, nothing mixed up."""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import sqlite3

import pytest

from sigeo import InputError
from sigeo.store import Record, RunStore


def test_scores_come_back(tmp_path):
    record = Record(1.5, {"a": 0.25, "b": math.inf}, ("a note",), 0.125)
    with RunStore(tmp_path / "s.sqlite", {"seed": 0}) as store:
        assert store.get("n") == {}
        store.put("n", {"p": record, "q": Record(None)})
    with RunStore(tmp_path / "s.sqlite", {"seed": 0}) as store:
        assert store.get("n") == {
            "p": Record(1.5, {"a": 0.25, "b": None}, ("a note",), 0.125),
            "q": Record(None),
        }


def test_other_settings_are_another_run(tmp_path):
    with RunStore(tmp_path / "s.sqlite", {"seed": 0, "x": 1}) as store:
        store.put("n", {"p": Record(1.0)})
    with RunStore(tmp_path / "s.sqlite", {"seed": 1, "x": 1}) as store:
        assert store.get("n") == {}
    with RunStore(tmp_path / "s.sqlite", {"x": 1, "seed": 0}) as store:
        assert store.get("n")


def test_all_or_none(tmp_path):
    with RunStore(tmp_path / "s.sqlite", {}) as store:
        store.put("n", {"p": Record(1.0)})
        with pytest.raises(InputError, match="UNIQUE constraint failed"):
            store.put("n", {"q": Record(2.0), "p": Record(3.0)})
        assert set(store.get("n")) == {"p"}


def _write_and_die(path):
    store = RunStore(path, {})
    for i in range(50):
        store.put(str(i), {"p": Record(float(i))})
    os.kill(os.getpid(), signal.SIGKILL)


def test_what_was_put_survives_a_kill(tmp_path):
    path = tmp_path / "s.sqlite"
    process = multiprocessing.get_context("spawn").Process(target=_write_and_die, args=(path,))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    with RunStore(path, {}) as store:
        assert all(store.get(str(i))["p"].value == i for i in range(50))


def test_files_that_are_no_store(tmp_path):
    path = tmp_path / "s.sqlite"
    RunStore(path, {}).close()
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 7")
    connection.close()
    with pytest.raises(InputError, match="expected version 1, got 7"):
        RunStore(path, {})
    path.write_bytes(b"not a database at all, but long enough to be looked at" * 20)
    with pytest.raises(InputError, match="file is not a database"):
        RunStore(path, {})
    other = tmp_path / "o.sqlite"
    connection = sqlite3.connect(other)
    connection.execute("CREATE TABLE t (x)")
    connection.close()
    with pytest.raises(InputError, match="a database of something else"):
        RunStore(other, {})
    with pytest.raises(InputError, match="unable to open database file"):
        RunStore(tmp_path / "nowhere" / "s.sqlite", {})


def test_a_full_disk_is_one_clear_line(tmp_path):
    with RunStore(tmp_path / "s.sqlite", {}) as store:
        store.put("a", {"p": Record(1.0)})
        store._connection.execute("PRAGMA max_page_count = 1")
        with pytest.raises(InputError, match="database or disk is full"):
            for i in range(10_000):
                store.put(f"network {i}", {"p": Record(1.0, notes=("long" * 200,))})
        assert store.get("a")["p"].value == 1.0
