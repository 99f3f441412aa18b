"""The kernel of a normalisation's scale, shift and input gradient."""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["length", "parts"])
def scale_kernel(
    x, d, mean, rstd, factor, dx, scale, shift, positions, channels, length, parts,
    sample_step, position_step, channel_step,
    SCALE: tl.constexpr, SHIFT: tl.constexpr, DX: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    DTYPE: tl.constexpr, BLOCK_POSITIONS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr,
):  # fmt: skip
    """Sums over ``length`` positions of d (x - mean) rstd and of d, and d * factor.

    mean and rstd lie the three steps apart from one sample, position and channel to the next; scale
    and shift are [parts, samples, channels].
    """
    tiles = tl.cdiv(channels, BLOCK_CHANNELS)
    channel = tl.program_id(0) % tiles * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)[None, :]
    row = tl.program_id(0) // tiles
    part = row % parts
    sample = (row // parts).to(tl.int64)
    is_channel = channel < channels

    of_scale = tl.zeros((BLOCK_POSITIONS, BLOCK_CHANNELS), DTYPE)
    of_shift = of_scale
    begin = part * length
    end = tl.minimum(begin + length, positions)
    for block in range(begin, end, BLOCK_POSITIONS):
        position = block + tl.arange(0, BLOCK_POSITIONS)[:, None]
        mask = (position < end) & is_channel
        if CHANNELS_LAST:
            at = (sample * positions + position) * channels + channel
        else:
            at = (sample * channels + channel) * positions + position
        ds = tl.load(d + at, mask, 0.0).to(DTYPE)
        if SCALE:
            of = sample * sample_step + position * position_step + channel * channel_step
            xs = tl.load(x + at, mask, 0.0).to(DTYPE)
            xs = xs - tl.load(mean + of, mask, 0.0).to(DTYPE)
            of_scale += ds * xs * tl.load(rstd + of, mask, 0.0).to(DTYPE)
        if SHIFT:
            of_shift += ds
        if DX:
            tl.store(dx + at, ds * tl.load(factor + channel, is_channel, 0.0).to(DTYPE), mask)
    samples = tl.num_programs(0) // tiles // parts
    at = (part * samples + sample) * channels + channel
    if SCALE:
        tl.store(scale + at, tl.sum(of_scale, 0)[None, :], is_channel)
    if SHIFT:
        tl.store(shift + at, tl.sum(of_shift, 0)[None, :], is_channel)
