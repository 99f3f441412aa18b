"""Files that are written whole or not at all."""

from __future__ import annotations

import multiprocessing
import os
import signal
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from sigeo import InputError
from sigeo.whole_files import write_whole, write_whole_table


def test_a_file_is_replaced_whole(tmp_path):
    file = tmp_path / "f.txt"
    for text in ("one", "other"):
        write_whole(file, lambda partial: partial.write_text(text))  # noqa: B023
        assert file.read_text() == text and list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (OSError(28, "No space left on device"), InputError),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ],
)
def test_what_is_stopped_leaves_the_old_file_and_no_half_of_a_new_one(error, raised, tmp_path):
    file = tmp_path / "f.txt"
    file.write_text("old")

    def write(partial):
        partial.write_text("ne")
        raise error

    with pytest.raises(raised) as caught:
        write_whole(file, write)
    assert file.read_text() == "old" and list(tmp_path.iterdir()) == [file]
    if raised is InputError:
        assert str(caught.value) == f"{file}: No space left on device"


def test_what_a_killed_process_left_is_removed_and_nothing_else(tmp_path):
    """A lock tells a process that is there from one that is not, on another machine too."""
    file = tmp_path / "f[1].txt"
    others = [tmp_path / name for name in ("f1.txt.7.partial", "f[1].txt.old.partial")]
    others.append(tmp_path / "f[1].txt.parquet.7.partial")
    for other in others:
        other.write_text("another's")

    def die(partial):
        partial.write_text("half")
        os.kill(os.getpid(), signal.SIGKILL)

    context = multiprocessing.get_context("fork")
    killed = context.Process(target=write_whole, args=(file, die))
    killed.start()
    killed.join()
    (left,) = set(tmp_path.iterdir()) - set(others)
    assert left.name == f"f[1].txt.{killed.pid}.partial"

    reading, writing = os.pipe()

    def wait(partial):
        partial.write_text("slow")
        os.write(writing, b"x")
        os.read(end_of_wait, 1)

    end_of_wait, end_wait = os.pipe()
    slow = context.Process(target=write_whole, args=(file, wait))
    slow.start()
    os.read(reading, 1)
    assert not left.exists()
    write_whole(file, lambda partial: partial.write_text("fast"))
    assert file.read_text() == "fast"
    assert (tmp_path / f"f[1].txt.{slow.pid}.partial").read_text() == "slow"
    os.write(end_wait, b"x")
    slow.join()
    assert slow.exitcode == 0 and file.read_text() == "slow"
    assert set(tmp_path.iterdir()) == {file, *others}


def test_a_pipe_is_written_to_and_stays(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_whole(pipe, lambda path: path.write_text("text"))
    assert os.read(reader, 9) == b"text" and pipe.is_fifo()
    os.close(reader)


@pytest.mark.parametrize("name", [".", ""])
def test_a_folder_is_refused(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"^\.: Is a directory$"):
        write_whole(Path(name), lambda partial: partial.write_text("text"))


@pytest.mark.parametrize("name", ["s3:", "gs:run", "file:run", "run\udcff"])
def test_tables_are_written_where_names_look_like_places_on_the_network(
    name, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    Path(name).mkdir()
    write_whole_table(Path(name) / "t.parquet", pa.table({"x": [1]}))
    with (Path(name) / "t.parquet").open("rb") as file:
        assert parquet.read_table(file)["x"].to_pylist() == [1]
