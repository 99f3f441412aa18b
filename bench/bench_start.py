"""What it costs to begin: imports in fresh processes, and a build from scratch.

python bench/run.py --only start
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench import harness
from bench.harness import Times

ROOT = Path(__file__).resolve().parent.parent


def imports(rounds: int = 15) -> list[dict[str, Any]]:
    """Wall time of a process that imports, in turn; and what ours adds to torch's, inside one."""
    inside = (
        "import torch, time; begin = time.perf_counter(); import sigeo_ext;"
        "print(time.perf_counter() - begin)"
    )
    added = []
    for _ in range(rounds + 1):
        result = subprocess.run(
            [sys.executable, "-c", inside], capture_output=True, text=True, check=True
        )
        added.append(float(result.stdout))
    programs = {
        statement: lambda statement=statement: subprocess.run(
            [sys.executable, "-c", statement], check=True
        )
        for statement in ("import torch", "import torch, sigeo_ext", "import sigeo")
    }
    times = harness.in_turn(programs, rounds=rounds, clock=time.perf_counter)
    rows = [harness.row("import", name, measured, clock="wall") for name, measured in times.items()]
    rows.append(
        harness.row("import", "sigeo_ext after torch", Times(tuple(added[1:])), clock="wall")
    )
    return rows


def build(rounds: int = 3) -> list[dict[str, Any]]:
    """A CPU build of a clean copy."""
    seconds = []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder) / "copy"
            ignored = shutil.ignore_patterns("build", ".git", ".venv", "*.so", "runs", "*.egg-info")
            shutil.copytree(ROOT, copy, ignore=ignored)
            begin = time.perf_counter()
            subprocess.run(
                [sys.executable, "setup.py", "-q", "build_ext", "--inplace"],
                cwd=copy,
                check=True,
                stdout=subprocess.DEVNULL,
            )
            seconds.append(time.perf_counter() - begin)
    return [harness.row("build", "CPU kernels, from scratch", Times(tuple(seconds)), clock="wall")]


def rows() -> list[dict[str, Any]]:
    """Both."""
    return imports() + build()
