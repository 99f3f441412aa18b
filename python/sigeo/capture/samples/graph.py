"""Autograd's graph, asked where torch ran something without telling anybody.

So it does with custom autograd functions and with functions that `torch.jit` compiled.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from typing import Any, Literal

from torch import Tensor
from torch.autograd.function import BackwardCFunction

from sigeo.capture.samples.axis import leaf_behind
from sigeo.capture.samples.calls import Layer


class Graph:
    """The graph behind a model's outputs as it grows: each part of it is gone through once."""

    def __init__(self) -> None:
        """Nothing has been looked at."""
        self._seen: set[Any] = set()

    def leaves(self, outputs: Iterable[Tensor]) -> Iterator[tuple[str | None, Tensor]]:
        """The leaves behind these tensors, where that was not said before.

        Each comes for itself, and once more for every custom function that takes it; a view of a
        leaf, a transposed weight say, counts as the leaf.

        Yields:
            The custom function's name, or None, and the leaf.
        """
        waiting: list[Any] = [tensor.grad_fn for tensor in outputs]
        while waiting:
            node = waiting.pop()
            if node is None or node in self._seen:
                continue
            self._seen.add(node)
            type_of_node: Any = type(node)
            kind = _kind(type_of_node)
            if kind == "leaf":
                yield None, node.variable
                continue
            sources = [source for source, _ in node.next_functions]
            waiting += sources
            if kind == "custom":
                name = node.name().removesuffix("Backward")
                yield from ((name, leaf) for leaf in map(leaf_behind, sources) if leaf is not None)

    def forget(self) -> None:
        """Let go of the graph."""
        self._seen.clear()


@functools.lru_cache(1024)
def _kind(node: Any) -> Literal["leaf", "custom", "other"]:
    """What a type of nodes stands for."""
    name: str = node.__name__
    if name == "AccumulateGrad":
        return "leaf"
    if issubclass(node, BackwardCFunction):
        return "other" if getattr(node, "_forward_cls", None) is Layer else "custom"
    return "custom" if name == "CppFunction" else "other"  # of C++; torch's have types of their own
