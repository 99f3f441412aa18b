"""All partitions of a few options."""

from __future__ import annotations

from collections.abc import Iterator

from sigeo.errors import InputError
from sigeo.fewshot.partition.relation import Groups

LARGEST = 10
"""Options that are still enumerated; 10 in four groups are 34,105 partitions."""


def set_partitions(count: int, groups: int) -> Iterator[Groups]:
    """The partitions of 0 to ``count`` - 1 into a number of groups, none empty.

    Groups come in the order of their first options, options ascending.

    Yields:
        Each partition once, in the order of restricted growth strings.
    """
    yield from _grown((), count, groups)


def _grown(begun: Groups, left: int, groups: int) -> Iterator[Groups]:
    if left == 0:
        if len(begun) == groups:
            yield begun
        return
    if len(begun) + left < groups:
        return
    option = sum(map(len, begun))
    for place, group in enumerate(begun):
        yield from _grown((*begun[:place], (*group, option), *begun[place + 1 :]), left - 1, groups)
    if len(begun) < groups:
        yield from _grown((*begun, (option,)), left - 1, groups)


def check_groups(options: int, groups: int) -> None:
    """Check a number of groups.

    Raises:
        InputError: There are more of them than options, or none.
    """
    if not 1 <= groups <= options:
        raise InputError(
            f"partition: expected 1 to {options} groups of {options} options, got {groups}"
        )


def check_sizes(count: int, groups: int) -> None:
    """Check that the partitions can be enumerated.

    Args:
        count: Number of options.
        groups: Number of groups.

    Raises:
        InputError: More groups than options, or more options than are enumerated.
    """
    check_groups(count, groups)
    if count > LARGEST:
        raise InputError(
            f"partition: up to {LARGEST} options are enumerated, got {count}; "
            "use stoer_wagner or spectral"
        )


def sized_partitions(count: int, groups: int, smallest: int = 1) -> list[Groups]:
    """The partitions with a bound on the smallest group.

    Args:
        count: Number of options.
        groups: Number of groups.
        smallest: Options of every group, as far as there are enough of them.
    """
    check_sizes(count, groups)
    least = min(smallest, count // groups)
    return [p for p in set_partitions(count, groups) if min(map(len, p)) >= least]
