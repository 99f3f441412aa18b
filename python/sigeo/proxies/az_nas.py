"""AZ-NAS: az_expressivity, az_progressivity, az_trainability; complexity is the proxy flops.

Lee and Ham, "AZ-NAS: Assembling Zero-Cost Proxies for Network Architecture Search", CVPR 2024,
section 3, and the published code. Of the feature maps f_0, f_1, ... that the blocks of a network
return for inputs from N(0, 1), with weights from N(0, 2 / fan-in), no biases, norms without scale
and shift, batch norms on the statistics of the batch:

- expressivity: the sum of H_l, the entropy of the eigenvalues, divided by their sum, of the
  covariance of the channels over samples and positions;
- progressivity: the smallest H_l - H_(l-1);
- trainability: the mean of 2 - s - 1/s over the blocks but the first, s the largest singular value
  of E[g_in g_out^T] over samples and positions, where g_out is drawn from -1 and 1 and g_in is its
  gradient with respect to the block before; the positions of one of f_l become channels of f_(l-1)
  where a block strides. A block that changes nothing makes it -inf.

The published score is the sum of the logarithms of the ranks by these and by FLOPs, divided by the
number of candidates: it exists among candidates alone.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sigeo.capture import call, preserved
from sigeo.capture.samples.mode import eager
from sigeo.errors import InputError
from sigeo.kinds import checked_seed
from sigeo.proxies.base import OnModel, Outcome, Proxy
from sigeo.proxies.passes import draw_weights, gaussian, normalising, real_inputs
from sigeo.proxies.registry import register


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    """The children that are made of layers, those inside plain containers of such in their place.

    Yields:
        Each block.
    """
    for child in module.children():
        if not child._modules:
            continue
        made_of_blocks = any(part._modules for part in child.children())
        if type(child) in (nn.Sequential, nn.ModuleList) and made_of_blocks:
            yield from _blocks(child)
        else:
            yield child


class _Map(NamedTuple):
    """A feature map [B, C, H, W] as a block returns it, and as what follows gets it."""

    returned: Tensor
    leaf: Tensor


class _NoScore(Exception):
    """The blocks are not such as the score is of; the message says why."""


@contextmanager
def _watched(blocks: Sequence[nn.Module]) -> Iterator[list[_Map]]:
    """Keep the feature maps that blocks return, and cut the graph behind each of them.

    Yields:
        The maps in the order of the calls.
    """
    maps: list[_Map] = []

    def keep(module: nn.Module, inputs: Any, output: Any) -> Any:
        if not isinstance(output, Tensor) or output.dim() != 4:
            return output
        maps.append(_Map(output, output.detach().requires_grad_()))
        return maps[-1].leaf.clone()  # what follows may change it in place

    handles = [block.register_forward_hook(keep) for block in blocks]
    try:
        yield maps
    finally:
        for handle in handles:
            handle.remove()


def _by_position(x: Tensor) -> Tensor:
    """[B, C, H, W] to [B H W, C], float64."""
    return x.detach().double().permute(0, 2, 3, 1).flatten(0, 2)


def _entropy(features: Tensor) -> Tensor:
    """Of the eigenvalues of the channels' covariance; nan where they are all 0."""
    values = _by_position(features)
    centred = values - values.mean(0)
    covariance = centred.t() @ centred / len(values)
    if not covariance.isfinite().all():
        return values.new_tensor(math.nan)
    p = torch.linalg.eigvalsh(covariance).clamp(min=0)
    p /= p.sum()
    return torch.sum(-p * (p + 1e-8).log())


def _largest_singular(before: Tensor, after: Tensor, generator: torch.Generator) -> Tensor | None:
    """The largest singular value of a block between two maps; None if the block changes nothing.

    Raises:
        _NoScore: The blocks have no such value.
    """
    signs = torch.randint(0, 2, after.shape, generator=generator, device="cpu") * 2 - 1
    g_out = signs.to(after)
    g_in: Tensor | None = None
    if after.requires_grad:
        (g_in,) = torch.autograd.grad(after, before, g_out, allow_unused=True)
    if g_in is None:
        raise _NoScore("a block's output is not computed from that of the block before it")
    if g_in.shape == g_out.shape and torch.equal(g_in, g_out):
        return None
    inside, outside = list(before.shape[2:]), list(after.shape[2:])
    stride = inside[0] // outside[0]
    if inside != [stride * size for size in outside]:
        raise _NoScore(f"a block goes from positions {inside} to {outside}, by no whole stride")
    x, y = _by_position(F.pixel_unshuffle(g_in, stride)), _by_position(g_out)
    matrix = x.t() @ y / len(y)
    if not matrix.isfinite().all():
        return y.new_tensor(math.nan)
    largest: Tensor = torch.linalg.matrix_norm(matrix, 2)
    return largest


def _expressivity(maps: Sequence[_Map], generator: torch.Generator) -> float:
    return float(torch.stack([_entropy(m.returned) for m in maps]).sum())


def _progressivity(maps: Sequence[_Map], generator: torch.Generator) -> float:
    return float(torch.stack([_entropy(m.returned) for m in maps]).diff().min())


def _trainability(maps: Sequence[_Map], generator: torch.Generator) -> float:
    scores = []
    for before, after in itertools.pairwise(maps):
        s = _largest_singular(before.leaf, after.returned, generator)
        scores.append(-math.inf if s is None else float(2 - s - 1 / (s + 1e-6)))
    return sum(scores) / len(scores)


def _proxy(
    name: str,
    term: Callable[[Sequence[_Map], torch.Generator], float],
    blocks: Sequence[str] | None,
    seed: int,
    *,
    gradients: bool,
) -> Proxy:
    """A component as a proxy.

    Raises:
        InputError: ``blocks`` is a text, or ``seed`` is no whole number from 0 to 2^63 - 1.
    """
    if isinstance(blocks, str):
        raise InputError(f"blocks: expected a list of names, got the text {blocks!r}")
    seed = checked_seed(seed)

    def function(model: nn.Module, inputs: Any) -> Outcome:
        real_inputs(inputs, name)
        known = dict(model.named_modules())
        unknown = [block for block in blocks or () if block not in known]
        if unknown:
            raise InputError(f"blocks: must be names of modules of the model, got {unknown[0]!r}")
        chosen = list(_blocks(model)) if blocks is None else [known[block] for block in blocks]
        generator = torch.Generator().manual_seed(seed)
        with preserved(model, parameters=True), eager(), _watched(chosen) as maps:
            normalising(model)
            with torch.no_grad():
                draw_weights(model, generator, lambda w: math.sqrt(2 / w[0].numel()))
            x = gaussian(inputs, generator)
            with torch.set_grad_enabled(gradients):
                call(model, x)
            if len(maps) < 2:
                note = f"{len(maps)} blocks return feature maps [B, C, H, W], needed are 2 or more"
                return Outcome(math.nan, {}, (f"{note}; blocks=[NAMES] says which they are",))
            try:
                value = term(maps, generator)
            except _NoScore as error:
                return Outcome(math.nan, {}, (str(error),))
        notes = ("a block returns what it gets",) if value == -math.inf else ()
        return Outcome(value, {"blocks": float(len(maps))}, notes)

    return Proxy(
        name=name,
        measurement=OnModel(function),
        source="Lee and Ham, AZ-NAS, CVPR 2024 (arXiv 2403.19232), section 3, and published code",
        cost="backward" if gradients else "forward",
        options={"blocks": None if blocks is None else list(blocks), "seed": seed},
    )


@register("az_expressivity")
def az_expressivity(*, blocks: Sequence[str] | None = None, seed: int = 0) -> Proxy:
    """How evenly features spread over their channels, summed over blocks.

    Args:
        blocks: Names of the modules whose outputs count; by default the model's children that are
            made of layers, and those inside plain `torch.nn.Sequential` and `ModuleList` of such.
        seed: Of weights and inputs.

    Raises:
        InputError: ``blocks`` is a text, or ``seed`` is no whole number from 0 to 2^63 - 1.
    """
    return _proxy("az_expressivity", _expressivity, blocks, seed, gradients=False)


@register("az_progressivity")
def az_progressivity(*, blocks: Sequence[str] | None = None, seed: int = 0) -> Proxy:
    """The least growth of a block's entropy (as of `az_expressivity`) over the block before.

    Args:
        blocks: As of `az_expressivity`.
        seed: Of weights and inputs.

    Raises:
        InputError: As `az_expressivity`.
    """
    return _proxy("az_progressivity", _progressivity, blocks, seed, gradients=False)


@register("az_trainability")
def az_trainability(*, blocks: Sequence[str] | None = None, seed: int = 0) -> Proxy:
    """How near blocks are to keeping the size of gradients: 0 at best.

    Args:
        blocks: As of `az_expressivity`.
        seed: Of weights, inputs and gradients.

    Raises:
        InputError: As `az_expressivity`.
    """
    return _proxy("az_trainability", _trainability, blocks, seed, gradients=True)
