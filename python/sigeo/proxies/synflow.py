"""SynFlow, as a logarithm, and LogSynFlow, in float64.

Tanaka et al., "Pruning neural networks without any data by iteratively conserving synaptic flow",
NeurIPS 2020, section 6: R is the sum of the outputs for an input of ones, with every weight
replaced by its absolute value and batch norm bypassed; the score is the sum of |theta * dR/dtheta|
over the weights of convolutions and linear layers. It reaches 1e67 on ordinary networks, hence the
logarithm. Cavagnero et al., "FreeREA: Training-Free Evolution-based Architecture Search", WACV
2023, damp the gradient instead: the sum of |theta * log(dR/dtheta + 1)|.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

from sigeo.capture import preserved, select
from sigeo.capture.batches import output_of
from sigeo.capture.state import run_with
from sigeo.errors import lacks_memory
from sigeo.proxies.base import OnModel, Outcome, Proxy
from sigeo.proxies.passes import first_samples, summed
from sigeo.proxies.registry import register
from sigeo_ext import saliency

_NO_FLOW = {"log_abs_product": -math.inf, "log1p_product": 0.0}
"""What a layer without any flow has in a column of `saliency.sums`."""

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

    def ones(x: Tensor) -> Tensor:
        return torch.ones_like(x, dtype=torch.float64) if x.is_floating_point() else x

    return tree_map_only(Tensor, ones, first_samples(inputs, 1))


class _Flow(nn.Module):
    """The gradients of a model's summed output, by the tensors that stand for its parameters.

    They are taken in the call, with the mode: layers that run again, as in a checkpoint, need both.
    """

    def __init__(self, model: nn.Module, leaves: Sequence[Tensor]):
        super().__init__()
        self.model = model
        self.leaves = leaves

    def forward(self, inputs: Any) -> Sequence[Tensor | None]:
        flow = summed(output_of(self.model, inputs))
        if not flow.requires_grad or not self.leaves:
            return [None] * len(self.leaves)
        # As `torch.autograd.grad`, which is a torch function, so that the mode rests while it runs.
        grads: Sequence[Tensor | None] = torch.autograd.graph._engine_run_backward(
            (flow,),
            (torch.ones_like(flow),),
            False,
            False,
            tuple(self.leaves),
            allow_unreachable=True,
            accumulate_grad=False,
        )
        return grads


def _absolute(tensor: Tensor) -> Tensor:
    return tensor.detach().double().abs() if tensor.is_floating_point() else tensor.detach().clone()


class _DoesNotRun(Exception):
    """The network takes no float64; the message is its own."""


def _flow(model: nn.Module, inputs: Any, column: str) -> tuple[Tensor, int]:
    """A column of `saliency.sums` of the absolute weights and dR/dtheta, of every layer.

    Also how many layers have no flow although the output is computed from them.

    Raises:
        _DoesNotRun: A pass fails on ones in float64.
        RuntimeError: It finds no memory.
    """
    weights = {f"model.{name}" for name in select(model, "layers")}
    values = {f"model.{name}": _absolute(p) for name, p in model.named_parameters()}
    values |= {f"model.{name}": _absolute(b) for name, b in model.named_buffers()}
    leaves = [values[name].requires_grad_() for name in values if name in weights]
    try:
        with preserved(model, parameters=False), torch.inference_mode(False), torch.enable_grad():
            model.eval()  # no dropout
            with _WithoutBatchNorm():
                grads = run_with(_Flow(model, leaves), values, (_ones(inputs),))
    except RuntimeError as error:
        if lacks_memory(error):
            raise
        raise _DoesNotRun(" ".join(str(error).split())[:200]) from error
    sums = saliency.sums([leaf.detach() for leaf in leaves], grads, want=[column])[column]
    used = torch.tensor([grad is not None for grad in grads], device=sums.device)
    return sums, int((used & (sums == _NO_FLOW[column])).sum())


def _measure(
    model: nn.Module, inputs: Any, column: str, total: Callable[[Tensor], Tensor], term: str
) -> Outcome:
    """The column's total over the layers, also as the term of that name."""
    try:
        flow, without = _flow(model, inputs, column)
        value = float(total(flow))
    except _DoesNotRun as error:
        return Outcome(math.nan, {}, (f"does not run on ones in float64: {error}",))
    notes: tuple[str, ...] = ()
    if value == -math.inf:
        notes = ("no weight carries flow to the output",)
    elif math.isnan(value):
        notes = ("the flow runs backwards somewhere, as through norms other than batch norm",)
    elif not math.isfinite(value):
        notes = ("the flow is beyond the largest float64",)
    elif without:
        notes = (
            f"{without} of {len(flow)} layers carry no flow and do not count, as where an "
            "activation with an upper bound (ReLU6) is saturated or the input is 0",
        )
    return Outcome(value, {term: value}, notes)


def _synflow(model: nn.Module, inputs: Any) -> Outcome:
    def total(logs: Tensor) -> Tensor:
        return logs.logsumexp(0)

    return _measure(model, inputs, "log_abs_product", total, "log_synflow_sum")


def _logsynflow(model: nn.Module, inputs: Any) -> Outcome:
    return _measure(model, inputs, "log1p_product", torch.sum, "logsynflow")


@register("synflow")
def synflow() -> Proxy:
    """Logarithm of the synaptic flow; needs no data, only the inputs' shape."""
    return Proxy(
        name="synflow",
        measurement=OnModel(_synflow),
        source="Tanaka et al., NeurIPS 2020, section 6",
        cost="backward",
        initial_weights=True,
        images=lambda sizes: (1, 0),
    )


@register("logsynflow")
def logsynflow() -> Proxy:
    """Synaptic flow with the logarithm of the gradient; needs no data, only the inputs' shape."""
    return Proxy(
        name="logsynflow",
        measurement=OnModel(_logsynflow),
        source="Cavagnero et al., FreeREA, WACV 2023; Tanaka et al., NeurIPS 2020",
        cost="backward",
        initial_weights=True,
        images=lambda sizes: (1, 0),
    )
