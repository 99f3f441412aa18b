"""Fisher: what the loss would change by if channels were removed.

For a channel c of the output a of a convolution or a linear layer, half the mean over the samples b
of (the sum of a * dL/da over the positions of b)^2, in train mode; L is the mean loss of the batch,
so that a score falls with the square of the batch's size. Theis et al., "Faster Gaze Prediction
with Dense Networks and Fisher Pruning", arXiv 1801.05787, section 3; Turner et al., "BlockSwap",
ICLR 2020; as a proxy Abdelfattah et al., ICLR 2021, whose code gives every weight its channel's
number and so counts a channel as often as it has weights.

The sum over positions is the derivative of the loss by a factor of the channel, one a sample, where
the factor is 1. That is how it is computed, and what it is for a layer that is called several
times: calls count as positions do.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from sigeo.capture import LossFunction, batch_loss, call, preserved
from sigeo.capture.samples.mode import eager
from sigeo.errors import InputError
from sigeo.proxies.base import OnBatch, Outcome, Proxy, of_losses
from sigeo.proxies.registry import register

Weighting = Literal["fan_in", "none"]


def _channel_dim(layer: nn.Module, output: Tensor) -> int:
    """The dimension of the channels: a linear layer's last, a convolution's before its places."""
    places = len(layer.kernel_size) if isinstance(layer, _ConvNd) else 0
    return output.dim() - 1 - places


def _factor(layer: nn.Module, output: Tensor) -> Tensor:
    """A one for each sample and channel of a layer's output, to be multiplied with it."""
    channel = _channel_dim(layer, output)
    shape = [1] * output.dim()
    shape[channel] = output.shape[channel]
    if channel > 0:
        shape[0] = len(output)
    return output.new_ones(shape, requires_grad=True)


@contextmanager
def _scaled(layers: Sequence[nn.Module]) -> Iterator[dict[tuple[nn.Module, torch.Size], Tensor]]:
    """Multiply the layers' outputs with factors of one.

    Yields:
        The factors by layer and shape, as the layers are called.
    """
    factors: dict[tuple[nn.Module, torch.Size], Tensor] = {}

    def scale(layer: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        new = _factor(layer, output)
        return output * factors.setdefault((layer, new.shape), new)

    handles = [layer.register_forward_hook(scale) for layer in layers]
    try:
        yield factors
    finally:
        for handle in handles:
            handle.remove()


def _information(layer: nn.Module, derivative: Tensor, weighting: Weighting) -> Tensor:
    """Of all channels of a layer, from the derivatives by its factors."""
    channels = derivative.shape[_channel_dim(layer, derivative)]
    by_sample = derivative.double().reshape(-1, channels)
    weight: Any = layer.weight
    often = weight.numel() // channels if weighting == "fan_in" else 1
    return 0.5 * often * by_sample.square().mean(0).sum()


def _fisher(
    model: nn.Module, inputs: Any, labels: Any, loss_fn: LossFunction, weighting: Weighting
) -> Outcome:
    layers = [m for m in model.modules() if isinstance(m, (_ConvNd, nn.Linear))]
    with preserved(model, parameters=False), eager(), _scaled(layers) as factors:
        model.train()
        loss = batch_loss(loss_fn, call(model, inputs), labels)
        if not factors or not loss.requires_grad:
            note = "the loss is computed from no convolution or linear layer"
            return Outcome(math.nan, {}, (note,))
        grads = torch.autograd.grad(loss, list(factors.values()), allow_unused=True)
    parts = [
        _information(layer, grad, weighting)
        for (layer, _), grad in zip(factors, grads, strict=True)
        if grad is not None
    ]
    missing = len(layers) - len({layer for layer, _ in factors})
    note = f"{missing} of {len(layers)} layers are not called as modules and count nothing"
    total = float(torch.stack(parts).sum()) if parts else 0.0
    return of_losses(Outcome(total, {}, (note,) if missing else ()), loss)


@register("fisher")
def fisher(*, weighting: Weighting = "fan_in") -> Proxy:
    """Fisher information of the channels.

    Args:
        weighting: "fan_in": a channel counts as often as it has weights, as in the published code;
            "none": once.

    Raises:
        InputError: Another weighting.
    """
    if weighting not in get_args(Weighting):
        raise InputError(f'weighting: must be "fan_in" or "none", got {weighting!r}')
    return Proxy(
        name="fisher",
        measurement=OnBatch(functools.partial(_fisher, weighting=weighting)),
        source="Theis et al., arXiv 1801.05787; Turner et al., ICLR 2020; Abdelfattah et al., "
        "ICLR 2021",
        cost="backward",
        labels=True,
        options={"weighting": weighting},
    )
