"""Statistics of a parameter from the units' own gradients, added up over its uses."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sigeo.capture.samples.fallback import CannotRunAgain
from sigeo.capture.samples.uses import Plan, Record, flat
from sigeo_ext.sample_moments import SampleMoments


def combined(record: Record, plan: Plan, max_bytes: int) -> SampleMoments:
    """Statistics of a parameter that is used several times, or in a module that runs again.

    As many units at a time as fit into ``max_bytes``. Products of pairs of units, where there is
    more than one block of them, need the blocks once more for each other.

    Raises:
        CannotRunAgain: A module cannot, or the units' gradients do not add up to the batch's.
    """
    uses = [use for use in record.uses if use.rows is not None]
    if not uses:
        return SampleMoments()
    at_once = max(1, max_bytes // max(1, 8 * record.parameter.numel()))
    if plan.gram:
        at_once = max(1, at_once // 4) if at_once < 2 * plan.units else plan.units
    found, total = _Statistics(record, plan), _Total(record, plan)
    starts = range(0, plan.units, at_once)

    def block(begin: int, first: bool) -> Tensor:
        units = slice(begin, min(plan.units, begin + at_once))
        parts = [use.rows(units) for use in uses if use.rows is not None]
        g: Tensor = sum(parts[1:], parts[0])
        if first:
            found.add(g)
            total.add(parts, g)
        return g

    if plan.gram:
        record.uses[0].gram = _gram(starts, block, plan)
        for use in record.uses[1:]:
            use.gram = None
    else:
        for begin in starts:
            block(begin, True)
    total.check()
    if plan.inner:
        record.uses[0].inner = torch.cat(found.inner)
        for use in record.uses[1:]:
            use.inner = None
    return found.moments()


def _gram(starts: range, block: Callable[[int, bool], Tensor], plan: Plan) -> Tensor:
    """<g_u, g_v> from the units' gradients, two blocks of units at a time."""
    strips: list[list[Tensor]] = [[] for _ in starts]
    for row, begin in enumerate(starts):
        left = flat(block(begin, row == 0)).double() * plan.factor
        strips[row].append(left @ left.t())
        for later, other in enumerate(starts[row + 1 :], row + 1):
            right = flat(block(other, row == 0)).double() * plan.factor
            strips[row].append(left @ right.t())
            strips[later].append(strips[row][-1].t())
    return torch.cat([torch.cat(strip, 1) for strip in strips])


class _Statistics:
    """Those of all units, from some units at a time."""

    def __init__(self, record: Record, plan: Plan):
        """Of no unit yet."""
        self._plan, self._parameter = plan, record.parameter.detach()
        double = self._parameter.dtype == torch.float64
        self._wide = torch.float64 if double else torch.float32
        zeros = torch.zeros_like(self._parameter, dtype=self._wide)
        self._sums = {name: zeros.clone() for name in plan.want if name != "sq_norm"}
        self._drift, self._origin = zeros, zeros  # of the mean, from the first unit
        self._units = 0
        self._norms: list[Tensor] = []
        self.inner: list[Tensor] = []

    def add(self, g: Tensor) -> None:
        """Take the gradients of the next units [units, *shape]."""
        plan, sums = self._plan, self._sums
        if not plan.want and not plan.inner:
            return
        g = g.to(self._wide) * plan.factor
        terms: dict[str, Callable[[Tensor], Tensor]] = {
            "sum": lambda g: g, "abs_sum": Tensor.abs, "sq_sum": Tensor.square,
            "sign_sum": lambda g: g.sign() + (g - g),
        }  # fmt: skip
        for name, term in terms.items():
            if name in sums:
                sums[name] += term(g).sum(0)
        before, self._units = self._units, self._units + len(g)
        if "m2" in sums:
            self._origin = self._origin if before else g[0].clone()
            deviation, share = g - self._origin, len(g) / self._units
            mean = deviation.mean(0)
            between = (mean - self._drift).square() * (before * share)
            sums["m2"] += (deviation - mean).square().sum(0) + between
            self._drift = self._drift + (mean - self._drift) * share
        if "sq_norm" in plan.want:
            self._norms.append(flat(g.square()).sum(1, dtype=torch.float64))
        if plan.inner:
            self.inner.append(flat(g * self._parameter).sum(1, dtype=torch.float64))

    def moments(self) -> SampleMoments:
        """What was asked for."""
        return SampleMoments(**self._sums, sq_norm=torch.cat(self._norms) if self._norms else None)


class _Total:
    """The sum of the units' gradients, which autograd's gradient of the batch must be.

    It is not if there is a use that nobody saw: outside of a module that runs again, or by
    something that the module left behind beside what it returned.
    """

    def __init__(self, record: Record, plan: Plan):
        """Of no unit yet."""
        self._uses = [use for use in record.uses if use.rows is not None]
        self._again = [use.again for use in self._uses if use.again is not None]
        self._batch = record.total if self._again and not record.partial else None
        # Without ordinary gradients, layers that are measured leave their part out.
        self._whole = plan.grads or len(self._again) == len(self._uses)
        self._units = plan.units
        self._sum: Tensor | None = None
        self._scale: Tensor | None = None

    def add(self, parts: list[Tensor], g: Tensor) -> None:
        """Take the next units' gradients [units, *shape], of each use and of all."""
        if self._batch is None:
            return
        if not self._whole:
            own = (p for p, u in zip(parts, self._uses, strict=True) if u.again is not None)
            g = torch.stack(list(own)).sum(0)
        part, scale = g.sum(0), g.abs().sum(0)
        self._sum = part if self._sum is None else self._sum + part
        self._scale = scale if self._scale is None else self._scale + scale

    def check(self) -> None:
        """Compare the two.

        Raises:
            CannotRunAgain: They differ by more than rounding.
        """
        if self._batch is None or self._sum is None or self._scale is None:
            return
        batch = self._batch.to_dense()
        wrong = (batch - self._sum).abs()
        wrong = wrong.masked_fill(~(batch.isfinite() & self._sum.isfinite()), 0.0)
        scale = torch.maximum(self._scale, batch.abs()).nan_to_num(0.0, 0.0).max()
        # Each unit's gradient may be too small for the parameter's precision.
        smallest = self._units * torch.finfo(batch.dtype).tiny
        allowed = max(call.allowed for call in self._again) * scale + smallest
        if wrong.max() > allowed and wrong.max() > sum(call.rounding() for call in self._again):
            raise CannotRunAgain(
                "its module runs again for each unit, and the units' gradients do not add up to "
                "the batch's: it has a use that is not seen, outside of the module, or by what "
                "the module leaves behind beside its output"
            )
