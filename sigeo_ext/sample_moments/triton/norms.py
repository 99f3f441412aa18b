"""The op on normalisations."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sigeo_ext.sample_moments import reference, tiles
from sigeo_ext.sample_moments.triton.norm_kernels import scale_kernel
from sigeo_ext.sample_moments.triton.results import OPTIONS, dtype_of


def scale(
    x: Tensor,
    d: Tensor,
    mean: Tensor | None,
    rstd: Tensor | None,
    factor: Tensor | None,
    channels_last: bool,
    shift: bool,
) -> list[Tensor]:
    """Sums over positions of d * (x - mean) * rstd and of d [samples, channels], and d * factor."""
    reference.check_scale(x, d, mean, rstd, factor, channels_last)
    samples = x.shape[0]
    positions, channels = x.shape[1:] if channels_last else (x.shape[2], x.shape[1])
    steps = (0, 0, 1)
    if mean is not None and rstd is not None:
        steps = _steps(mean.shape, positions, channels)
        mean, rstd = mean.contiguous(), rstd.contiguous()
    if factor is not None:
        factor = factor.contiguous()

    block_positions, block_channels = _block(positions, channels, channels_last)
    blocks = -(-channels // block_channels) * samples
    steps_of_positions = -(-positions // block_positions)
    parts, length = 1, positions
    if blocks and positions:
        parts, length = tiles.parts(blocks, steps_of_positions, tiles.shipped().programs)
        length *= block_positions
    dx = torch.empty_like(x, memory_format=torch.contiguous_format) if factor is not None else None
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    sums = [
        x.new_empty(parts, samples, channels, dtype=wide) if asked else None
        for asked in (mean is not None, shift)
    ]
    with torch.cuda.device_of(x):
        if blocks:
            scale_kernel[(blocks * parts,)](
                x.contiguous(), d.contiguous(), mean, rstd, factor, dx, *sums, positions, channels,
                length, parts, *steps, SCALE=mean is not None, SHIFT=shift, DX=dx is not None,
                CHANNELS_LAST=channels_last, DTYPE=dtype_of(x), BLOCK_POSITIONS=block_positions,
                BLOCK_CHANNELS=block_channels, **OPTIONS,
            )  # fmt: skip
        found = [
            (value[0] if parts == 1 else value.sum(0)).to(x.dtype)
            for value in sums
            if value is not None
        ]
    return found if dx is None else [*found, dx]


def _steps(shape: Sequence[int], positions: int, channels: int) -> tuple[int, int, int]:
    """How far apart statistics of a shape lie from a sample, position and channel to the next."""
    return {1: (0, 0, 1), 2: (channels, 0, 1), 3: (positions, 1, 0)}[len(shape)]


def _block(positions: int, channels: int, channels_last: bool) -> tuple[int, int]:
    """Positions and channels of a program's step: wide where neighbours lie side by side."""
    wide, other = tiles.shipped().scale
    inner, outer = (channels, positions) if channels_last else (positions, channels)
    inner_block = tiles.power_of_two(inner, wide)
    outer_block = tiles.power_of_two(outer, wide * other // inner_block)
    return (outer_block, inner_block) if channels_last else (inner_block, outer_block)
