"""Autograd's graph, asked where torch ran something without telling anybody.

So it does with custom autograd functions and with functions that `torch.jit` compiled. A parameter
that a layer uses may have such a use as well: what takes it and is no layer of ours is a use.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from typing import Any, Literal

from torch import Tensor
from torch.autograd.function import BackwardCFunction

from sigeo.capture.samples.axis import leaf_behind
from sigeo.capture.samples.calls import Layer
from sigeo.capture.samples.mode import in_backward


class Graph:
    """The graph behind a model's outputs as it grows: each part of it is gone through once."""

    def __init__(self) -> None:
        """Nothing has been looked at."""
        self._seen: set[Any] = set()
        self._accounted: dict[Any, set[int]] = {}
        self._copies: set[Any] = set()

    def copied(self, tensor: Tensor) -> None:
        """Note that a tensor is a copy of a leaf: what takes it takes the leaf."""
        if not in_backward():
            self._copies.add(tensor.grad_fn)

    def account_for(
        self, outputs: Iterable[Tensor], inputs: Iterable[Tensor], leaves: Iterable[Tensor]
    ) -> None:
        """Note that between these tensors every use of some leaves is known."""
        known = {id(leaf) for leaf in leaves}
        seen = {tensor.grad_fn for tensor in inputs}
        waiting: list[Any] = [tensor.grad_fn for tensor in outputs]
        while waiting:
            node = waiting.pop()
            if node is None or node in seen:
                continue
            seen.add(node)
            self._accounted[node] = self._accounted.get(node, set()) | known
            waiting += [source for source, _ in node.next_functions]

    def leaves(self, outputs: Iterable[Tensor]) -> Iterator[tuple[str | None, Tensor]]:
        """The leaves behind these tensors, where that was not said before.

        Each comes for itself, and once more for every function that takes it, is no layer of ours
        and was not accounted for; so does that of a layer whose use a module was to stand for. A
        view of a leaf, a transposed weight say, counts as the leaf.

        Yields:
            The function's name, or None, and the leaf.
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
            if node in self._copies:
                continue
            known = self._accounted.get(node, ())
            for name, leaf in self._taken(node, kind, sources):
                if id(leaf) not in known:
                    yield name, leaf

    def _taken(self, node: Any, kind: str, sources: list[Any]) -> Iterator[tuple[str, Tensor]]:
        """The leaves that a node takes and no layer's use stands for.

        Yields:
            The node's name, and a leaf.
        """
        if kind == "custom":
            name = node.name().removesuffix("Backward")
            yield from ((name, leaf) for leaf in map(leaf_behind, sources) if leaf is not None)
        elif kind == "other":
            name = type(node).__name__
            yield from (
                (name, leaf) for leaf in map(self._viewed_leaf, sources) if leaf is not None
            )
        elif kind == "layer":
            uses = node.call.uses.values()
            yield from (("a layer", use.record.parameter) for use in uses if use.replaced)

    def _viewed_leaf(self, node: Any) -> Tensor | None:
        """The leaf that a node hands gradients to, as itself or as a view of it."""
        while node is not None:
            type_of_node: Any = type(node)
            kind = _kind(type_of_node)
            if kind == "leaf":
                return node.variable  # type: ignore[no-any-return]
            node = node.next_functions[0][0] if kind == "view" or node in self._copies else None
        return None

    def forget(self) -> None:
        """Let go of the graph."""
        self._seen.clear()
        self._accounted.clear()
        self._copies.clear()


# Only looks at a tensor in another shape: what takes the view takes the tensor.
_VIEWS = {
    "Alias", "AsStrided", "Diagonal", "Expand", "Permute", "ReshapeAlias", "Select", "Slice",
    "Split", "SplitWithSizes", "Squeeze", "T", "Transpose", "Unbind", "Unfold", "Unsqueeze", "View",
    "ViewAsComplex", "ViewAsReal",
}  # fmt: skip
_TABLES = {"Embedding", "EmbeddingBag"}  # their look-ups are seen, and measured by hooks


@functools.lru_cache(1024)
def _kind(node: Any) -> Literal["leaf", "layer", "table", "custom", "view", "other"]:
    """What a type of nodes stands for."""
    name: str = node.__name__
    if name == "AccumulateGrad":
        return "leaf"
    if issubclass(node, BackwardCFunction):
        return "layer" if getattr(node, "_forward_cls", None) is Layer else "custom"
    if name == "CppFunction":  # of C++; torch's have types of their own
        return "custom"
    function = name.rstrip("0123456789").removesuffix("Backward")
    if function in _TABLES:
        return "table"
    return "view" if function in _VIEWS else "other"
