"""Killed at any moment, the same command goes on."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.sigeo.cli.helpers import strict


@pytest.mark.slow
@pytest.mark.parametrize("when", ["warming up", "scoring"])
def test_kill_and_run_again(when, tmp_path):
    """Nothing lost, nothing computed twice, the same result as an undisturbed run."""
    given = [
        sys.executable,
        "-m",
        "sigeo",
        "rank",
        "--channels",
        "4",
        "--cells",
        "1",
        "--archs",
        "30",
    ]
    given += ["--warmup", "1", "--epochs", "4", "--seed", "1", "--json", "--threads", "1"]
    undisturbed = subprocess.run([*given, "--out", "u"], capture_output=True, text=True, check=True)
    process = subprocess.Popen(
        [*given, "--out", "k"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    wanted = 1 if when == "warming up" else 5
    count = _checkpoints if when == "warming up" else _scores
    deadline = time.monotonic() + 120
    while count(Path("k")) < wanted and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert process.returncode == -signal.SIGKILL, "finished before it could be killed"
    kept = _times(Path("k"))
    if when == "scoring":
        assert len(kept) >= 5
    again = subprocess.run([*given, "--out", "k"], capture_output=True, text=True, check=True)
    strip = lambda text: [{**row, "seconds": 0} for row in strict(text)["rows"]]  # noqa: E731
    assert strip(again.stdout) == strip(undisturbed.stdout)
    after = _times(Path("k"))
    assert all(after[key] == seconds for key, seconds in kept.items()), "computed twice"


def _checkpoints(folder: Path) -> int:
    return len(list(folder.glob("supernet-*.safetensors")))


def _scores(folder: Path) -> int:
    return len(_times(folder))


def _times(folder: Path) -> dict[tuple[str, str], float]:
    import sqlite3

    if not (folder / "run.sqlite").exists():
        return {}
    connection = sqlite3.connect(folder / "run.sqlite", timeout=10)
    try:
        rows = connection.execute("SELECT network, proxy, seconds FROM scores").fetchall()
    except sqlite3.Error:
        return {}
    finally:
        connection.close()
    return {(network, proxy): seconds for network, proxy, seconds in rows}
