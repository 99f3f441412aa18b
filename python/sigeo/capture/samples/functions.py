"""What is known of torch's functions and modules before they run."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sigeo.capture.samples.axis import Lost


def _named_everywhere(*names: str) -> set[Any]:
    found = set()
    for name in names:
        for place in (torch, F, Tensor, torch.special):
            for spelled in (name, f"{name}_", f"__{name}__", f"__i{name}__", f"__r{name}__"):
                function = getattr(place, spelled, None)
                if callable(function):
                    found.add(function)
    return found


# Broadcasting operations by their Python names: no need to look at what they are made of.
POINTWISE = _named_everywhere(
    "add", "sub", "mul", "div", "truediv", "neg", "pow", "exp", "log", "sqrt", "rsqrt", "abs",
    "sin", "cos", "tanh", "sigmoid", "relu", "relu6", "leaky_relu", "elu", "selu", "gelu", "silu",
    "mish", "hardtanh", "hardswish", "hardsigmoid", "softplus", "clamp", "erf", "maximum",
    "minimum", "dropout", "square", "reciprocal", "logsigmoid", "where", "masked_fill", "float",
    "half", "double", "bfloat16", "clone", "contiguous", "addcmul", "eq", "ne", "lt", "gt", "le",
    "ge",
)  # fmt: skip


# Pooling and the like, by how many last dimensions they work on.
POOLS = {
    getattr(place, name.format(dims)): dims
    for dims in (1, 2, 3)
    for name in ("avg_pool{}d", "max_pool{}d", "adaptive_avg_pool{}d", "adaptive_max_pool{}d")
    for place in (F, torch)
    if hasattr(place, name.format(dims))
}

# Functions that are one aten operation, by the arguments that its rule knows by name: it is asked,
# with no need to see the operation run.
_aten = torch.ops.aten
SINGLE: dict[Any, tuple[Any, set[str]]] = {
    torch.cat: (_aten.cat.default, {"dim"}),
    torch.stack: (_aten.stack.default, {"dim"}),
    Tensor.view: (_aten.view.default, set()),
    **dict.fromkeys((torch.reshape, Tensor.reshape), (_aten.reshape.default, set())),
    **dict.fromkeys((torch.flatten, Tensor.flatten), (_aten.flatten.using_ints, set())),
    **dict.fromkeys((torch.transpose, Tensor.transpose), (_aten.transpose.int, set())),
    **dict.fromkeys((torch.unsqueeze, Tensor.unsqueeze), (_aten.unsqueeze.default, set())),
    **dict.fromkeys((torch.mean, Tensor.mean), (_aten.mean.dim, {"dim", "keepdim"})),
    **dict.fromkeys((torch.sum, Tensor.sum), (_aten.sum.dim_IntList, {"dim", "keepdim"})),
}

# Losses that are, unless told otherwise, one number for the batch.
LOSSES = {
    F.cross_entropy, F.nll_loss, F.mse_loss, F.l1_loss, F.smooth_l1_loss, F.huber_loss, F.kl_div,
    F.binary_cross_entropy, F.binary_cross_entropy_with_logits,
}  # fmt: skip
OF_BATCH = Lost("a loss mixes the samples")

# Modules whose parameters are served by the calls they make: nothing is ever asked of them as a
# whole. By exact class: a subclass, or a parametrised module, may do anything.
_SERVED = {
    nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d,
    nn.ConvTranspose3d, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.GroupNorm, nn.LayerNorm,
    nn.RMSNorm, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d,
}  # fmt: skip


def is_served(module: nn.Module) -> bool:
    """Whether the calls that a module makes serve all its parameters."""
    kind = type(module)
    if kind is nn.Embedding or kind is nn.EmbeddingBag:
        odd = module.max_norm is not None or module.scale_grad_by_freq
        return not odd and getattr(module, "mode", "sum") != "max"
    return kind in _SERVED


def tensors_in(*values: Any) -> list[Tensor]:
    """The tensors among a call's arguments, in order; `tree_leaves` at a tenth of the time."""
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, (tuple, list)):
            found += tensors_in(*value)
        elif isinstance(value, dict) and value:
            found += tensors_in(*value.values())
    return found


def leaves(value: Any) -> list[Any]:
    """What an operation returned, one after another: a tensor, or some of them and None."""
    if isinstance(value, (tuple, list)):
        return [leaf for part in value for leaf in leaves(part)]
    return [value]


def name_of(function: Any) -> str:
    """A function's name for a reader; a property's with a point before it."""
    name = str(getattr(function, "__name__", function))
    if name == "__get__":
        return f".{getattr(function.__self__, '__name__', name)}"
    return name


# What makes no tensor of the forward pass.
LOOKED_AT = {
    "backward",
    "grad",
    "size",
    "dim",
    "numel",
    "stride",
    "is_contiguous",
    "is_floating_point",
    "item",
}
