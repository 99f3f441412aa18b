"""The rules by operation, and what they share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sigeo.capture.samples.axis import Axis, Lost, Where

Rule = Callable[[list[Where], tuple[Any, ...], dict[str, Any], Any], Where]
RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Make a function the rule of aten operations, by name without overload.

    It gets what is known of the tensors among the arguments (in order), the arguments, the keyword
    arguments and the first result, and says where the samples of the result are.
    """

    def enter(function: Rule) -> Rule:
        for name in names:
            RULES[name] = function
        return function

    return enter


def mixed(name: str) -> Lost:
    """The samples are lost to what is named."""
    return Lost(f"{name} mixes the samples")


def taken_out(name: str) -> Lost:
    """The samples are lost, as some were taken out of the batch by their places."""
    return Lost(f"{name} was taken out of the batch by its place")


def first(given: list[Where]) -> Axis:
    """The samples of the first tensor that has some."""
    return next(axis for axis in given if isinstance(axis, Axis))
