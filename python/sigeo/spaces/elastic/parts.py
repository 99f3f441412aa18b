"""Which part of a super-weight a smaller network has: told by the shapes alone.

Channels and features are the first ones, kernels the centre, as in slimmable networks (Yu et al.,
ICLR 2019), once-for-all networks (Cai et al., ICLR 2020) and AutoFormer (Chen et al., ICCV 2021).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.dropout import _DropoutNd

from sigeo.errors import InputError


def part(whole: Tensor, shape: Sequence[int]) -> Tensor:
    """The view of a super-weight with the shape of a smaller one.

    Args:
        whole: [outputs, inputs, *kernel], or fewer dimensions.
        shape: Of the part; as many dimensions, none larger.
    """
    for dim, size in enumerate(shape):
        if size != whole.shape[dim]:
            begin = (whole.shape[dim] - size) // 2 if dim > 1 else 0
            whole = whole.narrow(dim, begin, size)
    return whole


def shared_whole(shared: Mapping[str, Tensor], name: str, shape: Sequence[int]) -> Tensor:
    """The shared weight that has a part for a network's parameter of this name and shape.

    Raises:
        InputError: The largest network has no such parameter, or a smaller one.
    """
    whole = shared[name] if name in shared else torch.empty(0)
    sizes = list(whole.shape)
    if len(shape) != len(sizes) or any(a > b for a, b in zip(shape, sizes, strict=True)):
        has = sizes if name in shared else "none"
        raise InputError(
            f"space: {name} of shape {list(shape)} is no part of the largest network's, which is "
            f"{has}"
        )
    return whole


def shared_part(shared: Mapping[str, Tensor], name: str, shape: Sequence[int]) -> Tensor:
    """The view of a shared weight that a network's parameter of this name and shape is.

    Raises:
        InputError: As `shared_whole`.
    """
    return part(shared_whole(shared, name, shape), shape)


class Place(NamedTuple):
    """A parameter of a network.

    Attributes:
        name: Its qualified name.
        module: That has it.
        attribute: Its name there.
        value: The parameter.
    """

    name: str
    module: nn.Module
    attribute: str
    value: nn.Parameter

    @property
    def is_layer(self) -> bool:
        """Whether it is the weight of a convolution or linear layer."""
        return self.attribute == "weight" and isinstance(self.module, (_ConvNd, nn.Linear))


def places(network: nn.Module) -> Iterator[Place]:
    """The parameters of a network.

    Yields:
        Each, in the network's order.
    """
    for prefix, module in network.named_modules():
        for attribute, value in module.named_parameters(recurse=False):
            yield Place(f"{prefix}.{attribute}" if prefix else attribute, module, attribute, value)


def pieces(network: nn.Module) -> dict[str, nn.Module]:
    """The pieces of a chain by name, one that stands at several places at each of them."""
    return {name: piece for name, piece in network._modules.items() if piece is not None}


def draws(network: nn.Module) -> bool:
    """Whether a pass in train mode draws random numbers."""
    return any(
        isinstance(module, nn.RReLU) or (isinstance(module, _DropoutNd) and module.p > 0)
        for module in network.modules()
    )


@torch.no_grad()
def materialise(skeleton: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
    """Give a network on the device "meta" memory, norms with the values that they start from.

    Other parameters have any values. No random number is drawn.
    """
    skeleton.to(dtype).to_empty(device=device)
    for module in skeleton.modules():
        if isinstance(module, (_BatchNorm, nn.LayerNorm)):
            module.reset_parameters()
