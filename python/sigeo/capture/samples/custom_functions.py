"""Custom autograd functions: torch calls them without telling anybody, so the graph is asked."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor
from torch.autograd.function import BackwardCFunction

from sigeo.capture.samples.axis import leaf_behind
from sigeo.capture.samples.calls import Layer


class CustomFunctions:
    """The uses of leaves by custom functions, each found once in a growing graph."""

    def __init__(self) -> None:
        """Nothing has been looked at."""
        self._seen: set[Any] = set()

    def uses(self, outputs: Iterable[Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Which functions behind these tensors take which leaves, where that was not said before.

        A view of a leaf, a transposed weight say, counts as the leaf.

        Yields:
            The function's name and the leaf.
        """
        waiting: list[Any] = [tensor.grad_fn for tensor in outputs]
        while waiting:
            node = waiting.pop()
            if node is None or node in self._seen:
                continue
            self._seen.add(node)
            sources = [source for source, _ in node.next_functions]
            waiting += sources
            kind: Any = type(node)
            if _is_custom(kind):
                name = node.name().removesuffix("Backward")
                yield from ((name, leaf) for leaf in map(leaf_behind, sources) if leaf is not None)

    def forget(self) -> None:
        """Let go of the graph."""
        self._seen.clear()


@functools.lru_cache(1024)
def _is_custom(kind: Any) -> bool:
    if issubclass(kind, BackwardCFunction):
        return getattr(kind, "_forward_cls", None) is not Layer
    name: str = kind.__name__
    return name == "CppFunction"  # of C++; torch's own have types of their own
