"""What a pass uses of each parameter, and what comes of it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sigeo.errors import InputError
from sigeo_ext.sample_moments import SampleMoments, Tables

if TYPE_CHECKING:
    from sigeo.capture.samples.calls import Call
    from sigeo.capture.samples.fallback import Fallback


@dataclass(frozen=True)
class View:
    """The part of a parameter that a view of it shows."""

    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int

    def fits(self, parameter: Tensor) -> bool:
        """Whether each of its entries is an entry of its own of a parameter without gaps."""
        dense = _extent(parameter.shape, parameter.stride()) == parameter.numel()
        return dense and _extent(self.size, self.stride) is not None

    def into(self, parameter: Tensor, values: Tensor) -> Tensor:
        """Values of the view in a tensor of the parameter's shape, zero elsewhere."""
        # In the parameter's own memory order, which the view's strides are of.
        whole = torch.empty_like(parameter, dtype=values.dtype).zero_()
        whole.as_strided(self.size, self.stride, self.offset).copy_(values)
        return whole


def _extent(size: Sequence[int], stride: Sequence[int]) -> int | None:
    """How far entries reach in memory; None where two of them are in one place."""
    reach = 0
    for step, entries in sorted(zip(stride, size, strict=True)):
        if entries == 0:
            return 0
        if entries > 1:
            if step <= reach:
                return None
            reach += step * (entries - 1)
    return reach + 1


@dataclass
class Record:
    """One parameter during one pass.

    Attributes:
        name: Qualified.
        parameter: Itself.
        uses: Each use that takes part, in order of the forward pass.
        measured: Whether it is asked about; if not, it only gets its ordinary gradient.
        moments: The statistics, once they are known.
        rows: The rows of the parameter that ``moments`` are of, rising; None for all.
        shared: What was measured of several tables at once, and which of them this one is.
        total: Its gradient in the whole backward pass, where a module runs again for it.
        partial: Whether look-ups in such a module leave their part out of ``total``.
    """

    name: str
    parameter: nn.Parameter
    measured: bool = True
    uses: list[Use] = field(default_factory=list)
    moments: SampleMoments | None = None
    rows: Tensor | None = None
    shared: tuple[SharedTables, int] | None = None
    total: Tensor | None = None
    partial: bool = False

    def arrived(self, gradient: Tensor | None) -> None:
        """The hook that keeps ``total``."""
        if gradient is None:  # a custom function said so
            return
        with torch._C.DisableTorchFunction():
            # A copy: autograd takes the gradient itself for ``.grad``, which hooks may change.
            self.total = gradient.clone() if self.total is None else self.total + gradient


@dataclass
class SharedTables:
    """The statistics of several embedding tables, cut up when somebody reads them.

    Attributes:
        found: Of all of them.
        factor: What turns `sum` from the ordinary gradient into that of the units' mean losses.
    """

    found: Tables
    factor: float

    @functools.cached_property
    def _first(self) -> list[int]:
        return self.found.first.tolist()

    def part(self, index: int) -> tuple[Tensor, SampleMoments]:
        """The touched rows of one table, and its statistics."""
        part = slice(self._first[index], self._first[index + 1])
        values = {
            name: value[index] if name == "sq_norm" else value[part]
            for name, value in self.found.moments._asdict().items()
            if value is not None
        }
        if "sum" in values:
            values["sum"] = values["sum"] * self.factor
        return self.found.rows[part], SampleMoments(**values)


@dataclass
class Plan:
    """What is measured.

    Attributes:
        want: Statistics of each parameter.
        inner: Whether <theta, g_u> is wanted.
        gram: Whether <g_u, g_v> is wanted.
        unit: Samples of a unit.
        grads: Whether ``.grad`` is filled.
        mean: Whether the loss is the mean of the samples' losses; else it is their sum.
        samples: Of the batch.
    """

    want: tuple[str, ...]
    inner: bool
    gram: bool
    unit: int
    grads: bool
    mean: bool
    samples: int = 0

    @functools.cached_property
    def asked(self) -> tuple[str, ...]:
        """What the kernels are asked for: also the ordinary gradient, if ``.grad`` is filled."""
        return tuple(sorted({*self.want, *self.asked_anyway}))

    @property
    def measures(self) -> bool:
        """Whether anything is; if not, samples are followed and that is all."""
        return bool(self.want) or self.inner or self.gram

    @property
    def asked_anyway(self) -> tuple[str, ...]:
        """What they are asked for of a parameter that is not measured."""
        return ("sum",) if self.grads else ()

    @property
    def factor(self) -> float:
        """What turns a unit's share of the loss's gradient into the gradient of its mean loss."""
        return (self.samples if self.mean else 1) / self.unit

    @property
    def units(self) -> int:
        """How many the batch has."""
        return self.samples // self.unit


Rows = Callable[[slice], Tensor]


@dataclass
class Use:
    """One use of a parameter by one argument of one call.

    Attributes:
        record: The parameter's.
        view: The part used; None for the whole.
        shape: Of the argument.
        plan: What is measured.
        serial: Counts the uses of a pass.
        session: Whose pass it is; None where the use was not noted, as in a reentrant checkpoint.
        rows: After the backward pass, if the parameter is used more than once: the units' gradients
            of the whole parameter, [units of the slice, *shape].
        inner: <theta, g_u> of this use, [units].
        gram: <g_u, g_v> of this use, [units, units].
        waiting: The samples' gradients [samples, *shape], until the backward pass has ended.
        gram_waiting: The units' gradients [units, size], likewise, for `gram`.
        again: The call of a module that runs again, if it is that.
        replaced: Whether a module that runs again stands for it.
    """

    record: Record
    view: View | None
    shape: tuple[int, ...]
    plan: Plan
    serial: int = 0
    session: Any = None
    rows: Rows | None = None
    inner: Tensor | None = None
    gram: Tensor | None = None
    waiting: Tensor | None = None
    gram_waiting: Tensor | None = None
    again: Fallback | None = None
    replaced: bool = False

    @property
    def want(self) -> tuple[str, ...]:
        """Statistics to ask of a kernel."""
        return self.plan.asked if self.record.measured else self.plan.asked_anyway

    @property
    def unit(self) -> int:
        """Samples of a unit."""
        return self.plan.unit

    @property
    def units(self) -> int:
        """How many there are."""
        return self.plan.units

    @property
    def factor(self) -> float:
        """What turns a unit's share into the gradient of its mean loss; see `Plan.factor`."""
        return self.plan.factor

    def backward(
        self,
        call: Call,
        argument: str,
        value: Tensor,
        x: Tensor,
        d: Tensor,
        dx: Tensor | None,
        saved: Sequence[Tensor],
    ) -> Tensor | None:
        """Measure, and return the ordinary gradient of the argument.

        Args:
            call: Where the use is.
            argument: Which one it is.
            value: The parameter, or the view of it.
            x: The call's input.
            d: The gradient of its output.
            dx: The gradient of its input, if it was needed.
            saved: What the call's forward pass kept.

        Raises:
            InputError: The call's first forward pass was hidden by a reentrant checkpoint.
        """
        plan, measured = self.plan, self.record.measured
        if self.session is None:
            raise InputError(
                "capture: checkpoint(..., use_reentrant=True) hides its first forward pass; "
                "expected use_reentrant=False"
            )
        self.session.backward_begun()
        if measured and (self.replaced or len(self.record.uses) > 1):
            self.rows = lambda units: self._whole(
                call.unit_gradients(argument, x, d, saved, units, plan.unit)
            )
            if not plan.grads and not self.replaced:  # of those that are, the sum is checked
                return None
            batch = call.unit_gradients(argument, x, d, saved, slice(0, 1), plan.samples)
            return batch[0].to(value.dtype)
        if plan.inner and measured:
            self.inner = call.inner(argument, value, x, d, dx, saved, plan) * plan.factor
        if plan.gram and measured:
            products = call.gram(self, argument, x, d, saved)
            self.gram = None if products is None else products * plan.factor**2
        if not self.want:
            return None
        moments = call.measure(self, argument, x, d, saved)
        gradient = moments.sum
        if gradient is not None and gradient.dtype != value.dtype:
            gradient = gradient.to(value.dtype)
        if not measured or self.waiting is not None:
            return gradient
        if self.view is not None:
            parameter = self.record.parameter
            whole = {
                name: self.view.into(parameter, values)
                for name, values in moments._asdict().items()
                if values is not None and name != "sq_norm"
            }
            moments = moments._replace(**whole)
        if "sum" not in plan.want:
            moments = moments._replace(sum=None)  # autograd keeps the only reference: no copy
        elif moments.sum is not None:
            moments = moments._replace(sum=moments.sum * plan.factor)
        self.record.moments = moments
        return gradient if plan.grads else None

    def _whole(self, rows: Tensor) -> Tensor:
        if self.view is None:
            return rows
        return torch.stack([self.view.into(self.record.parameter, row) for row in rows])


def flat(rows: Tensor) -> Tensor:
    """[units, *shape] as [units, size], also of parameters that are one number."""
    return rows.unsqueeze(-1).flatten(1)
