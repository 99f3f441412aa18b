"""The loss of a batch, and what can be wrong with it."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from sigeo.errors import InputError, described, lacks_memory

LossFunction = Callable[..., Tensor]
Reduction = Literal["mean", "sum"]
"""What a loss does with the samples' losses. A weighted mean is neither."""

IGNORED = -100
"""The label of a sample that does not count, unless torch's losses are told of another."""

_KINDS: tuple[Reduction, ...] = ("mean", "sum")
_CUTS = 15
_LARGE = 1 << 24  # numbers of an output of which only two parts are looked at


def batch_loss(loss_fn: LossFunction, output: Any, labels: Any) -> Tensor:
    """The loss of a batch, of the output alone where there are no labels.

    Raises:
        InputError: There is no loss function, it gives not one number, labels are not as many as
            samples, one is no class of the output, or one of torch's losses takes no such output
            or labels.
        IndexError: The loss function's own.
        RuntimeError: Likewise.
        TypeError: Likewise.
        ValueError: Likewise.
    """
    if not callable(loss_fn) or isinstance(loss_fn, type):
        raise InputError(
            f"loss_fn: expected a function of (output, labels), got {described(loss_fn)}"
        )
    try:
        loss = loss_fn(output) if labels is None else loss_fn(output, labels)
    except IndexError as error:
        if "out of bounds" in str(error):  # as torch says of classes
            check_classes(output, labels)
        raise
    except (RuntimeError, TypeError, ValueError) as error:
        if lacks_memory(error):
            raise
        wrong = _misfit(loss_fn, output, labels, str(error))
        if wrong is None:
            raise
        raise InputError(wrong) from error
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        came = f"shape {list(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise InputError(f"loss_fn: expected one number, the loss of a batch, got {came}")
    return loss


def _misfit(loss_fn: LossFunction, output: Any, labels: Any, said: str) -> str | None:
    """What a loss that failed does not take of an output and labels, if that is known.

    One of torch's takes one tensor [samples, classes, ...], and classes [samples, ...] or values
    like it. Of another one it is known only that their numbers differ, where its error names them.

    Args:
        loss_fn: The loss function.
        output: Of the model.
        labels: Of the batch.
        said: The message of its error.
    """
    function = getattr(loss_fn, "func", loss_fn)  # of a partial
    of_torch = str(getattr(function, "__module__", "")).startswith("torch.nn.")
    rows = [len(t) for t in (output, labels) if isinstance(t, Tensor) and t.dim()]
    if len(set(rows)) == 2 and (of_torch or {*map(str, rows)} <= {*re.findall(r"\d+", said)}):
        return (
            f"labels: expected one for each of the {rows[0]} samples of the output, got {rows[1]}"
        )
    if not of_torch:
        return None
    name = getattr(function, "__name__", type(function).__name__)
    if not isinstance(output, Tensor):
        return (
            f"loss_fn: {name} takes an output that is one tensor, got {type(output).__name__}; "
            "pass a function of the model's output and the labels"
        )
    if labels is None:
        return f"batches: expected pairs (inputs, labels), as {name} takes, got inputs alone"
    if not isinstance(labels, Tensor):
        return f"labels: expected one tensor, as {name} takes, got {type(labels).__name__}"
    classes = [*output.shape[:1], *output.shape[2:]]
    if labels.dtype in (torch.int64, torch.uint8) and list(labels.shape) == classes:
        return None
    if labels.dtype == output.dtype and labels.shape == output.shape:
        return None
    return (
        f"labels: expected classes, torch.int64 {classes}, or values like the output's, "
        f"{output.dtype} {list(output.shape)}, got {labels.dtype} {list(labels.shape)}"
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
    classes = output.shape[1]
    outside = labels[((labels < 0) | (labels >= classes)) & (labels != IGNORED)]
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
    moved at random, as those of a fresh network may all have the same loss. Outputs and labels may
    be tuples, lists or dicts of tensors. A loss that cannot be taken apart passes, as where tensors
    have different numbers of rows, and one that is not finite.

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
    counts = {len(tensor) for tensor in _batched(output)}
    if len(counts) != 1 or counts != {len(tensor) for tensor in _batched(labels)}:
        return
    count = counts.pop()
    if count < 2 or not math.isfinite(float(loss.detach())):
        return
    found = None
    few = [t.dtype for t in _batched(output) if t.dtype in (torch.bfloat16, torch.float16)]
    large = sum(tensor.numel() for tensor in _batched(output)) > _LARGE
    if few:  # in so few digits rounding could be weights
        wide = tree_map_only(Tensor, lambda t: t.float() if t.dtype in few else t, output)
        found = _losses_of_cuts(loss_fn, wide, labels, count, large)
    rounding = 1e-4
    if found is None:
        rounding = max([rounding, *(2 * torch.finfo(dtype).eps for dtype in few)])
        found = _losses_of_cuts(loss_fn, output, labels, count, large)
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


def _batched(values: Any) -> list[Tensor]:
    """The tensors of an output or of labels that have dimensions, the samples' the first."""
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor) and leaf.dim()]


def _losses_of_cuts(
    loss_fn: LossFunction, output: Any, labels: Any, count: int, large: bool
) -> tuple[float, list[_Cut]] | None:
    """Of a batch, and of it cut in two; None for a loss that takes no such parts or outputs."""
    everything = slice(None)
    if not large:
        generator = torch.Generator().manual_seed(0)

        def moving(tensor: Tensor) -> Tensor:
            if not tensor.is_floating_point():
                return tensor
            noise = torch.randn(
                tensor.shape, generator=generator, dtype=torch.float32, device="cpu"
            )
            return tensor.detach() + noise.to(tensor)

        moved = tree_map_only(Tensor, moving, output)
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
    loss_fn: LossFunction, output: Any, labels: Any, part: slice | list[int]
) -> float | None:
    """Of some samples; None for a loss that takes no such part of a batch."""

    def taken(values: Any) -> Any:
        return tree_map_only(
            Tensor, lambda tensor: tensor[part] if tensor.dim() else tensor, values
        )

    try:
        with torch.no_grad():
            return float(loss_fn(taken(output), taken(labels)))
    except Exception:  # whatever it does with them
        return None
