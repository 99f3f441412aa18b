"""What the saliency op means, in plain PyTorch: its fallback on any device, and its judge."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sigeo_ext import _check
from sigeo_ext._lists import OptionalTensorList, TensorList, device_of


def log_abs(x: Tensor) -> Tensor:
    """The log of |x|, with derivative 0 at 0."""
    return _unless(x == 0, x, lambda some: some.abs().log())


def _log_abs_product(w: Tensor, g: Tensor) -> Tensor:
    logs = (log_abs(w) + log_abs(g)).flatten()
    return _unless(logs.isneginf().all(), logs, lambda some: some.logsumexp(0))


def _unless(nothing: Tensor, x: Tensor, log: Callable[[Tensor], Tensor]) -> Tensor:
    """A log, or -inf with derivative 0."""
    # What is not chosen must have a derivative too, or that of the whole is NaN.
    return torch.where(nothing, -torch.inf, log(torch.where(nothing, 1.0, x)))


# Of the weights w and the gradient g of one layer, in float64.
_DEFINITIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "product": lambda w, g: (w * g).sum(),
    "abs_product": lambda w, g: (w * g).abs().sum(),
    "log_abs_product": _log_abs_product,
    "log1p_product": lambda w, g: (w * g.log1p()).abs().sum(),
    "weight_sq": lambda w, g: w.square().sum(),
    "gradient_sq": lambda w, g: g.square().sum(),
}
COLUMNS = tuple(_DEFINITIONS)


def chosen(want: int) -> list[str]:
    """The columns of a set, whose bit ``1 << i`` stands for ``COLUMNS[i]``."""
    return [name for bit, name in enumerate(COLUMNS) if want >> bit & 1]


def sums(weights: TensorList, gradients: OptionalTensorList, want: int) -> Tensor:
    """The wanted columns [layers, columns] in float64; an absent gradient is a zero gradient."""
    name, last = "saliency_sums", (1 << len(COLUMNS)) - 1
    message = f"want must be a set of columns, 1 to {last}, got {want}"
    _check.require(1 <= want <= last, name, message)
    columns = chosen(want)
    alone = not gradients and columns == ["weight_sq"]
    lists: dict[str, OptionalTensorList] = {"weights": weights}
    _check.lists(name, inputs=lists if alone else lists | {"gradients": gradients})
    rows = []
    for weight, gradient in zip(
        weights, [None] * len(weights) if alone else gradients, strict=True
    ):
        w = weight.double()
        g = torch.zeros_like(w) if gradient is None else gradient.double()
        rows.append(torch.stack([_DEFINITIONS[column](w, g) for column in columns]))
    if not rows:
        device = device_of(weights, gradients)
        return torch.empty(0, len(columns), dtype=torch.float64, device=device)
    return torch.stack(rows)
