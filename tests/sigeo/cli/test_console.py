"""What goes to standard error and output."""

from __future__ import annotations

import contextlib
import io
import os
import pty
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from rich.cells import cell_len
from rich.console import Console

from sigeo.cli import console
from tests.sigeo.cli.helpers import SMALL

STREAMS = ("stdout", "stderr")


def test_where_there_is_no_terminal_progress_is_a_line_now_and_then(monkeypatch, capsys):
    now = 0.0
    monkeypatch.setattr(console.time, "monotonic", lambda: now)
    with console.progress("training") as report:
        for step in range(1, 101):
            now += 1.0
            report(1000 * step, 100_000)
    assert capsys.readouterr().err.splitlines() == [
        f"training: {seconds},000 of 100,000" for seconds in (30, 60, 90)
    ]


def test_only_slow_work_is_said(monkeypatch):
    said = threading.Event()
    monkeypatch.setattr(console, "say", lambda line: said.set() if line == "reading" else None)
    with console.said_if_slow("reading"):
        assert not said.is_set()
    for timer in threading.enumerate():
        if isinstance(timer, threading.Timer):
            timer.join()  # at once: it was stopped
    assert not said.is_set()
    monkeypatch.setattr(console, "_SECONDS_OF_SILENCE", 0.0)
    with console.said_if_slow("reading"):
        assert said.wait(60)


@pytest.mark.parametrize("columns", [80, 20])
def test_a_table_that_is_too_wide_is_shown_in_parts_without_folding_numbers(columns, monkeypatch):
    shown = []

    class Terminal(Console):
        def __init__(self, **options):
            shown.append(io.StringIO())
            plain = {"force_terminal": True, "color_system": None}
            super().__init__(file=shown[-1], width=columns, **plain, **options)

    monkeypatch.setattr(console, "_Console", Terminal)
    headings = [f"proxy_{letter}" for letter in "abcdefghijkl"]
    numbers = {heading: f"{10**6 + place}" for place, heading in enumerate(headings)}
    long = "|nor_conv_3x3~0|" * 6
    console.show_table(
        "ranking",
        [("#", True), *((heading, True) for heading in headings), ("architecture", False)],
        [["7", *numbers.values(), long], ["8", *numbers.values(), "short"]],
    )
    lines = [line for one in shown for line in one.getvalue().splitlines()]
    assert max(map(cell_len, lines)) <= columns
    assert lines[0].strip().endswith("ranking") and any("continued" in line for line in lines)
    cells = [line[1:-1].replace("┃", "│").split("│") for line in lines if line[0] in "┃│"]
    words = [text.strip() for row in cells for text in row]
    for heading, number in numbers.items():
        assert words.count(heading) == 1 and words.count(number) == 2
    assert words.count("#") == words.count("7") == words.count("8") > 1
    others = {"", "7", "8", *numbers.values()}
    last = [text for text in words[words.index("architecture") + 1 :] if text not in others]
    assert "".join(last) == long + "short"


def test_what_is_said_beside_a_running_bar_has_a_line_of_its_own():
    code = """
import time
from sigeo.cli import console
with console.progress("warming up") as report:
    time.sleep(0.3)  # a thread draws the bar
    console.announced("warm-up: 3 steps", report)(1, 3)
"""
    terminal, end = pty.openpty()
    given = {**os.environ, "TERM": "xterm"}
    with subprocess.Popen([sys.executable, "-c", code], stderr=end, env=given) as process:
        os.close(end)
        written = b""
        with contextlib.suppress(OSError):  # which is how a terminal ends
            while part := os.read(terminal, 4096):
                written += part
    os.close(terminal)
    assert process.returncode == 0
    shown = re.sub(r"\x1b\[[?\d;]*[a-zA-Z]", "", written.decode())
    lines = re.split(r"[\r\n]+", shown)
    assert lines.count("warm-up: 3 steps") == 1, lines
    assert lines[lines.index("warm-up: 3 steps") - 1].startswith("warming up")


@pytest.mark.parametrize(
    ("closed", "how", "given"),
    [
        (STREAMS[:1], ["--json"], {}),
        (STREAMS[:1], [], {}),
        (STREAMS, [], {}),
        (STREAMS, [], {"FORCE_COLOR": "1"}),  # draws bars
    ],
)
def test_streams_that_are_closed_early_cost_no_files(closed, how, given):
    """As ``| head -1`` and ``2>&1 | head -1`` close them."""
    reading, writing = os.pipe()
    os.close(reading)
    arguments = [*SMALL, "--archs", "3", "--proxy", "params", "--out", "r", *how]
    streams = {name: writing if name in closed else subprocess.PIPE for name in STREAMS}
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    done = _run("rank", *arguments, env={**kept, **given}, **streams)
    os.close(writing)
    assert done.returncode == 0 and "Broken pipe" not in (done.stderr or ""), done.stderr
    assert Path("r/scores.parquet").is_file() and Path("r/report.html").is_file()


@pytest.mark.parametrize(
    "given",
    [
        ("report", "no-such-folder"),  # the parser's
        ("score", "--model", "nowhere:make", "--data", "digits"),  # the verb's
    ],
)
def test_an_error_that_nobody_reads_ends_a_verb_as_others_do(given):
    reading, writing = os.pipe()
    os.close(reading)
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    assert _run(*given, stderr=writing, env=kept).returncode == 2
    os.close(writing)


def _run(*arguments, **given):
    command = [sys.executable, "-m", "sigeo", *arguments]
    return subprocess.run(command, text=True, check=False, **given)
