"""From plain layers to elastic ones, and from a smaller layer to the choice that it is."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from torch import nn
from torch.nn.modules.conv import _ConvNd

from sigeo.elastic.base import Elastic, refuse_hooks
from sigeo.elastic.convolution import ElasticConv1d, ElasticConv2d, ElasticConv3d, padding_of
from sigeo.elastic.linear import ElasticEmbedding, ElasticLinear
from sigeo.elastic.norms import (
    ElasticBatchNorm1d,
    ElasticBatchNorm2d,
    ElasticBatchNorm3d,
    ElasticLayerNorm,
)
from sigeo.elastic.tokens import ElasticTokens, Tokens
from sigeo.kinds import named_arguments

_CONVOLUTION = (
    "in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups",
    "padding_mode",
)  # fmt: skip
_EMBEDDING = (
    "num_embeddings", "embedding_dim", "padding_idx", "max_norm", "sparse", "scale_grad_by_freq",
)  # fmt: skip
_BATCH_NORM = ("num_features", "eps", "momentum", "affine", "track_running_stats")

_TWINS: dict[type[nn.Module], tuple[type[Elastic], tuple[str, ...]]] = {
    nn.Conv1d: (ElasticConv1d, _CONVOLUTION),
    nn.Conv2d: (ElasticConv2d, _CONVOLUTION),
    nn.Conv3d: (ElasticConv3d, _CONVOLUTION),
    nn.Linear: (ElasticLinear, ("in_features", "out_features")),
    nn.Embedding: (ElasticEmbedding, _EMBEDDING),
    nn.BatchNorm1d: (ElasticBatchNorm1d, _BATCH_NORM),
    nn.BatchNorm2d: (ElasticBatchNorm2d, _BATCH_NORM),
    nn.BatchNorm3d: (ElasticBatchNorm3d, _BATCH_NORM),
    nn.LayerNorm: (ElasticLayerNorm, ("normalized_shape", "eps", "elementwise_affine")),
    Tokens: (ElasticTokens, ()),
}


@named_arguments("convert")
def convert(model: nn.Module) -> nn.Module:
    """A copy of a model in which each layer that has an elastic kind is of that kind.

    The opposite of `extract`: parameters have the same names and values, and while nothing is
    selected the model computes the same. Layers of a class derived from torch's stay as they are,
    and parameters that several modules share stay shared.

    Args:
        model: Any module, on any device, "meta" included.

    Raises:
        ValueError: A layer has an option that its elastic kind does not serve, or hooks.
    """
    copies: dict[int, Any] = {}
    for layer in model.modules():
        if type(layer) in _TWINS:
            copies[id(layer)] = _twin(layer, copies)
    return copy.deepcopy(model, copies)


def _twin(layer: Any, copies: dict[int, Any]) -> nn.Module:
    refuse_hooks(layer, "convert")
    kind, names = _TWINS[type(layer)]
    given: dict[str, Any] = {name: getattr(layer, name) for name in names}
    if isinstance(layer, Tokens):
        given |= {"number": layer.weight.shape[0], "width": layer.weight.shape[1]}
    elif isinstance(layer, (_ConvNd, nn.Linear, nn.LayerNorm)):
        given["bias"] = layer.bias is not None
    twin: nn.Module = kind(**given, device="meta")  # no values are drawn
    for name, parameter in layer._parameters.items():  # those that are None, too
        if parameter is not None and id(parameter) not in copies:  # shared ones stay shared
            copies[id(parameter)] = nn.Parameter(
                parameter.detach().clone(), requires_grad=parameter.requires_grad
            )
        setattr(twin, name, None if parameter is None else copies[id(parameter)])
    for name, buffer in layer._buffers.items():
        setattr(twin, name, None if buffer is None else buffer.clone())
    return twin.train(layer.training)


@named_arguments("choice_of")
def choice_of(small: nn.Module, large: Elastic) -> dict[str, Any]:
    """The choice with which an elastic layer runs as a plain layer of the same kind.

    Prefixes of channels and features, the centre of the kernel.

    Args:
        small: The plain layer, not larger than the other one.
        large: The elastic layer.

    Raises:
        ValueError: There is none, as the layers differ in more than such sizes: in their kind, a
            bias, a stride.
    """
    kind = _PLAIN[type(large)]
    if type(small) not in (kind, type(large)):
        raise ValueError(
            f"{type(large).__name__}: expected a {kind.__name__}, got {type(small).__name__}"
        )
    for name, one, other in _fixed(small, large):
        if one != other:
            raise ValueError(f"{type(large).__name__}: {name} must be {other}, got {one}")
    sizes: dict[str, tuple[Any, Any]] = _SIZES[type(large)](small, large)
    choice = {name: few for name, (few, all_) in sizes.items() if few != all_}
    if isinstance(large, _ConvNd):
        _check_kernel(small, large, choice.get("kernel"))
    return choice


def _fixed(small: Any, large: Any) -> list[tuple[str, Any, Any]]:
    """What no choice changes: name, the small layer's, the large one's."""
    names = _FIXED.get(type(large), ())
    found = [(name, getattr(small, name), getattr(large, name)) for name in names]
    if hasattr(large, "bias"):
        found.append(("bias", small.bias is not None, large.bias is not None))
    if isinstance(large, _ConvNd):
        width = large.in_channels // large.groups
        groups = 1 if large.groups == 1 else small.in_channels // width
        found.append(("groups", small.groups, groups))
        if large.groups > 1:  # the outputs follow the inputs
            outputs = large.out_channels // large.groups * groups
            found.append(("out_channels", small.out_channels, outputs))
    return found


def _check_kernel(small: Any, large: Any, kernel: int | None) -> None:
    """A cropped kernel is of one size, with as much less padding.

    Raises:
        ValueError: It is not.
    """
    size = large.kernel_size if kernel is None else (kernel,) * len(large.kernel_size)
    name = type(large).__name__
    if small.kernel_size != size:
        raise ValueError(f"{name}: kernel_size must be {size}, got {small.kernel_size}")
    got, expected = padding_of(small, None), padding_of(large, kernel)
    if got != expected:
        raise ValueError(f"{name}: padding must be {expected} for this kernel, got {got}")


def _of_convolution(small: Any, large: Any) -> dict[str, tuple[Any, Any]]:
    sizes = {"inputs": (small.in_channels, large.in_channels)}
    if small.kernel_size != large.kernel_size:
        sizes["kernel"] = (small.kernel_size[0], None)
    if large.groups == 1:
        sizes["outputs"] = (small.out_channels, large.out_channels)
    return sizes


def _of_linear(small: Any, large: Any) -> dict[str, tuple[Any, Any]]:
    return {
        "inputs": (small.in_features, large.in_features),
        "outputs": (small.out_features, large.out_features),
    }


def _of_batch_norm(small: Any, large: Any) -> dict[str, tuple[Any, Any]]:
    return {"channels": (small.num_features, large.num_features)}


def _of_layer_norm(small: Any, large: Any) -> dict[str, tuple[Any, Any]]:
    return {"features": (small.normalized_shape[0], large.normalized_shape[0])}


def _of_embedding(small: Any, large: Any) -> dict[str, tuple[Any, Any]]:
    return {"columns": (small.embedding_dim, large.embedding_dim)}


def _of_tokens(small: Any, large: Any) -> dict[str, tuple[Any, Any]]:
    return {"width": (small.weight.shape[1], large.weight.shape[1])}


_SIZES: dict[type[Any], Callable[[Any, Any], dict[str, tuple[Any, Any]]]] = {
    ElasticConv1d: _of_convolution,
    ElasticConv2d: _of_convolution,
    ElasticConv3d: _of_convolution,
    ElasticLinear: _of_linear,
    ElasticEmbedding: _of_embedding,
    ElasticBatchNorm1d: _of_batch_norm,
    ElasticBatchNorm2d: _of_batch_norm,
    ElasticBatchNorm3d: _of_batch_norm,
    ElasticLayerNorm: _of_layer_norm,
    ElasticTokens: _of_tokens,
}

_PLAIN = {kind: plain for plain, (kind, _) in _TWINS.items()}
_NORM = ("eps", "affine")
_FIXED: dict[type[Any], tuple[str, ...]] = {
    ElasticConv1d: ("stride", "dilation", "padding_mode"),
    ElasticConv2d: ("stride", "dilation", "padding_mode"),
    ElasticConv3d: ("stride", "dilation", "padding_mode"),
    ElasticEmbedding: ("num_embeddings", "padding_idx"),
    ElasticBatchNorm1d: _NORM,
    ElasticBatchNorm2d: _NORM,
    ElasticBatchNorm3d: _NORM,
    ElasticLayerNorm: ("eps", "elementwise_affine"),
}
