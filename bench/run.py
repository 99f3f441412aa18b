"""Runs the benchmarks: ``python bench/run.py [--only NAME] [--base REF] [--smoke | --gpu]``.

For each benchmark the tests that guard it run first; on red nothing is measured. Rows go to
bench/results/<machine>.jsonl, in the place of earlier rows of the same benchmark, and from there to
the pages by ``python -m bench.report``.
``--gpu`` measures what a benchmark has for a GPU and nothing else, without its tests, which
bench/gpu.sh runs before; rows are kept from part to part.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench.harness import HEAP_REUSED  # noqa: E402  (found through the path above)

if TYPE_CHECKING:
    from bench import registry

# Before anything allocates: see harness.HEAP_REUSED and the page on benchmarks.
ENVIRONMENT = {"OMP_WAIT_POLICY": "passive", **HEAP_REUSED}


def main() -> int:
    """Run the benchmarks that are asked for."""
    if any(os.environ.get(name) != value for name, value in ENVIRONMENT.items()):
        os.environ.update(ENVIRONMENT)
        os.execv(sys.executable, [sys.executable, *sys.argv])
    from bench import registry

    args = parser_of(registry.BENCHMARKS).parse_args()
    listed = [b for b in registry.BENCHMARKS if b.gpu is not None or not args.gpu]
    chosen = [b for b in listed if args.only in (None, b.name)]
    if not chosen:
        known = ", ".join(b.name for b in listed)
        print(f"--only: must be one of {known}, got {args.only!r}", file=sys.stderr)
        return 2
    if args.gpu:
        return on_gpu(chosen)
    for benchmark in chosen:
        if not args.smoke and not gate(benchmark.tests):
            print(f"{benchmark.name}: its tests fail, nothing is measured", file=sys.stderr)
            return 1
        rows = benchmark.smoke() if args.smoke else benchmark.rows()
        rows += timings(benchmark.module, smoke=args.smoke)
        if args.base is not None:
            rows += at_commit(args.base, benchmark.name)
        keep(benchmark.name, rows, args.smoke)
    return 0


def parser_of(benchmarks: Sequence[registry.Benchmark]) -> argparse.ArgumentParser:
    """The command line, whose help lists the benchmarks and what each measures."""
    names = [f"  {b.name:<16}{b.measures()}" for b in benchmarks]
    parser = argparse.ArgumentParser(
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=(__doc__ or "").partition("\n\n")[2],
        epilog="\n".join(["benchmarks:", *names]),
    )
    parser.add_argument("--only", metavar="NAME", help="one benchmark, not all of them")
    parser.add_argument("--base", metavar="REF", help="also measure this commit of the repository")
    part = parser.add_mutually_exclusive_group()
    part.add_argument("--smoke", action="store_true", help="one quick repetition, nothing kept")
    part.add_argument("--gpu", action="store_true", help="what runs on a GPU, without the tests")
    return parser


def on_gpu(chosen: list[registry.Benchmark]) -> int:
    """Measure what the benchmarks have for a GPU; each part is kept as soon as it is there."""
    import torch

    from bench import harness

    if not torch.cuda.is_available():
        print("--gpu: needs a GPU, torch finds none", file=sys.stderr)
        return 2
    for benchmark in chosen:
        assert benchmark.gpu is not None
        for part in benchmark.gpu():
            harness.show(part)
            path = harness.write(part, replace=benchmark.name, whole=False)
        print(path)
    return 0


def gate(tests: tuple[str, ...]) -> bool:
    """Whether the tests pass."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "not slow", *tests]
    return subprocess.run(command, cwd=ROOT).returncode == 0


def timings(module: str, *, smoke: bool) -> list[dict[str, Any]]:
    """The pytest-benchmark cases of a module as rows; none if it has none."""
    from bench.harness import Times, row

    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.json"
        quick = ["--benchmark-min-rounds=1", "--benchmark-max-time=0.01"] if smoke else []
        command = [sys.executable, "-m", "pytest", "-q", f"bench/{module}.py"]
        command += [f"--benchmark-json={out}", "--benchmark-disable-gc", *quick]
        code = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if code.returncode == 5:  # no cases
            return []
        if code.returncode != 0:
            sys.exit(code.stdout + code.stderr)
        content = json.loads(out.read_text())
    rows = []
    for case in content["benchmarks"]:
        info = case["extra_info"]
        times = Times(tuple(case["stats"]["data"]))
        entry = row(
            info["op"],
            info["impl"],
            times,
            shape=info["shape"],
            clock="wall",
            bytes_moved=info["bytes"],
        )
        rows.append({**entry, "threads": info["threads"]})
    return rows


def at_commit(ref: str, name: str) -> list[dict[str, Any]]:
    """The same benchmark of another commit, built and run in a worktree of its own."""
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        run: Callable[..., Any] = subprocess.run
        run(["git", "-C", str(ROOT), "worktree", "add", "-q", str(tree), ref], check=True)
        try:
            build = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
            run(build, cwd=tree, check=True, stdout=subprocess.DEVNULL)
            code = (
                "import json; from bench import registry\n"
                f"chosen = next(b for b in registry.BENCHMARKS if b.name == {name!r})\n"
                "print(json.dumps(chosen.rows()))"
            )
            path = os.pathsep.join([str(tree), str(tree / "python")])
            result = run(
                [sys.executable, "-c", code],
                cwd=tree,
                env={**os.environ, "PYTHONPATH": path},
                check=True,
                capture_output=True,
                text=True,
            )
        finally:
            run(["git", "-C", str(ROOT), "worktree", "remove", "--force", str(tree)], check=True)
    rows: list[dict[str, Any]] = json.loads(result.stdout.splitlines()[-1])
    return [{**entry, "impl": f"{entry['impl']} at {ref}"} for entry in rows]


def keep(name: str, rows: list[dict[str, Any]], smoke: bool) -> None:
    """Show the rows, and write them unless this is a smoke test."""
    from bench import harness

    harness.show(rows)
    if not smoke:
        print(harness.write(rows, replace=name))


if __name__ == "__main__":
    sys.exit(main())
