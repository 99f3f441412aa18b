"""Embedding tables and bags."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sigeo.capture.samples import embedding
from sigeo.capture.samples.axis import Axis, mark, where
from sigeo.capture.samples.parameters import note_copy
from sigeo.capture.samples.recognised.registry import handles
from sigeo.capture.samples.uses import View

if TYPE_CHECKING:
    from sigeo.capture.samples.session import Session


@handles(F.embedding)
def _embedding(
    session: Session,
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Any:
    uses = session.parameters.uses(weight=weight)
    if "weight" not in uses:
        return NotImplemented
    axis = session.where(input)
    given = (input, weight, padding_idx, max_norm, norm_type, scale_grad_by_freq, sparse)
    part = uses["weight"].view is not None  # rows of a part are no rows of the table
    regular = not (part or scale_grad_by_freq or sparse or max_norm is not None)
    if where(input) is None and regular:
        rows = _regular_rows(input, weight, padding_idx)
        if rows is not None:  # positions, say: what adds them adds a part of the table
            output: Tensor = torch.embedding(weight, input)
            mark(output, None)
            note_copy(output, weight, rows)
            session.graph.copied(output)
            return output
    if not isinstance(axis, Axis) or scale_grad_by_freq or max_norm is not None or part:
        return session.foreign(F.embedding, given, {})
    padding = -1 if padding_idx is None else padding_idx % len(weight)
    look_up = embedding.LookUp(axis, uses["weight"], input, padding)
    return _looked_up(session, torch.embedding, (weight, input, padding, False, sparse), look_up)


def _regular_rows(indices: Tensor, table: Tensor, padding_idx: int | None) -> View | None:
    """The view of a table that a look-up of constants shows, if their steps are all alike."""
    if not indices.numel() or not table.is_contiguous():
        return None
    indices = indices.cpu()  # all that follows reads values, of which a GPU would wait for each
    first, steps = indices.flatten()[0], []
    expected = first
    for dim, size in enumerate(indices.shape):
        step = indices.select(dim, 1).flatten()[0] - first if size > 1 else first - first
        shape = [1] * indices.dim()
        shape[dim] = size
        expected = expected + step * torch.arange(size, device="cpu").view(shape)
        steps.append(int(step))
    if min(steps, default=0) < 0 or not torch.equal(expected.expand_as(indices), indices):
        return None
    padding = None if padding_idx is None else padding_idx % len(table)
    if padding is not None and bool((indices == padding).any()):
        return None
    width = table.shape[1]
    strides = [
        step * width if size > 1 else 1 for step, size in zip(steps, indices.shape, strict=True)
    ]
    return View((*indices.shape, width), (*strides, 1), int(first) * width)


def _looked_up(
    session: Session, function: Any, given: tuple[Any, ...], look_up: embedding.LookUp
) -> Tensor:
    """The output of a look-up, with its gradient on the way to ``look_up``."""
    if not session.plan.grads:  # nobody wants the table's own gradient
        given = tuple(t.detach() if isinstance(t, Tensor) else t for t in given)
    y: Tensor = function(*given)
    if y.grad_fn is None:  # no leaf, which the model could not write to in place
        y = torch.ops.aten._unsafe_view(y.requires_grad_(), y.shape)
    assert y.grad_fn is not None
    if session.register([look_up.use]):
        session.look_ups.append(look_up)
        # A hook of the operation, at a quarter of a tensor's.
        y.grad_fn.register_prehook(lambda gradients: look_up.arrived(*gradients))
    mark(y, look_up.axis)
    return y


@handles(F.embedding_bag)
def _embedding_bag(
    session: Session,
    input: Tensor,
    weight: Tensor,
    offsets: Tensor | None = None,
    max_norm: float | None = None,
    norm_type: float = 2,
    scale_grad_by_freq: bool = False,
    mode: str = "mean",
    sparse: bool = False,
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> Any:
    uses = session.parameters.uses(weight=weight)
    if "weight" not in uses:
        return NotImplemented
    axis = session.where(input if offsets is None else offsets)
    given = (
        input, weight, offsets, max_norm, norm_type, scale_grad_by_freq, mode, sparse,
        per_sample_weights, include_last_offset, padding_idx,
    )  # fmt: skip
    odd = scale_grad_by_freq or max_norm is not None or mode == "max"
    if per_sample_weights is not None:
        apart = where(per_sample_weights) in (None, where(input))
        odd = odd or not apart or per_sample_weights.requires_grad
    odd = odd or uses["weight"].view is not None  # rows of a part are no rows of the table
    if not isinstance(axis, Axis) or axis.dim != 0 or odd:
        return session.foreign(F.embedding_bag, given, {})
    padding = -1 if padding_idx is None else padding_idx % len(weight)
    bags = embedding.BagLookUp(
        axis, uses["weight"], input, padding, mode=mode, offsets=offsets, weights=per_sample_weights
    )
    return _looked_up(session, F.embedding_bag, given, bags)
