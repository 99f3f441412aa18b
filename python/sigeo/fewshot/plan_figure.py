"""A plan as a tree in a terminal, and as a figure."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.text import Text
from rich.tree import Tree

from sigeo.drawing import styled
from sigeo.errors import InputError
from sigeo.fewshot.plan import Node, Plan, size_of
from sigeo.kinds import named_arguments
from sigeo.whole_files import write_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_STYLE = {"svg.fonttype": "none", "svg.hashsalt": "sigeo", "font.size": 8}
_COLOUR = "#1f6f8b"


@named_arguments("plan_tree")
def plan_tree(plan: Plan[Any]) -> Tree:
    """The tree for rich to print: cuts, groups, leaves with their numbers and sizes."""
    tree = Tree(Text(_title(plan.root)), highlight=False)
    _grow(tree, plan.root, 0)
    return tree


@named_arguments("draw_plan")
def draw_plan(plan: Plan[Any], path: str | Path) -> None:
    """Draw the tree, the root on the left; the same plan gives the same bytes.

    Args:
        plan: The plan.
        path: Of a ``.svg`` or ``.png`` file.

    Raises:
        InputError: Another kind of file, or one that cannot be written.
    """
    path = Path(path)
    kind = path.suffix.removeprefix(".")
    if kind not in ("svg", "png"):
        raise InputError(f"plan: expected a .svg or .png file to draw to, got {path.name}")
    from matplotlib.figure import Figure  # slow to import, and only needed here

    with styled(_STYLE):
        depth = _depth(plan.root)
        size = (3.2 * (depth + 1), 0.62 * max(2, plan.root.leaf_count) + 0.3)
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.add_subplot()
        axes.set_axis_off()
        _place(axes, plan.root, 0, 0, _title(plan.root))
        axes.set_xlim(-0.05, depth + 1)
        axes.set_ylim(plan.root.leaf_count - 0.5, -0.5)
        metadata = {"Date": None} if kind == "svg" else {"Software": None}
        write_whole(
            path, lambda partial: figure.savefig(partial, format=kind, dpi=150, metadata=metadata)
        )


def _title(node: Node[Any]) -> str:
    return f"{node.region.space.name}: {size_text(node)} architectures"


def size_text(node: Node[Any]) -> str:
    """The number of architectures, where it is known."""
    size = size_of(node.region)
    return "not counted" if size is None else f"{size:,}"


def cut_text(node: Node[Any]) -> str:
    """What a node is cut by, and the rule's score."""
    cut = node.cut
    if cut is None:
        return ""
    by = node.region.space.choices[cut.by].name if isinstance(cut.by, int) else cut.by
    return by if cut.score is None else f"{by} ({cut.score:.4g})"


def group_text(node: Node[Any], place: int) -> str:
    """The options or kinds of one group."""
    cut = node.cut
    if cut is None:
        return ""
    if isinstance(cut.by, int):
        options = node.region.space.choices[cut.by].options
        return ", ".join(options[option] for option in cut.groups[place])
    return ", ".join(map(str, cut.groups[place]))


def _grow(tree: Tree, node: Node[Any], first: int) -> None:
    for place, child in enumerate(node.children):
        text = f"{cut_text(node)}: {group_text(node, place)}"
        if child.cut is None:
            text += f"  [{first}] {size_text(child)}"
        _grow(tree.add(Text(text)), child, first)
        first += child.leaf_count


def _depth(node: Node[Any]) -> int:
    return max((1 + _depth(child) for child in node.children), default=0)


def _place(axes: Axes, node: Node[Any], depth: int, first: int, text: str) -> float:
    """Draw a node and all below it; returns its height in the figure."""
    heights = []
    below = first
    for place, child in enumerate(node.children):
        label = f"{cut_text(node)}\n{group_text(node, place)}"
        if child.cut is None:
            label += f"\n[{below}] {size_text(child)}"
        heights.append(_place(axes, child, depth + 1, below, label))
        below += child.leaf_count
    height = sum(heights) / len(heights) if heights else float(first)
    for other in heights:
        axes.plot([depth + 0.02, depth + 0.98], [height, other], color=_COLOUR, linewidth=0.8)
    axes.text(
        depth,
        height,
        text,
        va="center",
        bbox={"boxstyle": "round,pad=0.25", "facecolor": "white", "edgecolor": _COLOUR},
    )
    return height
