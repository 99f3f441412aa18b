"""Elastic depth: a sequence of which the first members run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from sigeo.elastic.base import Elastic, extract
from sigeo.kinds import is_of


class ElasticDepth(Elastic, nn.Sequential):
    """An `nn.Sequential` of which the first ``depth`` members run.

    Choice: ``depth``, from 0 to the number of members, each of which may be elastic itself.
    `extract` gives an `nn.Sequential` of the members that run, each extracted with its own current
    choice.
    """

    dimensions = ("depth",)
    maskable = False

    def _require(self, choice: Mapping[str, Any]) -> None:
        self._running(choice)

    def forward(self, input: Any, **choice: Any) -> Any:
        """What the members make of ``input``, one after another."""
        for member in self._running(self._current(choice)):
            input = member(input)
        return input

    def _running(self, choice: Mapping[str, Any]) -> list[nn.Module]:
        given = choice.get("depth")
        depth = len(self) if given is None else given
        if not is_of(depth, int):
            raise ValueError(f"ElasticDepth: depth must be a whole number, got {depth!r}")
        if not 0 <= depth <= len(self):
            raise ValueError(f"ElasticDepth: depth must be from 0 to {len(self)}, got {depth}")
        return list(self)[:depth]

    def _plain(self, choice: dict[str, Any]) -> nn.Module:
        members = self._running(choice)
        # Members that are one module stay one.
        extracted = {id(member): extract(member) for member in members}
        return nn.Sequential(*(extracted[id(member)] for member in members))
