"""Statistics of the gradients that subnets give a super-weight, within subnets and over them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor

from sigeo_ext import _check
from sigeo_ext import sample_moments as kernels
from sigeo_ext._kinds import named_arguments
from sigeo_ext.gather import grouped_op as op
from sigeo_ext.gather.grouped_windows import Window, windows_of
from sigeo_ext.sample_moments import SampleMoments
from sigeo_ext.sample_moments.layout import widened
from sigeo_ext.sample_moments.statistics import bits_of, named

_POWERS = {"abs_sum": 1, "sq_sum": 2, "m2": 2, "sq_norm": 2}


@named_arguments("grouped.sample_moments")
def sample_moments(
    x: Sequence[Tensor],
    d: Sequence[Tensor],
    *,
    unit: int | None = 1,
    want: Iterable[str] = ("sum", "abs_sum", "sq_sum", "sq_norm"),
    factor: float = 1.0,
) -> list[SampleMoments]:
    """Statistics within each subnet: over the gradients of its own samples.

    Of subnet s, `sigeo_ext.sample_moments.linear` of its rows: in the places of its own weight,
    [its outputs, its inputs], which are those of the super-weight behind its windows. Subnets of
    equal shapes are better stacked, as ``segments`` of one call there.

    Args:
        x: A subnet's input each, [B, its inputs], or [B, T, its inputs] with T positions that share
            the weight.
        d: The gradients of the outputs, [B, its outputs] or [B, T, its outputs].
        unit: Consecutive samples whose gradients are added up before anything else. None: all of a
            subnet's; ``sum`` is then its own gradient, ``sq_norm`` [1] the squared norm of that.
        want: Which of `sigeo_ext.sample_moments.STATISTICS`.
        factor: All but ``sum`` are of the gradients times this.

    Returns:
        The statistics of each subnet.

    Raises:
        RuntimeError: Shapes that do not fit together, or samples that are not whole units.
        ValueError: An unknown statistic.
    """
    name = "grouped.sample_moments"
    _check_lists(name, x, d)
    want = tuple(want)
    found = []
    for subnet, (rows, gradient) in enumerate(zip(x, d, strict=True)):
        if rows.dim() not in (2, 3) or gradient.shape[:-1] != rows.shape[:-1]:
            expected = f"x[{subnet}] and d[{subnet}] must be [B, width] or [B, T, width] of one B"
            got = f"got {list(rows.shape)} and {list(gradient.shape)}"
            _check.require(False, name, f"{expected} and T, {got}")
        if unit is None:  # one sample with all rows as its positions
            rows, gradient = (_one_sample(t) for t in (rows, gradient))
        samples = 1 if unit is None else unit
        found.append(kernels.linear(rows, gradient, unit=samples, want=want, factor=factor))
    return found


@named_arguments("grouped.subnet_moments")
def subnet_moments(
    x: Sequence[Tensor],
    d: Sequence[Tensor],
    size: tuple[int, int],
    *,
    outputs: Sequence[Window] | None = None,
    inputs: Sequence[Window] | None = None,
    want: Iterable[str] = ("sum", "abs_sum", "sq_sum", "sq_norm"),
    factor: float = 1.0,
) -> SampleMoments:
    """Statistics over subnets: the unit is a subnet, the places are those of the super-weight.

    With g_s the gradient that subnet s gives the super-weight, zero where it does not use it::

        g_s[o, i] = sum over its rows n of d_s[n, o] * x_s[n, i]

    ``sum`` is the ordinary gradient of the super-weight, ``m2`` says how far subnets that share a
    weight disagree on it. No gradient of a single subnet is stored: a tile of it is formed, the
    statistics of the tile are updated, and the next subnet follows.

    Args:
        x: A subnet's input each, [..., its inputs], float32, float64, bfloat16 or float16.
        d: The gradients of the outputs, [..., its outputs].
        size: Of the super-weight: outputs, inputs.
        outputs: A window of the weight's rows a subnet; without it all use all.
        inputs: Likewise of its columns.
        want: Which of `sigeo_ext.sample_moments.STATISTICS`.
        factor: All but ``sum`` are of the gradients times this.

    Returns:
        Statistics of the super-weight's shape; ``sq_norm``, the squared norm of each subnet's
        gradient, [subnets].

    Raises:
        RuntimeError: No subnet, a window that the weight does not have, or shapes that do not fit.
        ValueError: An unknown statistic.
    """
    name = "grouped.subnet_moments"
    _check_lists(name, x, d)
    bits = bits_of(want)
    windows = [
        windows_of(name, argument, given, len(x), places)
        for argument, given, places in (("outputs", outputs, size[0]), ("inputs", inputs, size[1]))
    ]
    wide = [[widened(t.detach()) for t in tensors] for tensors in (x, d)]
    results = op.gather_grouped_moments(*wide, list(size), *windows, bits)
    found = named(bits, results)
    if factor != 1.0:
        for statistic, power in _POWERS.items():
            values = getattr(found, statistic)
            if values is not None:
                values *= abs(factor) ** power
    return found


def _one_sample(values: Tensor) -> Tensor:
    """[1, rows, width]."""
    return values.reshape(1, values.shape[:-1].numel(), values.shape[-1])


def _check_lists(name: str, x: Sequence[Tensor], d: Sequence[Tensor]) -> None:
    expected = f"d must hold one tensor a subnet, {len(x)}, got {len(d)}"
    _check.require(len(x) == len(d), name, expected)
