"""Files that are written whole or not at all."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from sigeo import InputError, whole_files
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
    assert re.fullmatch(r"f\[1\]\.txt\.\d+\.partial", left.name)

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
    (half,) = set(tmp_path.iterdir()) - {file, *others}
    assert half.read_text() == "slow"
    os.write(end_wait, b"x")
    slow.join()
    assert slow.exitcode == 0 and file.read_text() == "slow"
    assert set(tmp_path.iterdir()) == {file, *others}


def test_two_that_write_at_once_put_whole_files_in_place(tmp_path):
    """Also where both have the same number, as in containers that share a folder."""
    file = tmp_path / "f.txt"
    begun, go_on = threading.Event(), threading.Event()

    def slow(partial):
        with partial.open("w") as text:
            text.write("sl")
            text.flush()
            begun.set()
            assert go_on.wait(60)
            text.write("ow")

    thread = threading.Thread(target=write_whole, args=(file, slow))
    thread.start()
    assert begun.wait(60)
    write_whole(file, lambda partial: partial.write_text("fast"))
    assert file.read_text() == "fast"
    go_on.set()
    thread.join()
    assert file.read_text() == "slow" and list(tmp_path.iterdir()) == [file]


def test_one_whose_file_was_taken_for_left_takes_another(tmp_path, monkeypatch):
    """Between the making and the lock of it, another process may come along."""
    held = whole_files._hold

    def come_along(file, *, wait):
        if wait and not seen:
            seen.append(Path(file.name))
            whole_files._remove_left(tmp_path / "f.txt")
        return held(file, wait=wait)

    seen: list[Path] = []
    monkeypatch.setattr(whole_files, "_hold", come_along)
    write_whole(tmp_path / "f.txt", lambda partial: seen.append(partial))
    assert seen[0] != seen[1] and list(tmp_path.iterdir()) == [tmp_path / "f.txt"]


@pytest.mark.parametrize("there", [True, False])
def test_a_link_is_followed_and_stays(there, tmp_path):
    target, link = tmp_path / "folder" / "f.txt", tmp_path / "link.txt"
    target.parent.mkdir()
    link.symlink_to("folder/f.txt")
    if there:
        target.write_text("old")
    write_whole(link, lambda partial: partial.write_text("new"))
    assert link.is_symlink() and target.read_text() == "new"
    assert set(tmp_path.rglob("*")) == {target.parent, target, link}


def test_standard_output_that_goes_to_a_file_is_that_file(tmp_path):
    link, file = tmp_path / "stdout", tmp_path / "f.txt"
    link.symlink_to("/proc/self/fd/1")  # as /dev/stdout is
    code = (
        "import sys; from pathlib import Path; from sigeo.whole_files import write_whole; "
        "write_whole(Path(sys.argv[1]), lambda partial: partial.write_text('text'))"
    )
    command = [sys.executable, "-c", code, str(link)]
    with file.open("w") as out:
        subprocess.run(command, stdout=out, check=True)
    assert file.read_text() == "text" and link.is_symlink()
    assert subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout == b"text"


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


NAMES = ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1", "links/one", "links/fd/1", "links/../one"]


@pytest.mark.parametrize("name", NAMES)
def test_a_log_that_standard_output_is_added_to_keeps_what_it_has(name, tmp_path, monkeypatch):
    log, links = tmp_path / "log", tmp_path / "links"
    log.write_text("old\n")
    links.mkdir()
    (links / "fd").symlink_to("/dev/fd")
    (links / "one").symlink_to("../one")
    (tmp_path / "one").symlink_to("/dev/stdout")
    monkeypatch.chdir(tmp_path)
    code = (
        "from pathlib import Path; from sigeo.whole_files import write_whole; print('said');"
        f"write_whole(Path({name!r}), lambda partial: partial.write_text('text')); print('.')"
    )
    with log.open("ab") as out:
        subprocess.run([sys.executable, "-c", code], stdout=out, check=True)
    assert log.read_text() == "old\nsaid\ntext.\n"
    assert set(tmp_path.iterdir()) == {log, links, tmp_path / "one"}
