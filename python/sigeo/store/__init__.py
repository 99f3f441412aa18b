"""Runs that can be killed at any moment and go on where they were."""

from sigeo.store.runs import Record, RunStore

__all__ = ["Record", "RunStore"]
