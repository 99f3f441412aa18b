"""What the sample_moments ops mean, in plain PyTorch: their fallback on any device, their judge.

A unit is one or more consecutive samples; a segment is a run of units with statistics of its own.
Everything is computed in float64 from one unit's gradient after another.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from sigeo_ext import _check

STATISTICS = ("sum", "abs_sum", "sq_sum", "m2", "sign_sum", "sq_norm")
# The bits of ``want``.
SUM, ABS_SUM, SQ_SUM, M2, SIGN_SUM, SQ_NORM = (1 << bit for bit in range(len(STATISTICS)))


def wanted(want: int) -> list[str]:
    """The names of the bits of ``want``, in the order of the results."""
    return [name for bit, name in enumerate(STATISTICS) if want >> bit & 1]


def check_units(op: str, samples: int, unit: int, segments: int, want: int) -> None:
    """Require whole units and whole segments of them, and something to compute."""
    _check.require(unit > 0, op, f"unit must be at least 1, got {unit}")
    _check.require(segments > 0, op, f"segments must be at least 1, got {segments}")
    message = f"{samples} samples must be whole units of {unit} in {segments} equal segments"
    _check.require(samples % (unit * segments) == 0, op, message)
    known = 1 << len(STATISTICS)
    _check.require(0 < want < known, op, f"want must be from 1 to {known - 1}, got {want}")


def _sign(g: Tensor) -> Tensor:
    return torch.where(g.isnan(), g, g.sign())  # torch has sign(NaN) = 0


def of_units(
    gradients: Iterator[Tensor],
    like: Tensor,
    shape: Sequence[int],
    units: int,
    segments: int,
    want: int,
    factor: float,
) -> list[Tensor]:
    """The statistics of gradients that come one unit after another.

    Args:
        gradients: The units' gradients, float64, each of ``shape``.
        like: Gives device and dtype; results have at least float32, sq_norm float64.
        shape: Of the weight.
        units: How many will come.
        segments: Equal runs of them.
        want: Bits of `STATISTICS`.
        factor: All but ``sum`` are of the gradients times this.
    """
    of_segment = units // segments
    norms = like.new_zeros(units, dtype=torch.float64)
    mean = like.new_zeros(shape, dtype=torch.float64)
    zeros = like.new_zeros(segments, *shape, dtype=torch.float64)
    sums = {name: zeros.clone() for name in STATISTICS[:5]}
    for unit, g in enumerate(gradients):
        segment, count = divmod(unit, of_segment)
        sums["sum"][segment] += g
        sums["abs_sum"][segment] += g.abs()
        sums["sq_sum"][segment] += g * g
        sums["sign_sum"][segment] += _sign(g)
        mean = g if count == 0 else mean
        delta = g - mean
        mean = mean + delta / (count + 1)
        sums["m2"][segment] += delta * (g - mean)
        norms[unit] = (g * g).sum()
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    power = {"abs_sum": abs(factor), "sq_sum": factor**2, "m2": factor**2}
    results = {name: (value * power.get(name, 1.0)).to(dtype) for name, value in sums.items()}
    results["sq_norm"] = norms * factor**2
    return [results[name] for name in wanted(want)]


def check_scale(
    x: Tensor,
    d: Tensor,
    mean: Tensor | None,
    rstd: Tensor | None,
    factor: Tensor | None,
    channels_last: bool,
) -> None:
    """Require a norm's input, the gradient of its output, and statistics that belong together."""
    op, shape = "sample_moments_scale", list(x.shape)
    _check.require(x.dim() == 3, op, f"x must have 3 dimensions, got {shape}")
    message = f"d must have the shape of x, {shape}, got {list(d.shape)}"
    _check.require(x.shape == d.shape, op, message)
    together = "mean and rstd must be given together"
    _check.require((mean is None) == (rstd is None), op, together)
    if mean is not None and rstd is not None:
        message = f"mean and rstd must have one shape, got {list(mean.shape)} and"
        _check.require(mean.shape == rstd.shape, op, f"{message} {list(rstd.shape)}")
    samples, positions, channels = x.shape if channels_last else (len(x), x.shape[2], x.shape[1])
    more = ((samples, channels), *([(samples, positions, 1)] if channels_last else []))
    given = (("mean", mean, more), ("rstd", rstd, more), ("factor", factor, ()))
    for name, values, others in given:
        if values is not None and values.shape not in ((channels,), *others):
            words = ", [samples, channels] or, channels last, [samples, positions, 1]"
            words = f"[channels]{words if others else ''}"
            message = f"{name} must be {words}, for x {shape}, got {list(values.shape)}"
            _check.require(False, op, message)


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
    check_scale(x, d, mean, rstd, factor, channels_last)
    positions = 1 if channels_last else 2

    def spread(values: Tensor) -> Tensor:
        return values.unsqueeze(positions) if values.dim() == 2 else _of_channel(values)

    def _of_channel(values: Tensor) -> Tensor:
        return values[:, None] if values.dim() == 1 and not channels_last else values

    wide = d.double()
    results = []
    if mean is not None and rstd is not None:
        normed = (x.double() - spread(mean).double()) * spread(rstd).double()
        results.append((wide * normed).sum(positions).to(x.dtype))
    if shift:
        results.append(wide.sum(positions).to(x.dtype))
    if factor is not None:
        results.append(d * spread(factor))
    return results


def check_floating(op: str, name: str, tensor: Tensor) -> None:
    """Require one of the four floating types."""
    floating = f"{name} must be float32, float64, bfloat16 or float16"
    _check.require(_check.is_floating(tensor), op, f"{floating}, got {_check.dtype_of(tensor)}")


def check_convolution(
    op: str,
    x: Tensor,
    d: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> None:
    """Require tensors that an input and an output gradient of such a convolution can be."""
    dims = len(kernel)
    _check.require(1 <= dims <= 3, op, f"kernel must have 1 to 3 dimensions, got {dims}")
    for name, values in (("stride", stride), ("padding", padding), ("dilation", dilation)):
        _check.require(
            len(values) == dims, op, f"{name} must have {dims} entries, got {len(values)}"
        )
    for name, tensor in (("x", x), ("d", d)):
        came = f"got {list(tensor.shape)}"
        _check.require(
            tensor.dim() == dims + 2,
            op,
            f"{name} must be [samples, {dims} sizes, channels], {came}",
        )
        check_floating(op, name, tensor)
    same = f"x and d must have one dtype, got {_check.dtype_of(x)} and {_check.dtype_of(d)}"
    _check.require(x.dtype == d.dtype, op, same)
    _check.require(x.device == d.device, op, "x and d must be on one device")
    number = f"x and d must have the same number of samples, got {x.shape[0]} and {d.shape[0]}"
    _check.require(x.shape[0] == d.shape[0], op, number)
    positive = min((*kernel, *stride, *dilation)) > 0 and min(padding) >= 0
    signs = "kernel, stride and dilation must be positive, padding at least 0"
    _check.require(positive, op, signs)
    geometry = zip(x.shape[1:-1], d.shape[1:-1], kernel, stride, padding, dilation, strict=True)
    for dim, (size, out, k, step, pad, apart) in enumerate(geometry, 1):
        padded, reach = size + 2 * pad, apart * (k - 1) + 1
        fits = f"kernel must fit into the padded size {padded} of dimension {dim}, got {reach}"
        _check.require(padded >= reach, op, fits)
        expected = (padded - reach) // step + 1
        same = f"d must have size {expected} in dimension {dim}, got {out}"
        _check.require(out == expected, op, same)
    even = groups > 0 and x.shape[-1] % groups == 0 and d.shape[-1] % groups == 0
    divides = f"groups must divide the channels {x.shape[-1]} and {d.shape[-1]}, got {groups}"
    _check.require(even, op, divides)


def convolution(
    x: Tensor,
    d: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    unit: int,
    segments: int,
    want: int,
    factor: float,
) -> list[Tensor]:
    """Statistics [segments, O, *kernel, I/groups] and sq_norm [units] of a convolution's weight."""
    op = "sample_moments_convolution"
    check_convolution(op, x, d, kernel, stride, padding, dilation, groups)
    samples, inputs, outputs = x.shape[0], x.shape[-1], d.shape[-1]
    check_units(op, samples, unit, segments, want)
    gradients = unit_gradients(x, d, kernel, stride, padding, dilation, groups, unit)
    shape = (outputs, *kernel, inputs // groups)
    return of_units(gradients, x, shape, samples // unit, segments, want, factor)


def unit_gradients(
    x: Tensor,
    d: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    unit: int,
) -> Iterator[Tensor]:
    """Each unit's gradient of a convolution's weight, one after another.

    Yields:
        [O, *kernel, I/groups], float64.
    """
    shape = (d.shape[-1], x.shape[-1] // groups, *kernel)
    weight = x.new_zeros(shape, dtype=torch.float64)
    for begin in range(0, x.shape[0], unit):
        if not weight.numel():  # the library refuses a layer without outputs
            yield weight.movedim(1, -1)
            continue
        part = slice(begin, begin + unit)
        _, gradient, _ = torch.ops.aten.convolution_backward(
            d[part].movedim(-1, 1).double(),
            x[part].movedim(-1, 1).double(),
            weight,
            None,
            stride,
            padding,
            dilation,
            False,
            [0] * len(kernel),
            groups,
            [False, True, False],
        )
        yield gradient.movedim(1, -1)


def check_entries(
    op: str, rows: Tensor, units: Tensor | None, gradients: Tensor, count: int, entries: int
) -> Tensor:
    """Require entries that fit together, and indices within their ranges; returns the units."""
    fits = rows.dim() == 1 and gradients.dim() == 2 and len(rows) == len(gradients)
    expected = "rows must be [entries] and gradients [entries, width]"
    message = f"{expected}, got {list(rows.shape)} and {list(gradients.shape)}"
    _check.require(fits, op, message)
    check_floating(op, "gradients", gradients)
    if units is None:
        whole = entries > 0 and len(rows) <= count * entries
        number = f"entries must be the number of entries of a unit, got {entries}"
        _check.require(whole, op, number)
        units = torch.arange(len(rows), device=rows.device) // entries
    for name, values, limit in (("rows", rows, 2**63 - 1), ("units", units, count)):
        long = values.dtype == torch.int64 and values.shape == rows.shape
        _check.require(long, op, f"{name} must be contiguous int64 [entries]")
        bad = ((values < 0) | (values >= limit)).nonzero().flatten().tolist()
        if bad:
            place = f"{name}[{bad[0]}] must be from 0 to {limit - 1}, got {int(values[bad[0]])}"
            _check.require(False, op, place)
    return units


def embedding(
    rows: Tensor,
    units: Tensor | None,
    gradients: Tensor,
    count: int,
    entries: int,
    skipped: int,
    want: int,
    factor: float,
) -> list[Tensor]:
    """The touched rows [R], statistics [R, E] of them, and sq_norm [count]."""
    op = "sample_moments_embedding"
    check_units(op, count, 1, 1, want)
    units = check_entries(op, rows, units, gradients, count, entries)
    kept = rows != skipped
    touched, place = rows[kept].unique(return_inverse=True)
    dense = gradients.new_zeros(count, len(touched), gradients.shape[1], dtype=torch.float64)
    dense.index_put_((units[kept], place), gradients[kept].double(), accumulate=True)
    shape = (len(touched), gradients.shape[1])
    found = of_units(iter(dense), gradients, shape, count, 1, want, factor)
    return [touched, *(f if f.dim() == 1 else f[0] for f in found)]


def tables(rows: Tensor, gradients: Tensor, unit: int, want: int, factor: float) -> list[Tensor]:
    """Where each table's rows begin [F + 1], the rows, statistics, and sq_norm [F, units]."""
    check_tables(rows, gradients, unit, want)
    units = len(rows) // unit
    parts = [
        embedding(rows[:, t], None, gradients[:, t], units, unit, -1, want, factor)
        for t in range(rows.shape[1])
    ]
    counts = [0, *(len(part[0]) for part in parts)]
    first = torch.tensor(counts, device=rows.device).cumsum(0)
    results = []
    for index, of_first in enumerate(parts[0]):
        of_tables = [part[index] for part in parts]
        norms = index > 0 and of_first.dim() == 1
        results.append(torch.stack(of_tables) if norms else torch.cat(of_tables))
    return [first, *results]


def check_tables(rows: Tensor, gradients: Tensor, unit: int, want: int) -> None:
    """Require look-ups of many tables that fit together."""
    op = "sample_moments_tables"
    fits = rows.dim() == 2 and gradients.dim() == 3 and rows.shape == gradients.shape[:2]
    expected = "rows must be [samples, tables] and gradients [samples, tables, width]"
    message = f"{expected}, got {list(rows.shape)} and {list(gradients.shape)}"
    _check.require(fits, op, message)
    _check.require(rows.shape[1] > 0, op, "rows must be of at least one table, got none")
    check_floating(op, "gradients", gradients)
    check_units(op, len(rows), unit, 1, want)
    _check.require(rows.dtype == torch.int64, op, "rows must be contiguous int64")
    lowest = int(rows.min()) if rows.numel() else 0
    _check.require(lowest >= 0, op, f"rows must be at least 0, got {lowest}")


def check_rows(rows: Tensor, unit: int, segments: int, want: int) -> None:
    """Require gradients, one a sample, of whole units."""
    op = "sample_moments_rows"
    message = f"rows must be [samples, size], got {list(rows.shape)}"
    _check.require(rows.dim() == 2, op, message)
    check_floating(op, "rows", rows)
    check_units(op, len(rows), unit, segments, want)


def rows(rows: Tensor, unit: int, segments: int, want: int, factor: float) -> list[Tensor]:
    """Statistics [segments, size] and sq_norm [units] of gradients that are there."""
    check_rows(rows, unit, segments, want)
    units = len(rows) // unit
    g = rows.double().view(units, unit, rows.shape[1]).sum(1)
    return of_units(iter(g), rows, rows.shape[1:], units, segments, want, factor)
