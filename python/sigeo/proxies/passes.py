"""What proxies share that run the model themselves: made-up weights and inputs, any outputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils.rnn import PackedSequence
from torch.utils._pytree import tree_leaves, tree_map_only

from sigeo.capture import select
from sigeo.errors import InputError


def summed(output: Any) -> Tensor:
    """The sum of all floating values in whatever a model returns.

    Raises:
        InputError: It has no tensor of floating values in tuples, lists or dicts.
    """
    parts = [
        t.sum() for t in tree_leaves(output) if isinstance(t, Tensor) and t.is_floating_point()
    ]
    if not parts:
        kind = type(output).__name__
        raise InputError(f"model: expected an output of real numbers, in a tensor, got {kind}")
    return torch.stack(parts).sum()


def real_inputs(inputs: Any, name: str) -> list[Tensor]:
    """The inputs that are real numbers, in order.

    Args:
        inputs: As a model takes them.
        name: Of the proxy that needs some.

    Raises:
        InputError: There is none, or they do not all have the samples as their first dimension.
    """
    found = [x for x in tree_leaves(inputs) if isinstance(x, Tensor) and x.is_floating_point()]
    if not found:
        raise InputError(f"{name}: needs inputs of real numbers, got none")
    if len({tuple(x.shape[:1]) for x in found}) > 1 or found[0].dim() == 0:
        shapes = ", ".join(str(list(x.shape)) for x in found)
        raise InputError(f"{name}: needs inputs with one row a sample, got shapes {shapes}")
    return found


def first_samples(inputs: Any, count: int) -> Any:
    """The first samples of a batch, with what has no dimension as it is: it is for all of them.

    Args:
        inputs: As a model takes them.
        count: How many.

    Raises:
        InputError: There is a packed sequence, whose samples lie across each other.
    """
    packed = tree_leaves(inputs, is_leaf=lambda part: isinstance(part, PackedSequence))
    if any(isinstance(part, PackedSequence) for part in packed):
        raise InputError("inputs: expected tensors of one row a sample, got a PackedSequence")
    return tree_map_only(Tensor, lambda x: x[:count] if x.dim() else x, inputs)


def normal(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Numbers of N(0, 1) on the CPU, the same whatever torch's default type is."""
    return torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu")


def gaussian(inputs: Any, generator: torch.Generator) -> Any:
    """Inputs of the same shapes and kinds drawn from N(0, 1); those of whole numbers as they are.

    Args:
        inputs: As a model takes them.
        generator: On the CPU, so that every device gets the same numbers.
    """

    def drawn(x: Tensor) -> Tensor:
        if not x.is_floating_point():
            return x
        return torch.empty_like(x).copy_(normal(x.shape, generator))

    return tree_map_only(Tensor, drawn, inputs)


def normalising(model: nn.Module) -> None:
    """Batch norm on the statistics of the batch, all else in evaluation mode: nothing is random."""
    model.eval()
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.train()


def draw_weights(
    model: nn.Module, generator: torch.Generator, std: Callable[[Tensor], float]
) -> None:
    """Draw the weights of convolutions and linear layers anew; no biases, norms that do nothing.

    Args:
        model: Whose parameters are written over.
        generator: On the CPU, so that every device gets the same numbers.
        std: The standard deviation for a weight; the mean is 0.
    """
    for weight in select(model, "layers").values():
        weight.copy_(normal(weight.shape, generator)).mul_(std(weight))
    for module in model.modules():
        parameters = dict(module.named_parameters(recurse=False))
        norm = isinstance(module, (_BatchNorm, nn.GroupNorm))
        if norm and "weight" in parameters:
            parameters["weight"].fill_(1)
        if (norm or isinstance(module, (_ConvNd, nn.Linear))) and "bias" in parameters:
            parameters["bias"].zero_()
