"""The loss of a batch, and what can be wrong with it."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from sigeo.errors import InputError

LossFunction = Callable[..., Tensor]
Reduction = Literal["mean", "sum"]
"""What a loss does with the samples' losses. A weighted mean is neither."""

_KINDS: tuple[Reduction, ...] = ("mean", "sum")
_CUTS = 15
_LARGE = 1 << 24  # numbers of an output of which only two parts are looked at


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
    """Notice a loss that is no mean, or no sum, of the samples' losses, by those of parts.

    The batch is cut in two by sums of binary digits of the samples' numbers, odd or even, in many
    ways (all, of up to 16 samples): no unequal weights are shared out evenly each time. Outputs are
    moved at random, as those of a fresh network may all have the same loss. A loss that cannot be
    taken apart passes, and one that is not finite.

    Args:
        loss_fn: The loss function, which is called for each part of the batch.
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
    if not math.isfinite(float(loss.detach())):
        return
    found = None
    few = output.dtype in (torch.bfloat16, torch.float16)
    large = output.numel() > _LARGE
    if few:  # in so few digits rounding could be weights
        found = _losses_of_cuts(loss_fn, output.float(), labels, large)
    rounding = 1e-4
    if found is None:
        rounding = max(rounding, 2 * torch.finfo(output.dtype).eps) if few else rounding
        found = _losses_of_cuts(loss_fn, output, labels, large)
    if found is None:
        return
    value, cuts = found
    misfits = {kind: [c for c in cuts if not c.fits(kind, value, rounding)] for kind in _KINDS}
    if any(not misfits[kind] for kind in (_KINDS if reduction is None else (reduction,))):
        return
    reduction = reduction or "mean"
    other: Reduction = "sum" if reduction == "mean" else "mean"
    if not misfits[other]:
        advice = "" if fixed else f'; pass reduction="{other}"'
        raise InputError(
            f"reduction: loss_fn gives the {other} of the samples' losses, expected their "
            f"{reduction}{advice}"
        )
    raise InputError(
        f"loss_fn: expected the {reduction} of the samples' losses, got one that weighs samples "
        "(class weights, ignored labels), mixes them or is random: "
        f"{value:.6g} for a batch, {misfits[reduction][0].expected(reduction):.6g} from its parts"
    )


class _Cut(NamedTuple):
    """A batch cut in two: how many samples each part has, and its loss."""

    counts: tuple[int, int]
    losses: tuple[float, float]

    def expected(self, kind: Reduction) -> float:
        """The loss of the batch, if it is of a kind."""
        if kind == "sum":
            return sum(self.losses)
        weighed = (n * loss for n, loss in zip(self.counts, self.losses, strict=True))
        return sum(weighed) / sum(self.counts)

    def fits(self, kind: Reduction, value: float, rounding: float) -> bool:
        """Whether the loss of the batch is that; NaN, as of labels all ignored, fits nothing."""
        scale = max(abs(value), *map(abs, self.losses))
        return abs(value - self.expected(kind)) <= rounding * scale


def _losses_of_cuts(
    loss_fn: LossFunction, output: Tensor, labels: Tensor, large: bool
) -> tuple[float, list[_Cut]] | None:
    """Of a batch, and of it cut in two; None for a loss that takes no such parts or outputs."""
    count, everything = len(output), slice(None)
    if output.is_floating_point() and not large:
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(output.shape, generator=generator, dtype=torch.float32, device="cpu")
        moved = output.detach() + noise.to(output)
        value = _loss_of(loss_fn, moved, labels, everything)
        if value is not None and math.isfinite(value):
            output = moved
    value = _loss_of(loss_fn, output, labels, everything)
    digits = (count - 1).bit_length()
    masks: Sequence[int] = range(1, 1 << digits)
    if large:
        masks = masks[len(masks) // 2 :][:1]  # the last digit: two runs of samples
    elif len(masks) > _CUTS:
        masks = random.Random(0).sample(masks, _CUTS)
    cuts = []
    for mask in masks:
        first, second = (
            [i for i in range(count) if (i & mask).bit_count() % 2 == odd] for odd in (0, 1)
        )
        losses = [_loss_of(loss_fn, output, labels, part) for part in (first, second)]
        if losses[0] is not None and losses[1] is not None:
            cuts.append(_Cut((len(first), len(second)), (losses[0], losses[1])))
    return None if value is None or not cuts else (value, cuts)


def _loss_of(
    loss_fn: LossFunction, output: Tensor, labels: Tensor, part: slice | list[int]
) -> float | None:
    """Of some samples; None for a loss that takes no such part of a batch."""
    try:
        with torch.no_grad():
            return float(loss_fn(output[part], labels[part]))
    except Exception:  # whatever it does with them
        return None
