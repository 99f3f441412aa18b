"""Statistics of parameters so small that every sample's gradient is held, such as a norm's."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from torch import Tensor

from sigeo_ext import _check
from sigeo_ext._kinds import named_arguments
from sigeo_ext.sample_moments import op
from sigeo_ext.sample_moments.layout import widened
from sigeo_ext.sample_moments.statistics import SampleMoments, bits_of, named


@named_arguments("sample_moments.rows")
def rows(
    gradients: Tensor,
    *,
    unit: int = 1,
    segments: int | None = None,
    want: Iterable[str] = ("sum", "abs_sum", "sq_sum", "sq_norm"),
    factor: float = 1.0,
) -> SampleMoments:
    """Statistics of samples' gradients that are there, ``[samples, *shape]``, of small parameters.

    Args:
        gradients: One a sample.
        unit: As in `convolution`.
        segments: As in `convolution`.
        want: As in `convolution`.
        factor: As in `convolution`.

    Raises:
        RuntimeError: Samples that are not whole units.
        ValueError: An unknown statistic.
    """
    bits = bits_of(want)
    if not gradients.dim():
        _check.require(False, "sample_moments.rows", "gradients must be [samples, *shape], got []")
    shape = gradients.shape[1:]
    flat = widened(gradients.detach())
    if len(shape) != 1:
        flat = flat.flatten(1) if shape else flat[:, None]
    runs = 1 if segments is None else segments
    results = op.sample_moments_rows(flat.contiguous(), unit, runs, bits, factor)
    whole = shape if segments is None else (segments, *shape)
    return named(bits, [r if r.dim() == 1 else r.view(whole) for r in results])


class Scaled(NamedTuple):
    """What `scale` computes; None where not asked for."""

    scale: Tensor | None
    """sum over positions of d * (x - mean) * rstd, [samples, channels]."""
    shift: Tensor | None
    """sum over positions of d, [samples, channels]."""
    dx: Tensor | None
    """d * factor, like x."""


@named_arguments("sample_moments.scale")
def scale(
    x: Tensor,
    d: Tensor,
    *,
    mean: Tensor | None = None,
    rstd: Tensor | None = None,
    factor: Tensor | None = None,
    channels_last: bool = True,
    shift: bool = True,
) -> Scaled:
    """Each sample's gradient of a norm's weight and bias, in one pass; and a frozen norm's dx.

    Args:
        x: The norm's input [samples, positions, channels], or [samples, channels, positions].
        d: The gradient of its output, like ``x``.
        mean: What was subtracted: [channels], [samples, channels], or [samples, positions, 1] with
            channels last. Without it there is no ``scale``.
        rstd: What it was then multiplied by, like ``mean``.
        factor: [channels]; asks for ``dx``.
        channels_last: Which of the two forms ``x`` has.
        shift: Whether ``shift`` is wanted.

    Raises:
        RuntimeError: Shapes or dtypes that do not fit together.
    """
    tensors = [None if t is None else t.detach().contiguous() for t in (x, d, mean, rstd, factor)]
    results = iter(op.sample_moments_scale(*tensors, channels_last, shift))
    return Scaled(
        next(results) if mean is not None else None,
        next(results) if shift else None,
        next(results) if factor is not None else None,
    )
