"""SynFlow, in float64 and as a logarithm.

Tanaka et al., "Pruning neural networks without any data by iteratively conserving synaptic flow",
NeurIPS 2020, section 6: R is the sum of the outputs for an input of ones, with every weight
replaced by its absolute value and batch norm bypassed; the score is the sum of |theta * dR/dtheta|
over the weights of convolutions and linear layers. It reaches 1e67 on ordinary networks, hence the
logarithm.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from sigeo.capture import preserved, select
from sigeo.capture.batches import call
from sigeo.proxies.base import OnModel, Outcome, Proxy
from sigeo.proxies.registry import register

_BYPASSED = (F.batch_norm, torch.batch_norm)


class _WithoutBatchNorm(TorchFunctionMode):
    """Batch norm returns its input, wherever the model calls it."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func in _BYPASSED:
            return args[0] if args else (kwargs or {})["input"]
        return func(*args, **(kwargs or {}))


def _ones(inputs: Any) -> Any:
    """One sample of ones, float64, shaped like the inputs; indices stay as they are."""
    if isinstance(inputs, Tensor):
        one = inputs[:1]
        return torch.ones_like(one, dtype=torch.float64) if one.is_floating_point() else one
    if isinstance(inputs, dict):
        return {name: _ones(value) for name, value in inputs.items()}
    if isinstance(inputs, (tuple, list)):
        return tuple(_ones(value) for value in inputs)
    return inputs


class _Called(nn.Module):
    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, inputs: Any) -> Any:
        return call(self.model, inputs)


def _absolute(tensor: Tensor) -> Tensor:
    return tensor.detach().double().abs() if tensor.is_floating_point() else tensor.detach().clone()


def _sum(output: Any) -> Tensor:
    """The sum of all floating values in whatever a model returns."""
    parts = [
        t.sum() for t in tree_leaves(output) if isinstance(t, Tensor) and t.is_floating_point()
    ]
    return torch.stack(parts).sum() if parts else torch.zeros((), dtype=torch.float64)


def _synflow(model: nn.Module, inputs: Any) -> Outcome:
    weights = {f"model.{name}" for name in select(model, "layers")}
    values = {f"model.{name}": _absolute(p) for name, p in model.named_parameters()}
    values |= {f"model.{name}": _absolute(b) for name, b in model.named_buffers()}
    leaves = {name: values[name].requires_grad_() for name in values if name in weights}
    try:
        with preserved(model, parameters=False), torch.inference_mode(False), torch.enable_grad():
            model.eval()  # no dropout
            with _WithoutBatchNorm():
                output = torch.func.functional_call(_Called(model), values, (_ones(inputs),))
            flow = _sum(output)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        return Outcome(math.nan, {}, (f"does not run on ones in float64: {reason}",))
    reached = flow.requires_grad
    grads = torch.autograd.grad(flow, list(leaves.values()), allow_unused=True) if reached else ()
    total = sum(
        float((w.detach() * g).abs().sum())
        for w, g in zip(leaves.values(), grads, strict=False)
        if g is not None
    )
    value = math.log(total) if total > 0 else -math.inf
    notes = () if total > 0 else ("no weight carries flow to the output",)
    if total == math.inf:
        notes = ("the flow is beyond the largest float64",)
    return Outcome(value, {"log_synflow_sum": value}, notes)


@register("synflow")
def synflow() -> Proxy:
    """Logarithm of the synaptic flow; needs no data, only the inputs' shape."""
    return Proxy(
        name="synflow",
        measurement=OnModel(_synflow),
        source="Tanaka et al., NeurIPS 2020, section 6",
        cost="backward",
        initial_weights=True,
    )
