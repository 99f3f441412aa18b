"""Parameters so small that every sample's gradient is held: biases, scales and shifts.

They are many, and a kernel's work on one is less than what a call costs. So the samples' gradients
wait for the end of the backward pass, and those of one shape are measured together; for the Gram
matrix of the whole model those of all shapes. The ordinary gradient cannot wait: autograd takes it
from the backward pass of the layer.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from sigeo.capture.samples.uses import Use, flat
from sigeo_ext import gram, sample_moments
from sigeo_ext.sample_moments import SampleMoments

# Entries of all samples' gradients of a parameter that may wait: 256 KiB in float32.
_WAITING = 1 << 16


def of_rows(rows: Tensor, use: Use) -> SampleMoments:
    """Statistics of gradients that are there, [samples, *shape]; of those that wait only `sum`."""
    want = use.want
    if use.record.measured and use.plan.want and use.view is None and _waits(rows, use):
        use.waiting = rows
        use.session.waiting.append(use)
        want = use.plan.asked_anyway
    if not want:
        return SampleMoments()
    if want == ("sum",):  # the ordinary gradient alone is a sum like any other
        return SampleMoments(sum=rows.sum(0, dtype=torch.promote_types(rows.dtype, torch.float32)))
    return sample_moments.rows(rows, unit=use.unit, want=want, factor=use.factor)


def _waits(rows: Tensor, use: Use) -> bool:
    """Whether waiting pays: little is held, and no call is made for the ordinary gradient alone."""
    lonely = use.plan.grads and use.session.shapes[use.shape] < 2
    return rows.numel() <= _WAITING and not lonely


def finish_rows(uses: Iterable[Use]) -> None:
    """Measure the parameters whose gradients have waited, those of one shape at once."""
    alike: dict[Any, list[tuple[Use, Tensor]]] = {}
    for use in uses:
        rows, use.waiting = use.waiting, None
        if rows is not None:
            alike.setdefault((rows.shape, rows.dtype, rows.device), []).append((use, rows))
    for group in alike.values():
        plan = group[0][0].plan
        found = sample_moments.rows(
            torch.cat([rows for _, rows in group]),
            unit=plan.unit,
            segments=len(group),
            want=plan.want,
            factor=plan.factor,
        )
        if found.sum is not None:
            found = found._replace(sum=found.sum * plan.factor)
        columns = [[None] * len(group) if v is None else _of_each(v, len(group)) for v in found]
        for (use, _), *values in zip(group, *columns, strict=True):
            use.record.moments = SampleMoments(*values)


def gram_of_rows(rows: Tensor, use: Use) -> Tensor | None:
    """<g_u, g_v> of gradients that are there, [units, *shape]; None if they wait."""
    if rows.numel() > _WAITING:
        return gram.rows(rows)
    use.gram_waiting = flat(rows)
    return None


def finish_gram(uses: Iterable[Use]) -> None:
    """Give one of the uses whose gradients have waited the sum of all their products."""
    alike: dict[Any, list[Use]] = {}
    for use in uses:
        rows = use.gram_waiting
        assert rows is not None
        alike.setdefault((rows.dtype, rows.device), []).append(use)
    for group in alike.values():
        rows = torch.cat([r for use in group if (r := use.gram_waiting) is not None], 1)
        group[0].gram = gram.rows(rows) * group[0].factor ** 2


def _of_each(statistic: Tensor, count: int) -> Sequence[Tensor]:
    """The part of each parameter of [parameters, *shape], or of norms [parameters * units]."""
    return (statistic.view(count, -1) if statistic.dim() == 1 else statistic).unbind()
