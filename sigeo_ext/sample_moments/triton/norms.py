"""The op on normalisations."""

from __future__ import annotations

import torch
from torch import Tensor

from sigeo_ext import _check
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
    op = "sample_moments_scale"
    reference.check_scale(x, d, mean, rstd)
    samples = x.shape[0]
    positions, channels = x.shape[1:] if channels_last else (x.shape[2], x.shape[1])
    steps = (0, 0, 1)
    if mean is not None and rstd is not None:
        steps = _steps(op, mean, rstd, (samples, positions, channels), channels_last)
        mean, rstd = mean.contiguous(), rstd.contiguous()
    if factor is not None:
        _check.require(factor.shape == (channels,), op, "factor must be [channels]")
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


def _steps(
    op: str, mean: Tensor, rstd: Tensor, sizes: tuple[int, int, int], channels_last: bool
) -> tuple[int, int, int]:
    """How far apart mean and rstd lie from one sample, position and channel to the next."""
    samples, positions, channels = sizes
    steps = {(channels,): (0, 0, 1), (samples, channels): (channels, 0, 1)}
    if channels_last:
        steps[samples, positions, 1] = (positions, 1, 0)
    forms = "[channels], [samples, channels] or, channels last, [samples, positions, 1]"
    fits = mean.shape == rstd.shape and tuple(mean.shape) in steps
    _check.require(fits, op, f"mean and rstd must both be {forms}")
    return steps[tuple(mean.shape)]


def _block(positions: int, channels: int, channels_last: bool) -> tuple[int, int]:
    """Positions and channels of a program's step: wide where neighbours lie side by side."""
    wide, other = tiles.shipped().scale
    inner, outer = (channels, positions) if channels_last else (positions, channels)
    inner_block = tiles.power_of_two(inner, wide)
    outer_block = tiles.power_of_two(outer, wide * other // inner_block)
    return (outer_block, inner_block) if channels_last else (inner_block, outer_block)
