"""What goes to standard error."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import subprocess
import sys
import threading

from sigeo.cli import console


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
