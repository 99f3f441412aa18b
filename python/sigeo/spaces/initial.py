"""Initial weights that follow from a seed and the place of a module alone."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from sigeo.elastic import Tokens
from sigeo.kinds import checked_seed
from sigeo.seeds import seed_of

_TOKEN_SCALE = 0.02  # standard deviation; of vision transformers


def draw_weights(module: nn.Module, place: str, seed: int) -> None:
    """Give a layer the initial weights that belong to its place and the seed.

    Convolutions and linear layers have PyTorch's default, uniform within +-1/sqrt(fan in); tokens
    are normal. Other modules are left alone: norms start at scale 1 and shift 0.

    Raises:
        InputError: It is no seed, see `checked_seed`.
    """
    seed = checked_seed(seed)
    if not isinstance(module, (_ConvNd, nn.Linear, Tokens)):
        return
    generator = torch.Generator().manual_seed(seed_of(f"{seed}/{place}"))
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(_drawn(module, parameter, generator))


def _drawn(module: nn.Module, parameter: Tensor, generator: torch.Generator) -> Tensor:
    values = torch.empty(parameter.shape, device="cpu", dtype=torch.float32)
    if isinstance(module, Tokens):
        return values.normal_(0, _TOKEN_SCALE, generator=generator)
    weight: Tensor = module.weight  # type: ignore[assignment]
    bound = 1 / math.sqrt(weight[0].numel())
    return values.uniform_(-bound, bound, generator=generator)
