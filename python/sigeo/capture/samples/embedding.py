"""Look-ups in embedding tables: statistics of the touched rows alone.

The look-up and its ordinary gradient are left as they are; a hook on the output keeps its gradient
until the backward pass has ended, and then each table is measured at once, tables alike together.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sigeo.capture.samples.axis import Axis, samples_first
from sigeo.capture.samples.uses import SharedTables, Use
from sigeo_ext import gram, sample_moments
from sigeo_ext.sample_moments import SampleMoments


@dataclass
class LookUp:
    """One call of ``F.embedding`` on indices of any shape.

    Attributes:
        axis: Where the samples are in the indices and the output.
        use: Of the table.
        indices: The rows that were looked up.
        padding_idx: The row whose entries have no gradient; -1 for none.
        gradient: Of the output, once the backward pass has come by.
    """

    axis: Axis
    use: Use
    indices: Tensor
    padding_idx: int
    gradient: Tensor | None = None

    @property
    def single(self) -> bool:
        """Whether each sample looks one row up, and no row is padding."""
        return self.axis.alone and self.indices.dim() == 1 and self.padding_idx < 0

    def arrived(self, gradient: Tensor | None, *_: Tensor | None) -> None:
        """The hook: keep the gradient, and hear of the end of the backward pass."""
        if gradient is None:
            return
        with torch._C.DisableTorchFunction():
            self.use.session.backward_begun()
            if len(self.use.record.uses) > 1:
                self.use.rows = self.unit_gradients
            self.gradient = gradient if self.gradient is None else self.gradient + gradient

    def entries(self) -> tuple[Tensor, Tensor | None, Tensor]:
        """The row of each entry [N], its sample [N] and its gradient [N, E].

        No samples: each has equally many entries, one's after another's.
        """
        assert self.gradient is not None
        rows = samples_first(self.indices, self.axis).flatten().long()
        gradients = samples_first(self.gradient, self.axis).flatten(0, -2)
        return rows, None, gradients

    def finish(self) -> None:
        """Measure the table, if this is its only use."""
        use = self.use
        if self.gradient is None or not use.record.measured:
            return
        rows, samples, gradients = self.entries()
        units = None if samples is None else samples.div(use.unit, rounding_mode="floor")
        if use.plan.want:
            touched, found = sample_moments.embedding(
                rows,
                gradients,
                count=use.units,
                units=units,
                skipped=self.padding_idx,
                want=use.plan.want,
                factor=use.factor,
            )
            if found.sum is not None:
                found = found._replace(sum=found.sum * use.factor)
            use.record.rows, use.record.moments = touched, found
        if use.plan.inner:
            use.inner = self._inner(rows, units, gradients)
        if use.plan.gram:
            count, skipped = use.units, self.padding_idx
            products = gram.embedding(rows, gradients, count=count, units=units, skipped=skipped)
            use.gram = products * use.factor**2

    def _inner(self, rows: Tensor, units: Tensor | None, gradients: Tensor) -> Tensor:
        """<table, g_u> of each unit, float64 [units]."""
        use = self.use
        products = (gradients * use.record.parameter.detach()[rows]).sum(1, dtype=torch.float64)
        products = torch.where(rows == self.padding_idx, 0.0, products) * use.factor
        if units is None:
            return products.view(use.units, -1).sum(1)
        return products.new_zeros(use.units).index_add_(0, units, products)

    def unit_gradients(self, units: slice) -> Tensor:
        """The gradients of some units [units, *table], dense, for a table that is used twice."""
        rows, samples, gradients = self.entries()
        table = self.use.record.parameter
        if samples is None:
            samples = torch.arange(len(rows), device=rows.device) * self.axis.samples // len(rows)
        place = samples.div(self.use.unit, rounding_mode="floor")
        inside = (place >= units.start) & (place < units.stop) & (rows != self.padding_idx)
        count = units.stop - units.start
        dense = gradients.new_zeros(count * len(table), gradients.shape[-1])
        at = (place[inside] - units.start) * len(table) + rows[inside]
        return dense.index_add_(0, at, gradients[inside]).view(count, *table.shape)


@dataclass
class BagLookUp(LookUp):
    """One call of ``F.embedding_bag``: the samples are followed through the bags."""

    mode: str = "sum"
    offsets: Tensor | None = None
    weights: Tensor | None = None

    def entries(self) -> tuple[Tensor, Tensor | None, Tensor]:
        """As for look-ups, of each entry of each bag."""
        assert self.gradient is not None
        d, rows, bags = self.gradient, self.indices.flatten().long(), len(self.gradient)
        if self.offsets is None:
            bag = torch.arange(bags, device=rows.device).repeat_interleave(self.indices.shape[1])
        else:
            starts = self.offsets[:bags].contiguous()
            places = torch.arange(len(rows), device=rows.device)
            bag = torch.searchsorted(starts, places, right=True) - 1
        factor = None if self.weights is None else self.weights.flatten().to(d.dtype)
        if self.mode == "mean":
            counted = (rows != self.padding_idx).to(d.dtype)
            factor = 1 / d.new_zeros(bags).index_add_(0, bag, counted).clamp_min(1)[bag]
        gradients = d[bag] if factor is None else d[bag] * factor[:, None]
        samples = bag.div(self.axis.inner, rounding_mode="floor") % self.axis.samples
        return rows, samples, gradients


def row_sparse(rows: Tensor, values: Tensor, shape: torch.Size) -> Tensor:
    """A sparse tensor of a table's shape with values [rows, E] in these rows, rising."""
    return torch.sparse_coo_tensor(
        rows[None], values, shape, device=values.device, is_coalesced=True, check_invariants=False
    )


def finish_all(look_ups: Iterable[LookUp]) -> None:
    """Measure the tables: those of one width that samples look one row up in, all at once."""
    alike: dict[Any, list[LookUp]] = {}
    for look_up in look_ups:
        use = look_up.use
        if look_up.gradient is None or not use.record.measured or len(use.record.uses) != 1:
            continue
        if use.record.uses[0] is not use:  # its module took over
            continue
        if look_up.single:
            kind = (look_up.gradient.shape, look_up.gradient.dtype, look_up.gradient.device)
            alike.setdefault(kind, []).append(look_up)
        else:
            look_up.finish()
    for group in alike.values():
        if len(group) == 1:
            group[0].finish()
        else:
            _finish_together(group)


def _finish_together(look_ups: list[LookUp]) -> None:
    """One call for several tables; norms and inner products are of all of them."""
    plan, records = look_ups[0].use.plan, [look_up.use.record for look_up in look_ups]
    rows = torch.stack([look_up.indices.long() for look_up in look_ups], 1)
    gradients = torch.stack([g for look_up in look_ups if (g := look_up.gradient) is not None], 1)
    if plan.want:
        found = sample_moments.tables(
            rows, gradients, unit=plan.unit, want=plan.want, factor=plan.factor
        )
        shared = SharedTables(found, plan.factor)
        for index, record in enumerate(records):
            record.shared, record.moments = (shared, index), SampleMoments()
    first = look_ups[0].use
    if plan.inner:
        looked_up = [
            r.parameter.detach()[u.indices] for r, u in zip(records, look_ups, strict=True)
        ]
        products = (torch.stack(looked_up, 1) * gradients).flatten(1).sum(1, dtype=torch.float64)
        first.inner = products.view(plan.units, -1).sum(1) * plan.factor
    if plan.gram:
        apart = rows + (rows.max() + 1) * torch.arange(len(records), device=rows.device)
        products = gram.embedding(apart.flatten(), gradients.flatten(0, 1), count=plan.units)
        first.gram = products * plan.factor**2
