"""The statistics of a parameter, and their names."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from torch import Tensor

from sigeo_ext.sample_moments.reference import STATISTICS

_BITS = {name: 1 << place for place, name in enumerate(STATISTICS)}
# The statistics that each number of bits stands for, by their places. Looked up, where
# `functools.cache` makes torch.compile warn.
_PLACES = [
    tuple(place for place, bit in enumerate(_BITS.values()) if bits & bit)
    for bits in range(1 << len(STATISTICS))
]


class SampleMoments(NamedTuple):
    """Statistics over units; None where not asked for.

    All but ``sq_norm`` have the weight's shape, behind [segments] if segments were asked for.
    """

    sum: Tensor | None = None
    abs_sum: Tensor | None = None
    sq_sum: Tensor | None = None
    m2: Tensor | None = None
    sign_sum: Tensor | None = None
    sq_norm: Tensor | None = None
    """Sum of g_u^2 over the weight, [units]."""

    def __repr__(self) -> str:
        """The statistics that there are, by dtype and shape."""
        there = [
            f"{name}={'sparse ' if value.is_sparse else ''}"
            f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
            for name, value in self._asdict().items()
            if value is not None
        ]
        return f"SampleMoments({', '.join(there)})"


def bits_of(want: Iterable[str]) -> int:
    """The statistics as bits, in the order of `STATISTICS`.

    Raises:
        ValueError: An unknown statistic, none, or a text in the place of a list.
    """
    if isinstance(want, str):
        raise ValueError(f"want: expected a list of names, got the text {want!r}")
    bits = 0
    for name in want:
        if name not in _BITS:
            raise ValueError(f"want: must be of {', '.join(STATISTICS)}, got {name!r}")
        bits |= _BITS[name]
    if not bits:
        raise ValueError(f"want: must be some of {', '.join(STATISTICS)}, got none")
    return bits


def named(bits: int, results: Iterable[Tensor]) -> SampleMoments:
    """Results in the order of their bits, by name."""
    values: list[Tensor | None] = [None] * len(STATISTICS)
    for place, result in zip(_PLACES[bits], results, strict=True):
        values[place] = result
    return SampleMoments(*values)
