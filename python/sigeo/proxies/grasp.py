"""GraSP: how much the gradient's norm would lose.

Wang et al., "Picking Winning Tickets Before Training by Preserving Gradient Flow", ICLR 2020,
section 4, summed as a proxy by Abdelfattah et al., ICLR 2021: minus the sum of theta * (H g), g the
gradient of the mean loss of one batch and H its Hessian, both over the weights of convolutions and
linear layers. The network is in train mode, batch norm on the statistics of the batch.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from sigeo.capture import select
from sigeo.errors import lacks_memory
from sigeo.proxies.base import OnLoss, Outcome, Proxy
from sigeo.proxies.registry import register
from sigeo_ext import moments, saliency


def _hessian_gradient(loss: Tensor, weights: list[nn.Parameter]) -> list[Tensor | None]:
    """H g of each layer: the derivative of <g, g'> where g' is held; None where it is zero.

    Leaves its parts in the parameters' ``grad``, which must be empty.
    """
    asking = [w for w in weights if w.requires_grad]
    if not asking:
        return [None] * len(weights)
    first = torch.autograd.grad(loss, asking, create_graph=True, allow_unused=True)
    grads = [g for g in first if g is not None]
    inner = moments.dot(grads, [g.detach() for g in grads]).sum()
    if inner.requires_grad:  # else the loss is linear in the weights
        # Not autograd.grad, which passes by what has no second derivative instead of raising.
        inner.backward()
    return [w.grad for w in weights]


def _grasp(model: nn.Module, loss: Tensor) -> Outcome:
    weights = list(select(model, "layers").values())
    try:
        product = _hessian_gradient(loss, weights)
    except RuntimeError as error:
        if lacks_memory(error):
            raise
        reason = " ".join(str(error).split())[:200]
        return Outcome(math.nan, {}, (f"the second derivative fails: {reason}",))
    sums = saliency.sums([w.detach() for w in weights], product, want=["product"])["product"]
    return Outcome(-float(sums.sum()))


@register("grasp")
def grasp() -> Proxy:
    """Minus the sum of theta * (H g)."""
    return Proxy(
        name="grasp",
        measurement=OnLoss(_grasp),
        source="Wang et al., GraSP, ICLR 2020; Abdelfattah et al., ICLR 2021",
        cost="second",
        labels=True,
    )
