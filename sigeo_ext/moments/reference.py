"""What the moments ops mean, in plain PyTorch: their fallback on any device, and their judge.

Notation: A1 = sum |g|, mean = sum g / n, M2 = sum (g - mean)^2 over n units, a coordinate each.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sigeo_ext import _check
from sigeo_ext._lists import OptionalTensorList, TensorList, device_of

COLUMNS = ("ratio", "kept", "inner", "abs_sum", "mean_sq", "m2_sum")
MAX_ROWS = 4


def update(
    abs_sum: TensorList, mean: TensorList, m2: TensorList, grads: OptionalTensorList, count: int
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Welford's update; an absent gradient is a zero gradient."""
    _check_update("moments_update", abs_sum, mean, m2, grads, count, in_place=False)
    return _updated(abs_sum, mean, m2, grads, count)


def _updated(
    abs_sum: TensorList, mean: TensorList, m2: TensorList, grads: OptionalTensorList, count: int
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    results: tuple[list[Tensor], list[Tensor], list[Tensor]] = ([], [], [])
    for a, mu, q, gradient in zip(abs_sum, mean, m2, grads, strict=True):
        g = torch.zeros_like(mu) if gradient is None else gradient.to(mu.dtype)
        if count == 0:
            state = (g.abs(), g.clone(), g - g)
        else:
            delta = g - mu
            following = mu + delta / (count + 1)
            deviation = delta * (g - following)
            if count == 1:
                state = (mu.abs() + g.abs(), following, deviation)
            else:
                state = (a + g.abs(), following, q + deviation)
        for values, value in zip(results, state, strict=True):
            values.append(torch.empty_like(a).copy_(value))
    return results


def _check_update(
    name: str,
    abs_sum: TensorList,
    mean: TensorList,
    m2: TensorList,
    grads: OptionalTensorList,
    count: int,
    *,
    in_place: bool,
) -> None:
    _check.require(count >= 0, name, f"count must be at least 0, got {count}")
    state = {"abs_sum": abs_sum, "mean": mean, "m2": m2}
    _check.lists(name, state=state, inputs={"grads": grads}, in_place=in_place)


def update_(
    abs_sum: TensorList, mean: TensorList, m2: TensorList, grads: OptionalTensorList, count: int
) -> None:
    """`update`, written into the state."""
    _check_update("moments_update_", abs_sum, mean, m2, grads, count, in_place=True)
    new_state = _updated(abs_sum, mean, m2, grads, count)
    for state, new in zip((abs_sum, mean, m2), new_state, strict=True):
        for old, value in zip(state, new, strict=True):
            old.copy_(value)


def of_rows(rows: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """(A1, mean, M2) of one layer's units, in float64, two-pass about the first unit."""
    units = torch.stack([row.double() for row in rows])
    shifted = units - units[0]
    centre = shifted.mean(0)
    return units.abs().sum(0), units[0] + centre, ((shifted - centre) ** 2).sum(0)


def fold_rows_(first: TensorList, second: TensorList, third: TensorList) -> None:
    """Three units become (A1, mean, M2) in their own memory."""
    state = {"first": first, "second": second, "third": third}
    _check.lists("moments_fold_rows_", state=state)
    for rows in zip(first, second, third, strict=True):
        for row, value in zip(rows, of_rows(rows), strict=True):
            row.copy_(value)


def _summarize(
    abs_sum: Tensor, mean: Tensor, m2: Tensor, weight: Tensor | None, count: int, ddof: int
) -> Tensor:
    kept = m2 != 0
    sigma = (m2 / (count - ddof)).sqrt()
    ratio = torch.where(kept, abs_sum / count / sigma, 0.0)
    inner = mean.new_zeros(()) if weight is None else (count * mean * weight.double()).sum()
    columns = (ratio.sum(), kept.sum(), inner, abs_sum.sum(), (mean * mean).sum(), m2.sum())
    return torch.stack([column.double() for column in columns])


def _stack(rows: Sequence[Tensor], device: torch.device) -> Tensor:
    if not rows:
        return torch.empty(0, len(COLUMNS), dtype=torch.float64, device=device)
    return torch.stack(list(rows))


def summary(
    abs_sum: TensorList,
    mean: TensorList,
    m2: TensorList,
    grads: OptionalTensorList,
    weights: TensorList,
    count: int,
    ddof: int,
) -> Tensor:
    """Summary [layers, 6] of a state, with one more unit where `grads` is not empty."""
    name = "moments_summary"
    _check.units(name, count + (1 if grads else 0), ddof)
    given: dict[str, OptionalTensorList] = {"abs_sum": abs_sum, "mean": mean, "m2": m2}
    given |= {"grads": grads} if grads else {}
    given |= {"weights": weights} if weights else {}
    _check.lists(name, inputs=given)
    wide_abs, wide_mean, wide_m2 = ([t.double() for t in state] for state in (abs_sum, mean, m2))
    if grads:
        pending = [None if g is None else g.double() for g in grads]
        wide_abs, wide_mean, wide_m2 = _updated(wide_abs, wide_mean, wide_m2, pending, count)
        count += 1
    theta = weights if weights else [None] * len(mean)
    rows = [
        _summarize(a, mu, q, w, count, ddof)
        for a, mu, q, w in zip(wide_abs, wide_mean, wide_m2, theta, strict=True)
    ]
    return _stack(rows, device_of(mean))


def rows_summary(rows: OptionalTensorList, weights: TensorList, count: int, ddof: int) -> Tensor:
    """Summary [layers, 6] of `count` units given end to end."""
    name = "moments_rows_summary"
    _check.units(name, count, ddof)
    _check.require(count <= MAX_ROWS, name, f"count must be at most {MAX_ROWS}, got {count}")
    layers, rest = divmod(len(rows), count)
    message = f"rows must hold {count} tensors a layer, got {len(rows)} tensors"
    _check.require(rest == 0, name, message)
    given = {"weights": weights} if weights else {}
    _check.lists(name, inputs=given, rows=rows, layers=layers)
    theta = list(weights) if weights else [None] * layers
    summaries = []
    for layer, weight in enumerate(theta):
        units = rows[layer::layers]
        like = next((t for t in (*units, weight) if t is not None), None)
        if like is None:
            like = torch.empty(0, device=device_of(rows))
        present = [torch.zeros_like(like) if unit is None else unit for unit in units]
        summaries.append(_summarize(*of_rows(present), weight, count, ddof))
    return _stack(summaries, device_of(rows, weights))


def dot(a: TensorList, b: TensorList) -> Tensor:
    """Inner products [layers] in float64."""
    _check.lists("moments_dot", inputs={"a": a, "b": b})
    products = [(x.double() * y.double()).sum() for x, y in zip(a, b, strict=True)]
    if not products:
        return torch.empty(0, dtype=torch.float64)
    return torch.stack(products)


def row_dots(a: Tensor, b: Tensor) -> Tensor:
    """Inner products of the rows (dimension 0), in float64."""
    _check.require(a.dim() > 0, "moments_row_dots", "a must be [rows, ...], got a number")
    _check.lists("moments_row_dots", inputs={"a": [a], "b": [b]})
    return (a.double() * b.double()).flatten(1).sum(1) if a.dim() > 1 else a.double() * b.double()
