"""<theta, g_b> of every sample, from one forward pass with a tangent.

The derivative of the loss of sample b along theta is the inner product of theta with that sample's
gradient, so one forward-mode pass with tangent theta gives all of a batch; no gradient is formed.
With batch norm in batch mode the loss of a sample is taken as a function of the weights for this
batch, the other samples included.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.autograd.forward_ad as forward_ad
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only

from sigeo.capture.batches import call
from sigeo.capture.losses import batch_loss, check_reduction
from sigeo.capture.process_setting import PLAIN_ATTENTION
from sigeo.capture.state import run_with
from sigeo.errors import InputError
from sigeo.kinds import named_arguments

# torch has one level of forward-mode derivatives in a process, whichever thread asks for it.
_level = threading.RLock()
if hasattr(os, "register_at_fork"):  # not on every system; else a child could wait for no thread
    os.register_at_fork(
        before=_level.acquire, after_in_parent=_level.release, after_in_child=_level.release
    )


class _Called(nn.Module):
    """A model that takes the inputs of a batch as one argument, for `run_with`."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, inputs: Any) -> Any:
        return call(self.model, inputs)


class _ContiguousGroupNorm(TorchFunctionMode):
    """Group norm gets contiguous inputs: its forward derivative fails on others (torch 2.13)."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        named = kwargs or {}
        if func in (F.group_norm, torch.group_norm):
            if args:
                args = (args[0].contiguous(), *args[1:])
            else:
                named = {**named, "input": named["input"].contiguous()}
        return func(*args, **named)


@named_arguments("sample_inner_products")
def sample_inner_products(
    model: nn.Module, loss_fn: Callable[..., Tensor], inputs: Any, labels: Any
) -> Tensor:
    """Inner product of all trainable parameters with each sample's gradient.

    Args:
        model: Any module whose operations have forward derivatives.
        loss_fn: (output, labels) to the mean or the sum of the samples' losses; called for one
            sample at a time.
        inputs: Of one batch.
        labels: Of one batch [B, ...].

    Returns:
        float64 [B].

    Raises:
        InputError: There are no labels, the loss weighs or mixes samples, the model has an
            operation without forward derivative, or its output has no rows that are the samples'.
        RuntimeError: The model's own.
    """
    if labels is None:
        raise InputError("batches: expected pairs (inputs, labels), got inputs alone")
    count = _samples(labels)
    buffers = {f"model.{name}": b.clone() for name, b in model.named_buffers()}
    with torch.no_grad(), _level, forward_ad.dual_level():
        duals = {
            f"model.{name}": forward_ad.make_dual(p.detach(), p.detach())
            for name, p in model.named_parameters()
            if p.requires_grad
        }
        try:
            with PLAIN_ATTENTION, _ContiguousGroupNorm():
                output = run_with(_Called(model), {**duals, **buffers}, (inputs,))
            _check_tensors(output)
            loss = batch_loss(loss_fn, output, labels)
            check_reduction(loss_fn, output, labels, loss, None)
            _check_rows(output, count)
            losses = [loss_fn(_sample(output, b), _sample(labels, b)) for b in range(count)]
        except RuntimeError as error:
            # Some derivatives are there and fail: weight norm over all dimensions (torch 2.13).
            lacking = isinstance(error, NotImplementedError) or "forward grad" in str(error)
            said = str(error).splitlines()
            if not lacking or not said:  # a model's own error may say nothing
                raise
            raise InputError(f"model: {said[0]}") from error
        tangent = forward_ad.unpack_dual(torch.stack(losses)).tangent
        if tangent is None:
            return losses[0].new_zeros(count, dtype=torch.float64)
        products: Tensor = tangent.double().clone()
        return products


def _check_tensors(output: Any) -> None:
    """Check that an output can be cut into its samples.

    Raises:
        InputError: It is of a class of its own, whose tensors cannot be seen.
    """
    if not any(isinstance(leaf, Tensor) for leaf in tree_leaves(output)):
        raise InputError(
            "model: expected an output of tensors, in tuples, lists or dicts, got "
            f"{type(output).__name__}"
        )


def _check_rows(output: Any, count: int) -> None:
    """Check that an output has rows that are the samples'.

    Raises:
        InputError: It has others alone, such as two a sample.
    """
    rows = {len(leaf) for leaf in tree_leaves(output) if isinstance(leaf, Tensor) and leaf.dim()}
    if count not in rows:
        got = f"tensors of {sorted(rows)} rows" if rows else "one number"
        raise InputError(
            f"model: expected an output of one row for each of the {count} labels, got {got}"
        )


def _samples(labels: Any) -> int:
    """How many samples the labels are of: the first dimension of their tensors.

    Raises:
        InputError: There is no tensor among them, or they do not agree.
    """
    counts = {len(leaf) for leaf in tree_leaves(labels) if isinstance(leaf, Tensor) and leaf.dim()}
    if len(counts) != 1:
        got = f"tensors of {sorted(counts)} rows" if counts else "none"
        raise InputError(f"labels: expected tensors of one row a sample, got {got}")
    return counts.pop()


def _sample(values: Any, index: int) -> Any:
    """One sample of an output or of labels: of every tensor its row ``index``, numbers whole."""
    return tree_map_only(Tensor, lambda t: t[index : index + 1] if t.dim() else t, values)
