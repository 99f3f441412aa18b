"""Plans as strict JSON: options by name, nothing that the tree itself does not say."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from sigeo.errors import InputError
from sigeo.fewshot.plan import Cut, Node, Plan, describe_root
from sigeo.kinds import named_arguments
from sigeo.scoring.export import strict_dumps
from sigeo.spaces import Kind, Product, SearchSpace
from sigeo.supernet.checkpoint import OtherSettings, difference
from sigeo.whole_files import write_whole_text

A = TypeVar("A")

FORMAT = "sigeo-plan-1"


@named_arguments("plan_document")
def plan_document(plan: Plan[Any], settings: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A plan as JSON can hold it.

    Args:
        plan: The plan.
        settings: How it was made, as JSON can hold it.

    Raises:
        InputError: The root is a region of kinds.
    """
    return {
        "format": FORMAT,
        "space": plan.space.describe(),
        "settings": dict(settings or {}),
        "root": describe_root(plan),
        "tree": _tree(plan.space, plan.root),
    }


@named_arguments("plan_of")
def plan_of(document: Any, space: SearchSpace[Any], *, where: str = "plan") -> Plan[Any]:
    """The plan of a document, for a space of the same name of any sizes.

    Args:
        document: As `plan_document` made it.
        space: The space.
        where: For messages.

    Raises:
        InputError: It is something else, of another space, or damaged.
    """
    found = document.get("format") if isinstance(document, dict) else type(document).__name__
    if found != FORMAT:
        raise InputError(f"{where}: expected format {FORMAT}, got {found}")
    _keys(document, {"format", "space", "settings", "root", "tree"}, where)
    described = document["space"]
    name = described.get("name") if isinstance(described, dict) else None
    if name != space.name:
        raise InputError(f"{where}: made for the space {name}, got {space.name}")
    root = document["root"]
    if not isinstance(root, list) or len(root) != len(space.choices):
        raise InputError(f"{where}: root must list the options of {len(space.choices)} choices")
    allowed = tuple(
        _options(options, choice.options, where)
        for options, choice in zip(root, space.choices, strict=True)
    )
    return Plan(_node(Product(space, allowed), document["tree"], where))


@named_arguments("save_plan")
def save_plan(path: str | Path, plan: Plan[Any], settings: Mapping[str, Any] | None = None) -> None:
    """Write a plan, whole or not at all; ``settings`` are those of `plan_document`.

    Raises:
        InputError: The file cannot be written.
    """
    text = strict_dumps(plan_document(plan, settings), indent=1) + "\n"
    write_whole_text(Path(path), text)


def is_plan(path: Path) -> bool:
    """Whether a file says that it is a plan."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError, OSError):
        return False
    return isinstance(document, dict) and document.get("format") == FORMAT


@named_arguments("load_plan")
def load_plan(path: str | Path, space: SearchSpace[Any]) -> tuple[Plan[Any], dict[str, Any]]:
    """Read a plan, and the settings it was made with.

    Raises:
        InputError: There is no such file, it is damaged, or of another space.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"plan: found no file {path}")
    try:
        document = json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_constant)
    except (ValueError, RecursionError, OSError) as error:
        raise InputError(f"plan {path}: damaged ({error})") from None
    plan = plan_of(document, space, where=f"plan {path}")
    settings = document["settings"]
    if not isinstance(settings, dict):
        raise InputError(f"plan {path}: settings must be an object")
    return plan, settings


def decided(checkpoint: Path, root: Product[A], settings: dict[str, Any]) -> Node[A] | None:
    """The cuts that were kept before a kill; None where there are none.

    Args:
        checkpoint: A plan file.
        root: The region that is divided.
        settings: What the cuts depend on, as JSON can hold it.

    Raises:
        InputError: The file is damaged.
        OtherSettings: They are of other settings.
    """
    if not checkpoint.exists():
        return None
    known, found = load_plan(checkpoint, root.space)
    if found != settings or known.root.region != root:
        differs = difference(found, settings) or "the region is another one"
        raise OtherSettings(
            f"plan {checkpoint}: made with other settings than this splitting ({differs}); "
            "choose another folder or remove it"
        )
    return known.root


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")


def _tree(space: SearchSpace[Any], node: Node[Any]) -> dict[str, Any]:
    cut = node.cut
    if cut is None:
        return {}
    if isinstance(cut.by, int):
        choice = space.choices[cut.by]
        by: dict[str, Any] = {
            "choice": choice.name,
            "groups": [[choice.options[option] for option in group] for group in cut.groups],
        }
    else:
        by = {"kind": cut.by, "groups": [list(group) for group in cut.groups]}
    children = [_tree(space, child) for child in node.children]
    return {**by, "score": cut.score, "children": children}


def _node(region: Product[Any] | Kind[Any], tree: Any, where: str) -> Node[Any]:
    if not isinstance(tree, dict):
        raise InputError(f"{where}: every node must be an object, got {tree!r}")
    if not tree:
        return Node(region)
    by = "kind" if "kind" in tree else "choice"
    _keys(tree, {by, "groups", "score", "children"}, where)
    groups, children, score = tree["groups"], tree["children"], tree["score"]
    lists = isinstance(groups, list) and isinstance(children, list)
    if not lists or len(groups) != len(children):
        raise InputError(f"{where}: expected one child a group of {tree[by]}")
    number = type(score) is int or (isinstance(score, float) and math.isfinite(score))
    if score is not None and not number:
        raise InputError(f"{where}: score must be a number or null, got {score!r}")
    cut = _cut(region.space, by, tree[by], groups, score, where)
    return Node.divided(region, cut, lambda part, place: _node(part, children[place], where))


def _cut(
    space: SearchSpace[Any], by: str, name: Any, groups: list[Any], score: Any, where: str
) -> Cut:
    if by == "kind":
        whole = all(
            isinstance(group, list) and all(type(kind) is int for kind in group) for group in groups
        )
        if not isinstance(name, str) or not whole:
            raise InputError(f"{where}: groups of {name} must be lists of whole numbers")
        return Cut(name, tuple(map(tuple, groups)), score)
    names = [choice.name for choice in space.choices]
    if name not in names:
        raise InputError(f"{where}: choice must be one of {', '.join(names)}, got {name!r}")
    place = names.index(name)
    options = space.choices[place].options
    return Cut(place, tuple(_options(group, options, where) for group in groups), score)


def _options(names: Any, options: tuple[str, ...], where: str) -> tuple[int, ...]:
    if not isinstance(names, list) or any(name not in options for name in names):
        raise InputError(f"{where}: options must be some of {', '.join(options)}, got {names!r}")
    return tuple(options.index(name) for name in names)


def _keys(document: dict[str, Any], expected: set[str], where: str) -> None:
    if set(document) != expected:
        raise InputError(
            f"{where}: expected the keys {', '.join(sorted(expected))}, "
            f"got {', '.join(sorted(map(str, document))) or 'none'}"
        )
