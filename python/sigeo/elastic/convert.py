"""From plain layers to elastic ones, and from a smaller layer to the choice that it is."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from torch import nn
from torch.nn.modules.conv import _ConvNd

from sigeo.elastic.base import Elastic
from sigeo.elastic.convolution import ElasticConv1d, ElasticConv2d, ElasticConv3d
from sigeo.elastic.linear import ElasticEmbedding, ElasticLinear
from sigeo.elastic.norms import (
    ElasticBatchNorm1d,
    ElasticBatchNorm2d,
    ElasticBatchNorm3d,
    ElasticLayerNorm,
)
from sigeo.elastic.tokens import ElasticTokens, Tokens

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


def convert(model: nn.Module) -> nn.Module:
    """A copy of a model in which each layer that has an elastic kind is of that kind.

    The opposite of `extract`: parameters have the same names and values, and while nothing is
    selected the model computes the same. Layers of a class derived from torch's stay as they are.

    Args:
        model: Any module, on any device, "meta" included.

    Raises:
        ValueError: A layer has an option that its elastic kind does not serve.
    """
    twins: dict[int, Any] = {
        id(layer): _twin(layer) for layer in model.modules() if type(layer) in _TWINS
    }
    if id(model) in twins:
        whole: nn.Module = twins[id(model)]
        return whole
    return copy.deepcopy(model, twins)


def _twin(layer: Any) -> nn.Module:
    kind, names = _TWINS[type(layer)]
    given: dict[str, Any] = {name: getattr(layer, name) for name in names}
    if isinstance(layer, Tokens):
        given |= {"number": layer.weight.shape[0], "width": layer.weight.shape[1]}
    elif isinstance(layer, (_ConvNd, nn.Linear, nn.LayerNorm)):
        given["bias"] = layer.bias is not None
    twin: nn.Module = kind(**given, device="meta")  # no values are drawn
    for name, parameter in layer.named_parameters():
        copied = nn.Parameter(parameter.detach().clone(), requires_grad=parameter.requires_grad)
        setattr(twin, name, copied)
    for name, buffer in layer.named_buffers():
        setattr(twin, name, buffer.clone())
    return twin.train(layer.training)


def choice_of(small: nn.Module, large: Elastic) -> dict[str, Any]:
    """The choice with which an elastic layer runs as a plain layer of the same kind.

    Prefixes of channels and features, the centre of the kernel.

    Args:
        small: The plain layer, not larger than the other one.
        large: The elastic layer.
    """
    sizes: dict[str, tuple[Any, Any]] = _SIZES[type(large)](small, large)
    return {name: few for name, (few, all_) in sizes.items() if few != all_}


def _of_convolution(small: Any, large: Any) -> dict[str, tuple[Any, Any]]:
    sizes = {
        "inputs": (small.in_channels, large.in_channels),
        "kernel": (small.kernel_size[0], large.kernel_size[0]),
    }
    if large.groups == 1:  # else the outputs follow the inputs
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
