"""Say what is installed and which implementation serves, and test the kernels on this machine."""

from __future__ import annotations

import argparse
import json
import math
import platform
from typing import Any

from sigeo.cli import console, options

HELP = "check the installation"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    options.add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Check; 1 if the kernels do not load, or one disagrees with its reference."""
    problem = _problem()
    document: dict[str, Any] = {"schema": 1, "problem": problem, "versions": _versions()}
    document |= _facts() if problem is None else {"self_test": []}
    if args.json:
        console.out(json.dumps(document, allow_nan=False))
    else:
        _show(document)
    ok = problem is None and all(test["ok"] for test in document["self_test"])
    return 0 if ok else 1


def _problem() -> str | None:
    """Why the kernels do not load; None if they do."""
    try:
        import sigeo_ext  # noqa: F401
    except Exception as error:  # a library of another build may fail in any way
        return console.said(error)
    return None


def versions(*packages: str) -> list[str | None]:
    """The versions of packages, None of those that are not installed; none is imported."""
    from importlib.metadata import PackageNotFoundError, version

    def found(name: str) -> str | None:
        try:
            return version(name)
        except PackageNotFoundError:
            return None

    return [found(name) for name in packages]


def _versions() -> dict[str, str | None]:
    names = ("torch", "numpy", "scipy", "pyarrow", "safetensors", "scikit-learn", "triton")
    own, *others = versions("sigeo-ext", *names)
    python = platform.python_version()
    return {"sigeo": own, "python": python, **dict(zip(names, others, strict=True))}


def _facts() -> dict[str, Any]:
    """What only loaded kernels can tell."""
    import torch

    import sigeo_ext

    gpu = torch.cuda.is_available()
    return {
        "build": _build(),
        "devices": ["cpu", *([torch.cuda.get_device_name()] if gpu else [])],
        "threads": {
            "intra_op": torch.get_num_threads(),
            "inter_op": torch.get_num_interop_threads(),
        },
        "implementations": sigeo_ext.implementations(),
        "self_test": [_self_test(device) for device in (["cpu", "cuda"] if gpu else ["cpu"])],
    }


def _build() -> dict[str, Any]:
    try:
        from sigeo_ext import _host
    except ImportError:
        return {"compiled": False}
    return {"compiled": True, **_host.build_info(), **_host.cpu_info()}


def _self_test(device: str) -> dict[str, Any]:
    import torch

    from sigeo_ext.testing import TOLERANCE

    try:
        worst = _largest_error(device)
    except Exception as error:  # a library of another build may fail in any way
        return {"device": device, "error": None, "ok": False, "problem": console.said(error)}
    ok = worst <= TOLERANCE[torch.float32]
    finite = worst if math.isfinite(worst) else None
    return {"device": device, "error": finite, "ok": ok, "problem": None}


def _largest_error(device: str) -> float:
    """The largest error ratio of the moments ops against their float64 reference."""
    import torch

    from sigeo_ext import moments
    from sigeo_ext.moments import reference
    from sigeo_ext.testing import error_ratio

    generator = torch.Generator().manual_seed(0)
    units = [
        [
            torch.randn(shape, generator=generator, device="cpu").to(device)
            for shape in ((64, 32, 3, 3), (70001,))
        ]
        for _ in range(4)
    ]
    weights = [g.clone() for g in units[0]]
    state = [[torch.empty_like(w) for w in weights] for _ in range(3)]
    judge = [[torch.empty_like(w).double() for w in weights] for _ in range(3)]
    for count, grads in enumerate(units):
        moments.update_(state[0], state[1], state[2], grads, count=count)
        reference.update_(judge[0], judge[1], judge[2], grads, count)
    errors = [
        error_ratio(a, b)
        for values, expected in zip(state, judge, strict=True)
        for a, b in zip(values, expected, strict=True)
    ]
    table = torch.stack(moments.rows_summary(units, weights=weights), 1)
    expected = reference.rows_summary([g for u in units for g in u], weights, 4, 0)
    errors.append(error_ratio(table, expected))
    return max(errors)


def _show(document: dict[str, Any]) -> None:
    facts = [[name, value or "not installed"] for name, value in document["versions"].items()]
    columns = [("what", False), ("found", False)]
    if document["problem"] is not None:
        console.show_table("sigeo", columns, [*facts, ["kernels", f"WRONG, {document['problem']}"]])
        return
    facts += [[name, str(value)] for name, value in document["build"].items()]
    facts += [["devices", ", ".join(document["devices"])]]
    facts += [["threads", str(document["threads"]["intra_op"])]]
    for test in document["self_test"]:
        verdict = "ok" if test["ok"] else "WRONG"
        error = "not finite" if test["error"] is None else f"{test['error']:.1e}"
        found = test["problem"] or f"error {error}"
        facts.append([f"self-test on {test['device']}", f"{verdict}, {found}"])
    console.show_table("sigeo", columns, facts)
    console.show_table(
        "implementations",
        [("op", False), ("cpu", False), ("cuda", False)],
        ([op, row["cpu"], row["cuda"]] for op, row in document["implementations"].items()),
    )
