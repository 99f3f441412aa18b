"""Scores of one network on several checkpoints of its weights, as one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sigeo.store import Record


def mean_record(records: Sequence[Record]) -> Record:
    """Means of the values and of their terms, not finite where one of them is not.

    Args:
        records: Of the same proxy and network, one a checkpoint, at least one.
    """
    if len(records) == 1:
        return records[0]
    return Record(
        _mean([record.value for record in records]),
        {name: _mean([record.terms.get(name) for record in records]) for name in records[0].terms},
        tuple(dict.fromkeys(note for record in records for note in record.notes)),
        sum(record.seconds for record in records),
    )


def mean_records(found: Sequence[Mapping[str, Record]]) -> dict[str, Record]:
    """`mean_record` of each proxy."""
    return {name: mean_record([records[name] for records in found]) for name in found[0]}


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(values) else None
