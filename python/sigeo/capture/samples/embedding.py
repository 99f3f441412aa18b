"""Calls of embeddings: statistics of the touched rows alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sigeo.capture.samples.axis import samples_first
from sigeo.capture.samples.calls import Call
from sigeo.capture.samples.uses import Plan, Use
from sigeo_ext import sample_moments
from sigeo_ext.sample_moments import SampleMoments

aten = torch.ops.aten


@dataclass
class Embedding(Call):
    """``F.embedding``: x are indices, of any shape."""

    padding_idx: int
    sparse: bool
    rows: int

    def forward(self, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> tuple[Any, ...]:
        """[*x.shape, E]."""
        assert weight is not None
        y = aten.embedding(weight, x, self.padding_idx, False, self.sparse)
        return (y,)

    def input_gradient(
        self, d: Tensor, x: Tensor, weight: Tensor | None, saved: Sequence[Tensor]
    ) -> Tensor:
        """None: indices ask for no gradient, so this is never called."""
        return torch.zeros_like(x)

    def entries(self, x: Tensor, d: Tensor, saved: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Row [N] and sample [N] of each entry, and its gradient [N, E]; padding left out."""
        indices = samples_first(x, self.axis).flatten(1)  # [samples, positions]
        gradients = samples_first(d, self.axis).flatten(1, -2).flatten(0, 1)
        samples = torch.arange(len(indices), device=x.device).repeat_interleave(indices.shape[1])
        return self._without_padding(indices.flatten(), samples, gradients)

    def _without_padding(
        self, rows: Tensor, samples: Tensor, gradients: Tensor
    ) -> tuple[Tensor, ...]:
        if self.padding_idx < 0:
            return rows, samples, gradients
        kept = rows != self.padding_idx
        return rows[kept], samples[kept], gradients[kept]

    def measure(
        self, use: Use, argument: str, x: Tensor, d: Tensor, saved: Sequence[Tensor]
    ) -> SampleMoments:
        """Row-sparse statistics; ``sum`` is dense unless the layer's gradient is sparse."""
        rows, samples, gradients = self.entries(x, d, saved)
        units = samples if use.unit == 1 else samples.div(use.unit, rounding_mode="floor")
        touched, found = sample_moments.embedding(
            rows,
            units,
            gradients,
            count=use.units,
            want=[w for w in use.want if w != "sum"],
            factor=use.factor,
        )
        results: dict[str, Tensor] = {
            name: value
            if name == "sq_norm"
            else torch.sparse_coo_tensor(
                touched[None], value, use.shape, is_coalesced=True, check_invariants=False
            )
            for name, value in found._asdict().items()
            if value is not None
        }
        if "sum" in use.want:
            if self.sparse:
                results["sum"] = torch.sparse_coo_tensor(
                    rows[None], gradients, use.shape, check_invariants=False
                )
            else:
                results["sum"] = aten.embedding_dense_backward(
                    gradients, rows, self.rows, -1, False
                )
        return SampleMoments(**results)

    def unit_gradients(
        self, argument: str, x: Tensor, d: Tensor, saved: Sequence[Tensor], units: slice, unit: int
    ) -> Tensor:
        """[units, rows, E], dense."""
        rows, samples, gradients = self.entries(x, d, saved)
        place = samples.div(unit, rounding_mode="floor")
        inside = (place >= units.start) & (place < units.stop)
        count = units.stop - units.start
        table = gradients.new_zeros(count * self.rows, gradients.shape[-1])
        at = (place[inside] - units.start) * self.rows + rows[inside]
        return table.index_add_(0, at, gradients[inside]).view(count, self.rows, -1)

    def inner(
        self,
        argument: str,
        value: Tensor,
        x: Tensor,
        d: Tensor,
        dx: Tensor | None,
        saved: Sequence[Tensor],
        plan: Plan,
    ) -> Tensor:
        """<table, g_u> for each unit, float64 [units]: only touched rows count."""
        rows, samples, gradients = self.entries(x, d, saved)
        products = (gradients * value[rows]).sum(1, dtype=torch.float64)
        place = samples.div(plan.unit, rounding_mode="floor")
        return products.new_zeros(plan.units).index_add_(0, place, products)


@dataclass
class EmbeddingBag(Embedding):
    """Sums or means of bags of rows; the samples are followed through the bags."""

    mode: str = "sum"
    offsets: Tensor | None = None
    include_last_offset: bool = False
    per_sample_weights: Tensor | None = None

    def forward(self, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> tuple[Any, ...]:
        """[bags, E]."""
        assert weight is not None
        y = F.embedding_bag(
            x,
            weight,
            self.offsets,
            mode=self.mode,
            sparse=self.sparse,
            per_sample_weights=self.per_sample_weights,
            include_last_offset=self.include_last_offset,
            padding_idx=self.padding_idx if self.padding_idx >= 0 else None,
        )
        return (y,)

    def entries(self, x: Tensor, d: Tensor, saved: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Row, sample and gradient of each entry of each bag."""
        rows, bags = x.flatten(), len(d)
        if self.offsets is None:
            bag = torch.arange(bags, device=x.device).repeat_interleave(x.shape[1])
        else:
            starts = self.offsets[:bags]
            bag = torch.searchsorted(
                starts.contiguous(), torch.arange(len(rows), device=x.device), right=True
            ) - 1  # fmt: skip
        factor = None if self.per_sample_weights is None else self.per_sample_weights.flatten()
        if self.mode == "mean":
            counted = torch.ones_like(rows, dtype=d.dtype)
            if self.padding_idx >= 0:
                counted = (rows != self.padding_idx).to(d.dtype)
            size = d.new_zeros(bags).index_add_(0, bag, counted).clamp_min(1)
            factor = 1 / size[bag]
        gradients = d[bag] if factor is None else d[bag] * factor.to(d.dtype)[:, None]
        sample = bag.div(self.axis.inner, rounding_mode="floor") % self.axis.samples
        return self._without_padding(rows, sample, gradients)
