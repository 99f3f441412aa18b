"""FLOP formulas for torch's counter, handed over when it is imported: it imports Triton, slowly."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_COUNTER = "torch.utils.flop_counter"
_formulas: list[tuple[Any, Callable[..., int]]] = []


def add(op: Any, formula: Callable[..., int]) -> None:
    """Let `torch.utils.flop_counter` count ``op`` by ``formula``, now or when it is imported."""
    if _COUNTER in sys.modules:
        sys.modules[_COUNTER].register_flop_formula(op)(formula)
        return
    if not _formulas:
        sys.meta_path.insert(0, _HandOver())
    _formulas.append((op, formula))


class _HandOver(MetaPathFinder):
    """Finds the counter as the other finders do, and completes each import of it by our formulas.

    It stays, as to be found is not to be imported, and imports may fail or be interrupted.
    """

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The counter's specification; None for any other module."""
        if fullname != _COUNTER:
            return None
        others = [finder for finder in sys.meta_path if finder is not self]
        # Old finders have no such method, and none of them finds torch.
        finds = [finder.find_spec for finder in others if hasattr(finder, "find_spec")]
        found = (find_spec(fullname, path, target) for find_spec in finds)
        spec = next((spec for spec in found if spec is not None), None)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_and_add(module: ModuleType) -> None:
            execute(module)
            for op, formula in _formulas:
                module.register_flop_formula(op)(formula)

        spec.loader.exec_module = execute_and_add  # type: ignore[method-assign]
        return spec
