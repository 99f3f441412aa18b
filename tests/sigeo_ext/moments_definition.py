"""Units of gradients, their summary by its definition, and states that they were streamed into."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sigeo_ext import moments
from tests.cases import DTYPES, LAYERS, tensors

CASES = pytest.mark.parametrize("layers", LAYERS.values(), ids=LAYERS.keys())
STATES = pytest.mark.parametrize("state_dtype", [torch.float32, torch.float64], ids=str)
GRADS = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def unit(layers: list[tuple[int, ...]], index: int, dtype: torch.dtype = torch.float32, **kw):
    return tensors(layers, dtype, seed=100 + index, **kw)


def spelled_out(units: list[list[Tensor | None]], weights: list[Tensor], ddof: int = 0) -> Tensor:
    """The summary by its definition, coordinate by coordinate in float64."""
    rows = []
    n = len(units)
    for layer, weight in enumerate(weights):
        values = torch.stack(
            [
                (torch.zeros_like(weight) if u[layer] is None else u[layer])
                .double()
                .cpu()
                .flatten()
                for u in units
            ]
        )
        mean = values.mean(0)
        m2 = ((values - mean) ** 2).sum(0)
        sigma = (m2 / (n - ddof)).sqrt()
        kept = sigma > 0
        ratio = (values.abs().mean(0)[kept] / sigma[kept]).sum()
        inner = (values.sum(0) * weight.double().cpu().flatten()).sum()
        rows.append([ratio, kept.sum(), inner, values.abs().sum(), (mean**2).sum(), m2.sum()])
    return torch.tensor(rows, dtype=torch.float64).reshape(len(weights), 6)


def new_state(layers: list[tuple[int, ...]], dtype: torch.dtype, device: str = "cpu"):
    return tuple(
        [torch.full(shape, torch.nan, dtype=dtype, device=device) for shape in layers]
        for _ in range(3)
    )


def streamed(layers, units, dtype=torch.float64, device="cpu"):
    state = new_state(layers, dtype, device)
    for count, grads in enumerate(units):
        moments.update_(*state, grads, count=count)
    return state
