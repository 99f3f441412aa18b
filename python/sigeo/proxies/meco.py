"""MeCo: smallest eigenvalues of the correlations between channels.

Jiang et al., "MeCo: Zero-Shot NAS with One Data and Single Forward Pass via Minimum Eigenvalue of
Correlation", NeurIPS 2023, section 3: for one image from N(0, 1), the sum over the feature maps of
the smallest eigenvalue of the matrix of correlations between the map's channels, with its positions
as observations. Batch norms are on the statistics of the image and all else is in evaluation mode,
so that the seed alone decides.

A map [1, C, ...] with a constant channel, or with no more positions than channels, has the smallest
eigenvalue 0: rounding makes small numbers of either sign of it in the published code. That code
hooks every module, so that what a container returns counts once more for each container around it:
``modules="all"``. ``"leaves"`` counts the modules that contain no others.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from sigeo.capture import call, preserved
from sigeo.capture.samples.mode import eager
from sigeo.errors import InputError, lacks_memory
from sigeo.kinds import checked_seed
from sigeo.proxies.base import OnModel, Outcome, Proxy
from sigeo.proxies.correlations import correlations
from sigeo.proxies.passes import gaussian, normalising, real_inputs
from sigeo.proxies.registry import register

Modules = Literal["leaves", "all"]


def _smallest(channels: Tensor) -> Tensor:
    """The smallest eigenvalue of the correlations of the rows of [C, positions]."""
    zero = channels.new_zeros((), dtype=torch.float64)
    if channels.shape[1] <= len(channels):
        return zero
    matrix, constant = correlations(channels)
    if not matrix.isfinite().all():
        return zero + math.nan
    return zero if constant.any() else torch.linalg.eigvalsh(matrix)[0].clamp(min=0)


@contextmanager
def _watched(model: nn.Module, modules: Modules) -> Iterator[list[Tensor]]:
    """Take the smallest eigenvalue of what modules return.

    Yields:
        The eigenvalues, one a call that returns a feature map.
    """
    found: list[Tensor] = []

    def measure(module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.dim() > 2 and output.is_floating_point():
            found.append(_smallest(output[0].flatten(1)))

    handles = [
        module.register_forward_hook(measure)
        for module in model.modules()
        if modules == "all" or not module._modules
    ]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _meco(model: nn.Module, inputs: Any, modules: Modules, size: int | None, seed: int) -> Outcome:
    real_inputs(inputs, "meco")

    def one(x: Tensor) -> Tensor:
        if size is not None and x.dim() == 4 and x.is_floating_point():
            return x.new_zeros(1, x.shape[1], size, size)
        return x[:1] if x.dim() else x

    image = gaussian(tree_map_only(Tensor, one, inputs), torch.Generator().manual_seed(seed))
    try:
        with preserved(model, parameters=False), torch.no_grad(), eager():
            normalising(model)
            with _watched(model, modules) as found:
                call(model, image)
    except (RuntimeError, ValueError, AssertionError) as error:
        if isinstance(error, InputError) or lacks_memory(error):
            raise
        reason = " ".join(str(error).split())[:200]
        own = "" if size is None else f" of {size} x {size}; size=None takes the inputs' own"
        return Outcome(math.nan, {}, (f"does not run on one random image{own}: {reason}",))
    if not found:
        return Outcome(math.nan, {}, ("no module returns a feature map [1, channels, ...]",))
    values = torch.stack(found)
    terms = {"maps": float(len(values)), "maps_of_zero": float((values == 0).sum())}
    return Outcome(float(values.sum()), terms)


@register("meco")
def meco(*, modules: Modules = "leaves", size: int | None = 64, seed: int = 0) -> Proxy:
    """Sum of the smallest eigenvalues of channel correlations; needs no data but its channels.

    Args:
        modules: Whose outputs count: "leaves", modules that contain no others; "all", every one, as
            in the published code.
        size: Height and width of the image, 64 in the published code; None for those of the inputs.
        seed: Of the image.

    Raises:
        InputError: An option out of its range.
    """
    if modules not in get_args(Modules):
        raise InputError(f'modules: must be "leaves" or "all", got {modules!r}')
    if size is not None and size < 1:
        raise InputError(f"size: must be at least 1, got {size}")
    seed = checked_seed(seed)

    def function(model: nn.Module, inputs: Any) -> Outcome:
        return _meco(model, inputs, modules, size, seed)

    return Proxy(
        name="meco",
        measurement=OnModel(function),
        source="Jiang et al., MeCo, NeurIPS 2023, section 3, and published code",
        cost="forward",
        options={"modules": modules, "size": size, "seed": seed},
        images=lambda sizes: (0, 1),
    )
