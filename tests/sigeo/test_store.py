"""The run store: nothing lost, nothing mixed up."""

from __future__ import annotations

import functools
import math
import multiprocessing
import os
import signal
import sqlite3
from pathlib import Path

import numpy as np
import pytest
import torch

from sigeo import InputError
from sigeo.store import Record, RunStore, runs
from sigeo.supernet import TrainingState, save_checkpoint


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
        with pytest.raises(InputError, match="NOT NULL constraint failed: scores.seconds"):
            store.put("n", {"q": Record(2.0), "r": Record(3.0, seconds=None)})
        assert set(store.get("n")) == {"p"}


def test_the_first_score_is_kept(tmp_path):
    path = tmp_path / "s.sqlite"
    with RunStore(path, {}) as first, RunStore(path, {}) as second:
        first.put("n", {"p": Record(1.0)})
        second.put("n", {"p": Record(2.0), "q": Record(3.0)})
        for store in (first, second):
            assert {name: r.value for name, r in store.get("n").items()} == {"p": 1.0, "q": 3.0}


def _open_and_write(path, barrier):
    for round_ in range(10):
        barrier.wait()
        with RunStore(path.with_name(f"{round_}.sqlite"), {}) as store:
            for i in range(20):
                store.put(str(i), {"p": Record(float(i))})


def test_two_equal_commands_at_the_same_time(tmp_path):
    context = multiprocessing.get_context("spawn")
    path, barrier = tmp_path / "s.sqlite", context.Barrier(3, timeout=60)
    given = {"target": _open_and_write, "args": (path, barrier)}
    processes = [context.Process(**given) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    with RunStore(tmp_path / "9.sqlite", {}) as store:
        assert all(store.get(str(i))["p"].value == i for i in range(20))


def test_two_writers_of_one_checkpoint_do_not_meet(tmp_path, monkeypatch):
    path = tmp_path / "c.safetensors"
    replaced = []

    def replace(partial, to):
        replaced.append((partial, to, partial.exists()))

    monkeypatch.setattr(Path, "replace", replace)
    for process in (1, 2):
        monkeypatch.setattr(os, "getpid", lambda process=process: process)
        save_checkpoint(path, TrainingState(1, {"w": torch.ones(1)}, {}), {})
    (first, to, there), (second, _, there_too) = replaced
    assert there and there_too and first != second and to == path


def test_a_checkpoint_that_cannot_be_written_leaves_nothing(tmp_path, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match="checkpoint .*: No space left on device"):
        save_checkpoint(tmp_path / "c", TrainingState(1, {"w": torch.ones(1)}, {}), {})
    assert list(tmp_path.iterdir()) == []


class Refusing(sqlite3.Connection):
    """Refuses to switch to write-ahead mode, as SQLite does while another switches."""

    refusals = 2

    def execute(self, statement, *arguments):
        if "journal_mode" in statement and Refusing.refusals:
            Refusing.refusals -= 1
            raise sqlite3.OperationalError("database is locked")
        return super().execute(statement, *arguments)


def test_opening_waits_for_another_that_opens_the_file(tmp_path, monkeypatch):
    connect = functools.partial(sqlite3.connect, factory=Refusing)
    monkeypatch.setattr(sqlite3, "connect", connect)
    with RunStore(tmp_path / "s.sqlite", {}) as store:
        assert Refusing.refusals == 0 and store.get("n") == {}


def test_waiting_for_another_that_opens_the_file_ends(tmp_path, monkeypatch):
    path = tmp_path / "s.sqlite"
    sqlite3.connect(path).execute("CREATE TABLE t (x)")  # not in write-ahead mode yet
    blocker = sqlite3.connect(path, isolation_level=None)
    blocker.execute("BEGIN EXCLUSIVE")
    monkeypatch.setattr(runs, "_TIMEOUT", 0.05)
    with pytest.raises(InputError, match="database is locked"):
        RunStore(path, {})
    blocker.close()


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


@pytest.mark.parametrize("which", ["version", "network"])
def test_a_failure_leaves_no_lock(which, tmp_path):
    """Notebooks keep the last exception, and with it all that its frames hold."""
    path = tmp_path / "s.sqlite"
    store = RunStore(path, {})
    if which == "version":
        store._connection.execute("PRAGMA user_version = 7")
        with pytest.raises(InputError, match="expected version 1, got 7") as caught:
            RunStore(path, {})
    else:
        with pytest.raises(UnicodeEncodeError) as caught:
            store.put("\ud800", {"p": Record(1.0)})
        store.put("n", {"p": Record(1.0)})
    other = sqlite3.connect(path, timeout=0, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    other.close()
    assert caught.tb is not None


@pytest.mark.parametrize(
    "damage",
    [
        "terms = 'x'",
        "terms = x'88'",
        "terms = '7'",
        "notes = 'null'",
        "value = 'x'",
        "seconds = 'x'",
    ],
)
def test_damaged_scores_are_one_clear_line(damage, tmp_path):
    with RunStore(tmp_path / "s.sqlite", {}) as store:
        store.put("n", {"p": Record(1.0)})
        sqlite3.connect(store.path, isolation_level=None).execute(f"UPDATE scores SET {damage}")
        with pytest.raises(InputError, match=r"store .*s\.sqlite: damaged scores \(.+\)$"):
            store.get("n")


def test_a_damaged_schema_is_one_clear_line(tmp_path):
    """SQLite's message repeats it, and Python takes it for UTF-8."""
    path = tmp_path / "s.sqlite"
    RunStore(path, {}).close()
    content = path.read_bytes()
    path.write_bytes(content.replace(b"CREATE TABLE scores", b"CREATE TABLE \xff cores"))
    with pytest.raises(InputError, match=r"store .*s\.sqlite: .+") as caught:
        RunStore(path, {})
    assert "\n" not in str(caught.value)


def test_a_folder_whose_name_looks_like_an_address(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("file:run").mkdir()
    with RunStore(Path("file:run/s.sqlite"), {}) as store:
        store.put("n", {"p": Record(1.0)})
    assert Path("file:run/s.sqlite").is_file()


def test_numbers_of_numpy_and_paths_as_texts(tmp_path):
    with RunStore(str(tmp_path / "s.sqlite"), {}) as store:
        terms = {"a": np.float32(0.5), "b": np.int64(2), "c": np.float32(np.inf)}
        store.put("n", {"p": Record(np.float32(1.5), terms, seconds=np.float32(0.25))})
        plain = {"a": 0.5, "b": 2.0, "c": None}
        assert store.get("n") == {"p": Record(1.5, plain, seconds=0.25)}
