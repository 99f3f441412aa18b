"""Memory for the results of launches, and what all launches have in common."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from sigeo_ext.sample_moments import reference, tiles
from sigeo_ext.sample_moments.reference import M2, SQ_NORM, SUM
from sigeo_ext.sample_moments.triton.statistic_kernels import combine_kernel

# Products and sums in one instruction, whatever Triton's default. All the registers there are: the
# compiler would spill to have more programs on a multiprocessor.
OPTIONS = {"enable_fp_fusion": True, "maxnreg": 255}


def dtype_of(tensor: Tensor) -> Any:
    """What the kernel computes in."""
    return tl.float64 if tensor.dtype == torch.float64 else tl.float32


def empty(like: Tensor, sizes: Sequence[int], want: int) -> list[Tensor | None]:
    """Memory for each of the statistics over units, None for one that is not in ``want``."""
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    return [like.new_empty(sizes, dtype=dtype) if want >> bit & 1 else None for bit in range(5)]


def zeros(like: Tensor, shape: Sequence[int], units: int, segments: int, want: int) -> list[Tensor]:
    """The results where there is nothing to add up."""
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    return [
        like.new_zeros(units, dtype=torch.float64)
        if name == "sq_norm"
        else like.new_zeros(segments, *shape, dtype=dtype)
        for name in reference.wanted(want)
    ]


class Results:
    """Memory for one op's statistics, and for those of the parts of its segments.

    Attributes:
        programs: Of the launch that fills it.
        parts: Runs of units a segment.
        length: Units of a run, but the last.
    """

    def __init__(
        self, like: Tensor, shape: Sequence[int], blocks: int, units: int, segments: int, want: int
    ):
        self.units, self.segments, self.want = units // segments, segments, want
        self.size = math.prod(shape)
        least = tiles.shipped().programs
        self.parts, self.length = tiles.parts(blocks * segments, self.units, least)
        self.programs = blocks * segments * self.parts
        self.norms = None
        if want & SQ_NORM:
            self.norms = like.new_empty(blocks, units, dtype=torch.float64)
        self.final = empty(like, (segments, *shape), want)
        self._partial = None
        if self.parts > 1:
            sizes = (segments, self.parts, self.size)
            mean = empty(like, sizes, SUM if want & M2 else 0)[0]
            self._partial = (*empty(like, sizes, want), mean)

    @property
    def pointers(self) -> tuple[Tensor | None, ...]:
        """Where the launch writes."""
        return self._partial or (*self.final, None)

    def collect(self, factor: float) -> list[Tensor]:
        """The op's results once the launch has been made."""
        found: list[Tensor] = [result for result in self.final if result is not None]
        if self._partial is not None and found:
            block = tiles.shipped().rows
            combine_kernel[(-(-self.size // block) * self.segments,)](
                self._partial, (*self.final, None), self.size, self.units, self.length, self.parts,
                WANT=self.want, DTYPE=dtype_of(found[0]), BLOCK=block, **OPTIONS,
            )  # fmt: skip
        if self.norms is not None:
            found.append(self.norms.sum(0) * factor**2)
        return found
