"""What goes to standard error."""

from __future__ import annotations

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
