"""The loss of a batch, and what can be wrong with it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from sigeo.errors import InputError

LossFunction = Callable[..., Tensor]
Reduction = Literal["mean", "sum"]
"""What a loss does with the samples' losses. A weighted mean is neither."""


def batch_loss(loss_fn: LossFunction, output: Any, labels: Any) -> Tensor:
    """The loss of a batch, of the output alone where there are no labels.

    Raises:
        InputError: There is no loss function, it gives not one number, labels are not as many as
            samples, or one is no class of the output.
        IndexError: The loss function's own.
        ValueError: Likewise.
    """
    if not callable(loss_fn):
        raise InputError(f"loss_fn: expected a function of (output, labels), got {loss_fn!r}")
    try:
        loss = loss_fn(output) if labels is None else loss_fn(output, labels)
    except IndexError:
        check_classes(output, labels)
        raise
    except ValueError:  # as torch's of sizes that differ
        check_count(output, labels)
        raise
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        came = f"shape {list(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise InputError(f"loss_fn: expected one number, the loss of a batch, got {came}")
    return loss


def check_count(output: Any, labels: Any) -> None:
    """Look for labels that are not as many as the samples of an output [samples, ...].

    Raises:
        InputError: They are more or fewer.
    """
    if not isinstance(output, Tensor) or not isinstance(labels, Tensor):
        return
    if output.dim() and labels.dim() and len(output) != len(labels):
        raise InputError(
            f"labels: expected one for each of the {len(output)} samples of the output, "
            f"got {len(labels)}"
        )


def check_classes(output: Any, labels: Any) -> None:
    """Look for labels that no logits [samples, classes, ...] have.

    Raises:
        InputError: There is one.
    """
    if not isinstance(output, Tensor) or not isinstance(labels, Tensor) or output.dim() < 2:
        return
    if labels.is_floating_point():
        return
    classes, ignored = output.shape[1], -100  # torch's own label for "does not count"
    outside = labels[((labels < 0) | (labels >= classes)) & (labels != ignored)]
    if len(outside):
        raise InputError(f"labels: expected classes from 0 to {classes - 1}, got {int(outside[0])}")


def check_trainable(loss: Tensor) -> Tensor:
    """The loss, if there is anything to differentiate it by.

    Raises:
        InputError: There is not.
    """
    if not loss.requires_grad:
        raise InputError("model: the loss depends on no parameter that asks for a gradient")
    return loss


def check_reduction(
    loss_fn: LossFunction,
    output: Any,
    labels: Any,
    loss: Tensor,
    reduction: Reduction | None,
    *,
    fixed: bool = False,
) -> None:
    """Notice a loss that is no mean, or no sum, of the samples' losses by those of two halves.

    A loss that cannot be taken apart passes, and one that is not finite.

    Args:
        loss_fn: The loss function, which is called for each half of the batch.
        output: Of the model for the batch.
        labels: Of the batch.
        loss: Of the batch.
        reduction: What it is said to be; None for either.
        fixed: Whether the caller cannot say otherwise.

    Raises:
        InputError: The loss is of another kind.
    """
    whole = isinstance(output, Tensor) and isinstance(labels, Tensor) and output.dim() > 0
    if not whole or len(output) < 2 or labels.dim() == 0 or len(output) != len(labels):
        return
    count, half = len(output), len(output) // 2
    parts = [slice(None), slice(half), slice(half, None)]
    value, rounding, found = float(loss.detach()), 1e-4, None
    if not math.isfinite(value):
        return
    few = output.dtype in (torch.bfloat16, torch.float16)
    if few:  # in so few digits rounding could be weights
        found = _losses_of(loss_fn, output.float(), labels, parts)
    if found is None:
        rounding = max(rounding, 2 * torch.finfo(output.dtype).eps) if few else rounding
        halves = _losses_of(loss_fn, output, labels, parts[1:])
        if halves is None:
            return
        found = [value, *halves]
    value, first, second = found
    scale = max(abs(value), abs(first), abs(second))
    expected = {
        "mean": (half * first + (count - half) * second) / count,
        "sum": first + second,
    }
    fits = {kind: abs(value - e) <= rounding * scale for kind, e in expected.items()}
    if any(fits.values()) if reduction is None else fits[reduction]:
        return
    reduction = reduction or "mean"
    other = "sum" if reduction == "mean" else "mean"
    if fits[other]:
        advice = "" if fixed else f'; pass reduction="{other}"'
        raise InputError(
            f"reduction: loss_fn gives the {other} of the samples' losses, expected their "
            f"{reduction}{advice}"
        )
    raise InputError(
        f"loss_fn: expected the {reduction} of the samples' losses, got one that weighs samples "
        "(class weights, ignored labels), mixes them or is random: "
        f"{value:.6g} for a batch, {expected[reduction]:.6g} from its halves"
    )


def _losses_of(
    loss_fn: LossFunction, output: Tensor, labels: Tensor, parts: Sequence[slice]
) -> list[float] | None:
    """Of parts of a batch; None for a loss that takes no such parts, or outputs of one dtype."""
    try:
        with torch.no_grad():
            return [float(loss_fn(output[part], labels[part])) for part in parts]
    except Exception:  # whatever it does with them
        return None
