"""Batch norm by its policies, and the norms of single samples."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sigeo.capture.samples import scaled
from sigeo.capture.samples.axis import Axis, is_constant, mark
from sigeo.capture.samples.calls import Call
from sigeo.capture.samples.recognised.registry import handles, plain, run
from sigeo.errors import InputError

if TYPE_CHECKING:
    from sigeo.capture.samples.session import Session


class SamplesCoupled(InputError):
    """Batch norm uses the batch's statistics, and the policy is to refuse that."""

    FROZEN = 'frozen statistics (batch_norm="frozen" or model.eval())'
    WAYS = (
        FROZEN,
        'micro-batches (batch_norm="per_unit")',
        'the decomposition of the batch\'s gradient (batch_norm="contribution")',
    )

    def __init__(self, *ways: str):
        """The error, with what the caller would take: ``WAYS`` if nothing is said."""
        *others, last = ways or self.WAYS
        expected = f"{', '.join(others)} or {last}" if others else last
        super().__init__(
            "batch norm uses the statistics of the batch, so its samples have no gradients of "
            f'their own: expected {expected}, got batch_norm="refuse"'
        )


@handles(F.batch_norm)
def _batch_norm(
    session: Session,
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Any:
    axis, uses = session.where(input), session.parameters.uses(weight=weight, bias=bias)
    coupled = training or running_mean is None or running_var is None
    if not isinstance(axis, Axis):
        return session.foreign(
            F.batch_norm,
            (input, running_mean, running_var, weight, bias, training, momentum, eps),
            {},
        )
    if axis.dim != 0:
        session.cannot([use.record.name for use in uses.values()], "batch_norm along the samples")
        return NotImplemented
    shape = (input.shape[1],)
    policy = session.batch_norm
    if coupled and policy == "refuse":
        raise SamplesCoupled
    if coupled and policy == "frozen" and (running_mean is None or running_var is None):
        raise InputError(
            'batch_norm="frozen" needs running statistics; this batch norm tracks none '
            "(track_running_stats=False)"
        )
    computed = not plain(uses, weight=weight, bias=bias)
    if coupled and policy == "per_unit":
        if computed:
            raise InputError("batch_norm=per_unit: a weight or bias that is computed is not served")
        return _batch_norm_of_units(session, input, weight, bias, eps, axis)
    of_batch = coupled and policy != "frozen"
    if computed or not (of_batch or is_constant(running_mean, running_var)):
        given = (input, running_mean, running_var, weight, bias, of_batch, momentum, eps)
        return session.foreign(F.batch_norm, given, {})
    call: Call
    if of_batch:
        call = scaled.BatchNorm(axis, uses, shape, running_mean, running_var, momentum, eps)
    else:
        assert running_mean is not None and running_var is not None
        call = scaled.FrozenBatchNorm(axis, uses, shape, running_mean, running_var, eps)
    return run(session, call, input, weight, bias, axis)


def _batch_norm_of_units(
    session: Session, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, axis: Axis
) -> Any:
    """Statistics of each unit alone: a group norm over the unit's images and a channel.

    Raises:
        InputError: Units of a single value a channel, or samples that are stacked in rounds.
    """
    units, images = session.plan.units, session.plan.unit * axis.inner
    if axis.outer != 1:
        raise InputError("batch_norm=per_unit: samples that are stacked in rounds are not served")
    if session.plan.unit == 1 and axis.inner == 1 and x.dim() == 2:
        raise InputError("batch_norm=per_unit: a unit needs two values a channel, got one sample")
    parts = x.unflatten(0, (units, images)).movedim(1, 2)  # [units, C, images, ...]
    normed = F.group_norm(parts, parts.shape[1], eps=eps)
    y = normed.movedim(2, 1).flatten(0, 1)
    if weight is None and bias is None:
        mark(y, axis)
        return y
    call = _AffineOfUnits(axis, session.parameters.uses(weight=weight, bias=bias), (x.shape[1],))
    return run(session, call, y, weight, bias, axis)


class _AffineOfUnits(scaled.ChannelNorm):
    """The scale and shift behind a norm without them."""

    def forward(self, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> tuple[Any, ...]:
        """Scaled, shifted; a mean of 0 and a deviation of 1, as x is normalised already."""
        shape = (1, -1, *[1] * (x.dim() - 2))
        y = x if weight is None else x * weight.view(shape)
        y = y if bias is None else y + bias.view(shape)
        return y, x.new_zeros(x.shape[1]), x.new_ones(x.shape[1])

    def input_gradient(self, d: Tensor, x: Tensor, weight: Tensor | None, saved: Any) -> Tensor:
        """D times the scale."""
        return d if weight is None else d * weight.view(1, -1, *[1] * (x.dim() - 2))


@handles(F.layer_norm)
def _layer_norm(
    session: Session,
    input: Tensor,
    normalized_shape: Any,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Any:
    axis, uses = session.where(input), session.parameters.uses(weight=weight, bias=bias)
    lead = input.dim() - len(normalized_shape)
    if not uses or not plain(uses, weight=weight, bias=bias):
        return NotImplemented
    if not isinstance(axis, Axis) or axis.dim >= lead:
        return session.foreign(F.layer_norm, (input, normalized_shape, weight, bias, eps), {})
    call = scaled.LayerNorm(axis, uses, tuple(normalized_shape), eps)
    return run(session, call, input, weight, bias, axis)


@handles(F.rms_norm)
def _rms_norm(
    session: Session,
    input: Tensor,
    normalized_shape: Any,
    weight: Tensor | None = None,
    eps: float | None = None,
) -> Any:
    axis, uses = session.where(input), session.parameters.uses(weight=weight)
    lead = input.dim() - len(normalized_shape)
    if not uses:
        return NotImplemented
    if not isinstance(axis, Axis) or axis.dim >= lead:
        return session.foreign(F.rms_norm, (input, normalized_shape, weight, eps), {})
    eps = torch.finfo(input.dtype).eps if eps is None else eps
    call = scaled.RMSNorm(axis, uses, tuple(normalized_shape), eps)
    return run(session, call, input, weight, None, axis)


@handles(F.group_norm)
def _group_norm(
    session: Session,
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Any:
    axis, uses = session.where(input), session.parameters.uses(weight=weight, bias=bias)
    if not uses or not plain(uses, weight=weight, bias=bias):
        return NotImplemented
    if not isinstance(axis, Axis) or axis.dim != 0:
        return session.foreign(F.group_norm, (input, num_groups, weight, bias, eps), {})
    call = scaled.GroupNorm(axis, uses, (input.shape[1],), num_groups, eps)
    return run(session, call, input, weight, bias, axis)


@handles(F.instance_norm)
def _instance_norm(
    session: Session,
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Any:
    axis, uses = session.where(input), session.parameters.uses(weight=weight, bias=bias)
    given = (input, running_mean, running_var, weight, bias, use_input_stats, momentum, eps)
    if not isinstance(axis, Axis) or axis.dim != 0 or not plain(uses, weight=weight, bias=bias):
        return session.foreign(F.instance_norm, given, {})
    shape = (input.shape[1],)
    if not use_input_stats:
        if running_mean is None or running_var is None:  # torch says what is wrong
            return NotImplemented
        if not is_constant(running_mean, running_var):
            return NotImplemented
        frozen = scaled.FrozenBatchNorm(axis, uses, shape, running_mean, running_var, eps)
        return run(session, frozen, input, weight, bias, axis)
    if running_mean is not None:  # moves the running statistics, as the layer would
        with torch.no_grad():
            F.instance_norm(
                input.detach(), running_mean, running_var, None, None, True, momentum, eps
            )
    call = scaled.GroupNorm(axis, uses, shape, input.shape[1], eps)
    return run(session, call, input, weight, bias, axis)
